import { Readable } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { BoundedOutput, betweenMarks, MarkedOutput, maxOutputBytes, readInto } from './command-output.js';
import { HostBuffers } from './host-buffers.js';
import { beginOf, endOf, newMark } from './shell-line.js';

const mark = newMark();
const printed = (text: string, code = '0'): string => `${beginOf(mark)}${text}${endOf(mark)}${code}\n`;

describe('BoundedOutput', () => {
  it('keeps what comes in many pieces, and counts its memory for the host until it is released', () => {
    const buffers = new HostBuffers();
    const output = new BoundedOutput(buffers);
    for (let index = 0; index < 10_000; index++) output.push(Buffer.from('a'));
    expect(output.text()).toBe('a'.repeat(10_000));
    expect(output.size).toBe(10_000);
    expect(buffers.bytes).toBeGreaterThanOrEqual(10_000);
    expect(buffers.bytes).toBeLessThan(40_000);
    output.release();
    expect([buffers.bytes, output.text()]).toEqual([0, '']);
  });

  it('refuses what is beyond its bound, and keeps what was there', () => {
    const output = new BoundedOutput(new HostBuffers(), 10);
    output.push(Buffer.from('0123456789'));
    expect(() => output.push(Buffer.from('x'))).toThrow(
      expect.objectContaining({ code: 'host_output_exceeded', details: { detail: 'more than 10 bytes' } }),
    );
    expect(output.text()).toBe('0123456789');
  });

  it('lets bytes pass beyond the bound that are not the program’s', () => {
    const output = new BoundedOutput(new HostBuffers(), 10, 5);
    output.push(Buffer.from('012345678901234'));
    expect(output.size).toBe(15);
    expect(() => output.push(Buffer.from('x'))).toThrow('more than 10 bytes');
  });

  it('refuses what is beyond the bound of the host', () => {
    const buffers = new HostBuffers(8_192);
    const [first, second] = [new BoundedOutput(buffers), new BoundedOutput(buffers)];
    first.push(Buffer.alloc(8_000));
    expect(() => second.push(Buffer.alloc(1_000))).toThrow(expect.objectContaining({ code: 'host_buffer_exceeded' }));
    expect(second.size).toBe(0);
    first.release();
    second.push(Buffer.alloc(1_000));
    expect(second.size).toBe(1_000);
  });

  it('is cut at a place', () => {
    const output = new BoundedOutput(new HostBuffers());
    output.push(Buffer.from('head|tail'));
    expect(output.indexOf('|', -5)).toBe(4);
    expect(output.indexOf('|', 5)).toBe(-1);
    expect(output.cut(4).toString()).toBe('|tail');
    expect(output.text()).toBe('head');
    expect(output.indexOf('|', 0)).toBe(-1);
  });
});

describe('MarkedOutput', () => {
  const output = (...chunks: string[]): MarkedOutput => {
    const marked = new MarkedOutput(new HostBuffers(), mark);
    for (const chunk of chunks) marked.push(Buffer.from(chunk));
    return marked;
  };

  it.each([
    ['at once', (text: string) => [text]],
    ['byte by byte', (text: string) => [...text]],
    ['in pieces of seven', (text: string) => text.match(/[^]{1,7}/g) ?? []],
  ])('tells what a program prints from what a login prints, which comes %s', (_, split) => {
    const seen = output(...split(`motd\n${printed('own\ntext', '3')}bye\n`));
    expect(seen.text()).toBe('own\ntext');
    expect(seen.noise).toBe('motd\nbye\n');
    expect(seen.exitCode).toBe(3);
    expect(seen.hasBegun).toBe(true);
  });

  it('has no exit code before the end, and no text before the begin', () => {
    const waiting = output('motd ', beginOf(mark).slice(0, 5));
    expect([waiting.hasBegun, waiting.exitCode, waiting.text()]).toEqual([false, undefined, '']);
    expect(waiting.noise).toBe(`motd ${beginOf(mark).slice(0, 5)}`);
    const running = output(`${beginOf(mark)}text${endOf(mark)}1`);
    expect([running.hasBegun, running.exitCode]).toEqual([true, undefined]);
    running.push(Buffer.from('2\n'));
    expect([running.exitCode, running.text()]).toEqual([12, 'text']);
  });

  it.each([
    ['0', 0],
    ['255', 255],
    ['256', 0],
    ['x', 255],
    ['12345', 255],
  ])('takes the exit code of a host that says %j for %s', (said, code) =>
    expect(output(printed('', said)).exitCode).toBe(code),
  );

  it('does not take the end of another mark for its own', () => {
    const other = newMark();
    const seen = output(`${beginOf(mark)}${endOf(other)}0\n`, `${endOf(mark)}0\n`);
    expect(seen.text()).toBe(`${endOf(other)}0\n`);
  });

  it('keeps only the begin of noise, and ends at too much of it', () => {
    const seen = output('x'.repeat(1_000), printed('text'));
    expect(seen.noise).toBe('x'.repeat(300));
    expect(() => output(printed('text'), 'y'.repeat(1024 * 1024 + 1))).toThrow(
      expect.objectContaining({ code: 'host_output_exceeded' }),
    );
  });

  it('takes as much of a program as any output may have', () => {
    const text = 'z'.repeat(maxOutputBytes);
    expect(output(printed(text)).text()).toBe(text);
    expect(() => output(printed(`${text}${'z'.repeat(256)}`))).toThrow('more than');
  });
});

describe('betweenMarks', () => {
  it('gives what is inside, and what is around', () => {
    expect(betweenMarks(`a\n${printed('text')}b\n`, mark)).toEqual({ text: 'text', noise: 'a\nb\n' });
    expect(betweenMarks(`a\n${beginOf(mark)}cut short`, mark)).toEqual({ text: 'cut short', noise: 'a\n' });
    expect(betweenMarks('nothing of ours', mark)).toBeUndefined();
  });
});

describe('readInto', () => {
  it('stops at the first chunk that is too much, and says so once', async () => {
    const source = new Readable({ read: () => undefined });
    const errors: unknown[] = [];
    let chunks = 0;
    const output = new BoundedOutput(new HostBuffers(), 4);
    readInto(
      output,
      source,
      () => chunks++,
      (error) => errors.push(error),
    );
    for (const text of ['ok', 'too much', 'more']) {
      source.push(text);
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect([chunks, errors.length, output.text()]).toEqual([1, 1, 'ok']);
    expect(source.isPaused()).toBe(true);
  });
});
