import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { AppError } from '../errors.js';
import { formatReference, localReferences, parseReference, type Reference, upstreamOf } from './reference.js';

const local = (text: string) => localReferences(parseReference(text), 'localhost:5100').map(formatReference);

describe('parseReference', () => {
  it.each([
    ['nginx', 'docker.io/library/nginx:latest'],
    ['calico/node:v3.18.1', 'docker.io/calico/node:v3.18.1'],
    ['k8s.gcr.io/pause:3.2', 'k8s.gcr.io/pause:3.2'],
    ['localhost:5100/a/b', 'localhost:5100/a/b:latest'],
    ['index.docker.io/nginx:1', 'docker.io/library/nginx:1'],
    ['[::1]:5000/x:1', '[::1]:5000/x:1'],
    ['[FD00:0:0::10]:5000/x:1', '[fd00::10]:5000/x:1'],
    [`quay.io/a@sha256:${'0'.repeat(64)}`, `quay.io/a@sha256:${'0'.repeat(64)}`],
  ])('reads %s as %s', (text, full) => expect(formatReference(parseReference(text))).toBe(full));

  it.each([
    '',
    '[::::]/x',
    '[1:2]/x',
    'UPPER/x',
    'a b',
    'x:',
    'x:ta g',
    'x@sha256:12',
    '../x',
    'a//b',
    'registry.io/',
    '-x.io/a',
    'x:y\u0000z',
  ])('refuses %j', (text) => expect(() => parseReference(text)).toThrowError(AppError));

  it('reads back what it formats, and never throws anything but its own error', () => {
    fc.assert(
      fc.property(fc.string(), (text) => {
        try {
          const full = formatReference(parseReference(text));
          expect(formatReference(parseReference(full))).toBe(full);
        } catch (error) {
          expect(error).toBeInstanceOf(AppError);
        }
      }),
    );
  });
});

describe('localReferences', () => {
  it.each([
    '[fd00::10]:5000/a/x:1',
    '[::1]/x:1',
    '[2001:db8:1:2:3:4:5:6]:443/x:1',
    'example.com:5000/x:1',
    'k8s.gcr.io/pause:3.2',
  ])('give %s a path that leads back to it', (text) => {
    const [, below] = localReferences(parseReference(text), 'localhost:5100');
    expect(parseReference(formatReference(below as Reference))).toEqual(below);
    expect(formatReference(upstreamOf(below as Reference) as Reference)).toBe(text);
  });

  it('replaces only the host, and adds the name below the upstream', () => {
    expect(local('k8s.gcr.io/pause:3.2')).toEqual(['localhost:5100/pause:3.2', 'localhost:5100/k8s.gcr.io/pause:3.2']);
    expect(local('gcr.io/etcd-development/etcd:v3.4.14')[0]).toBe('localhost:5100/etcd-development/etcd:v3.4.14');
    expect(local('reg.site:5000/a:1')[1]).toBe('localhost:5100/reg.site_5000/a:1');
  });

  it('gives official images both of their names', () => {
    expect(local('nginx:1.21')).toEqual([
      'localhost:5100/nginx:1.21',
      'localhost:5100/library/nginx:1.21',
      'localhost:5100/docker.io/library/nginx:1.21',
    ]);
  });
});
