import { describe, expect, it } from 'vitest';
import { readRegistryMode } from './registry-mode.js';

describe('privateRegistryType', () => {
  it.each([
    undefined,
    null,
    false,
    '',
    '  ',
    'none',
    'None',
    'NONE',
    'off',
    'Off',
    'no',
    'No',
    'NO',
    'false',
    'False',
    'disabled',
    'Disabled',
    ' none ',
  ])('%j is off', (value) => expect(readRegistryMode(value)).toEqual({ mode: 'none' }));

  it.each([
    ['local', 'local'],
    ['Local', 'local'],
    ['LOCAL', 'local'],
    ['external', 'external'],
    ['External', 'external'],
    [' EXTERNAL', 'external'],
  ] as const)('%j is %s', (value, mode) => expect(readRegistryMode(value)).toEqual({ mode }));

  it.each([
    ['extern', 'external'],
    ['ext', 'external'],
    ['externl', 'external'],
    ['internal', 'external'],
    ['lokal', 'local'],
    ['loc', 'local'],
    ['lcoal', 'local'],
    ['locall', 'local'],
    ['nonee', 'none'],
    ['Nnoe', 'none'],
    ['non', 'none'],
    ['of', 'off'],
    ['offf', 'off'],
    ['fals', 'false'],
    ['disable', 'disabled'],
    ['Disbaled', 'disabled'],
    ['"none"', 'none'],
    ["'off'", 'off'],
    ['no.', 'no'],
    ['null', 'none'],
    ['<no value>', 'none'],
    ['~', 'none'],
    [0, 'none'],
    ["''", 'none'],
  ])('%j is an error that names %s', (value, meant) =>
    expect(readRegistryMode(value)).toEqual({
      error: expect.stringMatching(new RegExp(`is ${meant} meant.*none, local, external`)) as string,
    }),
  );

  it.each([
    'docker',
    'docker-registry',
    'yes',
    'on',
    'true',
    true,
    'harbor',
    'oss',
    'x'.repeat(100_000),
    5,
    '\u001b[2J',
  ])('%j is on, with a warning', (value) => {
    const read = readRegistryMode(value);
    expect(read).toEqual({ mode: 'local', warning: expect.stringContaining('counts as local') as string });
    expect(JSON.stringify(read).length).toBeLessThan(400);
    expect(JSON.stringify(read)).not.toContain('\u001b');
  });

  it.each([[[]], [{}], [['none']]])('%j is an error', (value) =>
    expect(readRegistryMode(value)).toHaveProperty('error'),
  );
});
