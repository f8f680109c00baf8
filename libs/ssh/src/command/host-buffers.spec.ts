import { describe, expect, it } from 'vitest';
import { commandError } from './command-error.js';
import { HostBuffers, maxBufferedBytes } from './host-buffers.js';

const mib = 1024 * 1024;

describe('HostBuffers', () => {
  it('lets a host have so much at a time', () => {
    const buffers = new HostBuffers();
    expect(buffers.free).toBe(maxBufferedBytes);
    buffers.take(maxBufferedBytes - 1);
    expect(buffers.free).toBe(1);
    expect(() => buffers.take(2)).toThrow(
      expect.objectContaining({ code: 'host_buffer_exceeded', details: { detail: 'more than 8 MiB' } }),
    );
    expect(buffers.bytes).toBe(maxBufferedBytes - 1);
    buffers.give(maxBufferedBytes - 1);
    expect([buffers.bytes, buffers.free]).toEqual([0, maxBufferedBytes]);
  });

  it('counts what is there already, also beyond the bound', () => {
    const buffers = new HostBuffers(10);
    buffers.add(20);
    expect([buffers.bytes, buffers.free]).toEqual([20, 0]);
    buffers.give(20);
  });

  it('leaves each host its share when many others are stuck', () => {
    const stuck = Array.from({ length: 32 }, () => new HostBuffers());
    for (const one of stuck) one.take(maxBufferedBytes);
    const other = new HostBuffers();
    expect(other.free).toBe(mib / 4);
    other.take(mib / 4);
    expect(() => other.take(1)).toThrow('more than 8 MiB');
    other.give(mib / 4);
    for (const one of stuck) one.give(maxBufferedBytes);
    expect(other.free).toBe(maxBufferedBytes);
  });
});

describe('commandError', () => {
  it.each([
    ['write: No space left on device', 'host_disk_full'],
    ['cp: Disk quota exceeded', 'host_disk_full'],
    ["E: You don't have enough free space in /var/cache/apt/archives/.", 'host_disk_full'],
    ['At least 12MB more space needed on the / filesystem.', 'host_disk_full'],
    ['touch: Read-only file system', 'host_disk_read_only'],
    ['anything else', 'host_packages_failed'],
  ])('takes %j for %s', (detail, code) =>
    expect(commandError('host_packages_failed', { detail, exitCode: 1 })).toMatchObject({
      code,
      details: { detail, exitCode: 1 },
    }),
  );
});
