import { expect, it } from 'vitest';
import { renderHeldPorts } from './held-port.js';

const holder = { proxyd: '/lib/systemd/systemd-socket-proxyd', systemdVersion: 252, hasIpv6: true, userId: 1000 };
const registry = { name: 'registry', port: 5100 } as const;

it('renders a socket and a service for each port, and the folder of the login user', () => {
  const files = renderHeldPorts([registry, { name: 'packages', port: 5102 }], holder);
  expect([...files.keys()]).toEqual([
    '/etc/tmpfiles.d/airdock.conf',
    ...['registry', 'packages'].flatMap((name) =>
      ['socket', 'service'].map((kind) => `/etc/systemd/system/airdock-${name}.${kind}`),
    ),
  ]);
  for (const text of files.values()) expect(text).toMatch(/^# Written by Airdock/);
  expect(files.get('/etc/tmpfiles.d/airdock.conf')).toContain('d /run/airdock 0700 1000 0 -');
  expect(files.get('/etc/systemd/system/airdock-packages.socket')).toContain(
    'ListenStream=127.0.0.1:5102\nListenStream=[::1]:5102\n',
  );
  const service = files.get('/etc/systemd/system/airdock-registry.service');
  expect(service).toContain(
    'ExecStart=/lib/systemd/systemd-socket-proxyd --connections-max=1024 /run/airdock/registry.sock\nUser=1000\n',
  );
  expect(service).toContain('Requires=airdock-registry.socket');
});

it('leaves out what a kernel or an old systemd does not know', () => {
  const texts = [...renderHeldPorts([registry], { ...holder, systemdVersion: 219, hasIpv6: false }).values()].join('');
  expect(texts).not.toContain('[::1]');
  expect(texts).not.toContain('--connections-max');
});
