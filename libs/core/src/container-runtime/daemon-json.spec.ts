import { describe, expect, it } from 'vitest';
import type { AppError } from '../errors.js';
import { mergeDaemonJson, unmergeDaemonJson } from './daemon-json.js';

const mirror = 'http://127.0.0.1:5100';
const code = (action: () => unknown) => {
  try {
    action();
  } catch (error) {
    return (error as AppError).code;
  }
  return undefined;
};

describe('mergeDaemonJson', () => {
  it.each([[null], [''], ['  \n'], ['{}']])('of %j has the mirror alone', (text) =>
    expect(mergeDaemonJson(text, mirror)).toBe(`{\n  "registry-mirrors": [\n    "${mirror}"\n  ]\n}\n`),
  );

  it('keeps every other key in its place, other mirrors behind ours, and the indentation', () => {
    const text = '{\n\t"live-restore": true,\n\t"registry-mirrors": ["https://mirror.site"],\n\t"log-opts": {"max-size": "10m"}\n}\n';
    const merged = mergeDaemonJson(text, mirror);
    expect(JSON.parse(merged)).toEqual({ 'live-restore': true, 'registry-mirrors': [mirror, 'https://mirror.site'], 'log-opts': { 'max-size': '10m' } });
    expect(Object.keys(JSON.parse(merged) as object)).toEqual(['live-restore', 'registry-mirrors', 'log-opts']);
    expect(merged).toContain('\n\t"live-restore": true,');
  });

  it('gives the text itself back when it has the mirror', () => {
    for (const written of [mergeDaemonJson('{"a":1}', mirror), `{ "registry-mirrors":["${mirror}/"] }`]) expect(mergeDaemonJson(written, mirror)).toBe(written);
  });

  it.each([['{'], ['[]'], ['null'], ['"x"'], ['{"registry-mirrors":"x"}'], ['{"registry-mirrors":[1]}'], ['{"registry-mirrors":null,}'], ['{"a":1,"a":2}']])(
    'refuses %j',
    (text) => expect(code(() => mergeDaemonJson(text, mirror))).toBe('host_file_refused'),
  );
});

describe('unmergeDaemonJson', () => {
  it.each([[null], ['{}'], ['{\n\t"a": 1,\n\t"registry-mirrors": ["https://mirror.site"]\n}']])('gives back %j as it was', (before) =>
    expect(unmergeDaemonJson(mergeDaemonJson(before, mirror), before, mirror)).toBe(before),
  );

  it('keeps what was changed since', () => {
    const merged = mergeDaemonJson('{"a": 1}', mirror).replace('"a": 1', '"a": 2');
    expect(unmergeDaemonJson(merged, '{"a": 1}', mirror)).toBe('{\n  "a": 2\n}\n');
    expect(unmergeDaemonJson('{"a": 3}', '{"a": 1}', mirror)).toBe('{"a": 3}');
  });
});
