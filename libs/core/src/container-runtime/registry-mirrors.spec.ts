import { parse as parseToml } from 'smol-toml';
import { describe, expect, it } from 'vitest';
import { type Mirrors, renderRegistriesConf, renderRegistriesYaml } from './registry-mirrors.js';

const mirrors = (naming: Mirrors['naming'], upstreams = ['k8s.gcr.io', 'Reg.Site:5000']): Mirrors => ({
  upstreams,
  localRegistry: 'localhost:5100',
  port: 5100,
  naming,
});

describe('renderRegistriesYaml', () => {
  it('leads each upstream below its own path where images have such names', () =>
    expect(
      renderRegistriesYaml(mirrors(['flat', 'upstream']))
        .split('\n')
        .slice(1),
    ).toEqual([
      'mirrors:',
      '  "k8s.gcr.io":',
      '    endpoint:',
      '      - "http://127.0.0.1:5100"',
      '    rewrite:',
      '      "^(.*)$": "k8s.gcr.io/$1"',
      '  "Reg.Site:5000":',
      '    endpoint:',
      '      - "http://127.0.0.1:5100"',
      '    rewrite:',
      '      "^(.*)$": "reg.site_5000/$1"',
      '  "localhost:5100":',
      '    endpoint:',
      '      - "http://127.0.0.1:5100"',
      '',
    ]));

  it('rewrites nothing where names are flat only', () => {
    const text = renderRegistriesYaml(mirrors(['flat']));
    expect(text).not.toContain('rewrite');
    expect(text.match(/endpoint:/g)).toHaveLength(3);
  });
});

describe('renderRegistriesConf', () => {
  const registriesOf = (text: string) => (parseToml(text) as { registry: unknown }).registry;

  it('is TOML that leads each upstream, and the local registry itself, to the port of the host', () =>
    expect(registriesOf(renderRegistriesConf(mirrors(['upstream'])))).toEqual([
      { prefix: 'k8s.gcr.io', location: '127.0.0.1:5100/k8s.gcr.io', insecure: true },
      { prefix: 'Reg.Site:5000', location: '127.0.0.1:5100/reg.site_5000', insecure: true },
      { prefix: 'localhost:5100', location: '127.0.0.1:5100', insecure: true },
    ]));

  it('has no path where names are flat only, and without upstreams the local registry alone', () => {
    expect(registriesOf(renderRegistriesConf(mirrors(['flat'], ['docker.io'])))).toEqual([
      { prefix: 'docker.io', location: '127.0.0.1:5100', insecure: true },
      { prefix: 'localhost:5100', location: '127.0.0.1:5100', insecure: true },
    ]);
    expect(registriesOf(renderRegistriesConf(mirrors(['flat'], [])))).toHaveLength(1);
  });
});

it.each([renderRegistriesYaml, renderRegistriesConf])('says whose it is in its first line: %o', (render) =>
  expect(render(mirrors(['flat']))).toMatch(/^# Written by Airdock/),
);
