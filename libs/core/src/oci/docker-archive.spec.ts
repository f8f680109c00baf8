import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { AppError } from '../errors.js';
import { parseDockerArchive } from './docker-archive.js';

const parse = (json: unknown) => parseDockerArchive(Buffer.from(JSON.stringify(json)));
const entry = { Config: 'abc.json', RepoTags: ['nginx:1', 'nginx:latest'], Layers: ['a/layer.tar', 'b/layer.tar'] };
const refusal = (code: string, detail: string) =>
  expect.objectContaining({ code, details: expect.objectContaining({ detail: expect.stringContaining(detail) }) });

describe('the manifest.json of a docker-archive', () => {
  it('says of each image its configuration, names and layers, lowest first', () => {
    expect(parse([entry, { ...entry, Config: 'blobs/sha256/ff', RepoTags: null, Layers: null }])).toEqual({
      images: [
        { config: 'abc.json', repoTags: entry.RepoTags, layers: entry.Layers, layerUrls: new Map() },
        { config: 'blobs/sha256/ff', repoTags: [], layers: [], layerUrls: new Map() },
      ],
      odd: [],
    });
  });

  it('has no name for what was saved by its ID', () => {
    expect(parse([{ ...entry, RepoTags: ['<none>:<none>'] }]).images[0]?.repoTags).toEqual([]);
  });

  it('says where layers come from that only their vendor may distribute', () => {
    const LayerSources = { 'sha256:1': { urls: ['https://vendor/layer'], size: 3 }, 'sha256:2': { urls: null } };
    expect(parse([{ ...entry, LayerSources }]).images[0]?.layerUrls).toEqual(
      new Map([
        ['sha256:1', ['https://vendor/layer']],
        ['sha256:2', []],
      ]),
    );
  });

  it('names an entry that is none, and goes on with the others', () => {
    const { images, odd } = parse([{ RepoTags: ['broken:1'], Layers: 'none' }, 7, entry, { Config: '' }]);
    expect(images.map(({ config }) => config)).toEqual(['abc.json']);
    expect(odd.map(({ name, digest, error }) => [name, digest, (error as AppError).code])).toEqual([
      ['broken:1', null, 'bundle_corrupt'],
      [null, null, 'bundle_corrupt'],
      [null, null, 'bundle_corrupt'],
    ]);
  });

  it('cuts a name off that somebody made to fill a list', () => {
    expect(parse([{ RepoTags: ['x'.repeat(100_000)] }]).odd[0]?.name).toHaveLength(512);
  });

  it('of another tool is told by what is in it', () => {
    expect(() => parse({ name: 'app', short_name: 'a', icons: [] })).toThrow(
      refusal('bundle_format_unknown', 'another tool than docker save: name, short_name, icons'),
    );
    expect(() => parse({ config: 'abc.json' })).toThrow(refusal('bundle_corrupt', 'not the list of images'));
    expect(() => parseDockerArchive(Buffer.from('[{'))).toThrow(refusal('bundle_corrupt', 'not the list of images'));
  });

  it('with more layers than fit into memory is too large', () => {
    const large = { ...entry, Layers: Array(10_000).fill('a') };
    expect(parse(Array(10).fill(large)).images).toHaveLength(10);
    expect(() => parse([...Array(10).fill(large), entry])).toThrow(refusal('bundle_too_large', '100000 layers'));
  });

  it('is read or refused with an error of ours, whatever it holds', () => {
    const odd = fc.oneof(
      fc.json(),
      fc.json().map((text) => `[${text}]`),
      fc.string(),
    );
    fc.assert(
      fc.property(odd, (text) => {
        try {
          const { images, odd: others } = parseDockerArchive(Buffer.from(text));
          expect(images.every(({ config }) => config.length > 0)).toBe(true);
          expect(others.every(({ error }) => error instanceof AppError)).toBe(true);
        } catch (error) {
          expect(error).toBeInstanceOf(AppError);
        }
      }),
    );
  });
});
