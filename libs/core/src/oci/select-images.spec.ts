import { describe, expect, it } from 'vitest';
import { selectImages } from './select-images.js';

const images = ['k8s.gcr.io/pause:3.2', 'docker.io/calico/node:v3.18.1', 'docker.io/calico/cni:v3.18.1'].map(
  (name) => ({ names: [name] }),
);
const select = (...patterns: string[]) => selectImages(images, patterns).flatMap(({ names }) => names);

describe('selectImages', () => {
  it('takes names in full and patterns, in the order of the images', () => {
    expect(select('docker.io/calico/*', 'k8s.gcr.io/pause:3.2')).toHaveLength(3);
    expect(select('*/calico/???:v3.*')).toEqual(['docker.io/calico/cni:v3.18.1']);
    expect(selectImages(images, undefined)).toHaveLength(3);
  });

  it('reads a name as Docker does, and compares a digest beside its tag', () => {
    expect(select('calico/node:v3.18.1', 'index.docker.io/calico/cni:v3.18.1')).toHaveLength(2);
    const [digest, other] = [`sha256:${'1'.repeat(64)}`, `sha256:${'2'.repeat(64)}`];
    const pinned = [{ names: ['docker.io/library/nginx:1'], digest }];
    expect(selectImages(pinned, [`nginx:1@${digest}`])).toEqual(pinned);
    expect(() => selectImages(pinned, [`nginx:1@${other}`])).toThrow('no such image');
  });

  it('refuses what names nothing, a dot being a dot', () => {
    expect(() => select('k8sxgcr.io/*', 'docker.io/*')).toThrow(
      expect.objectContaining({
        code: 'image_not_found',
        details: expect.objectContaining({ missing: ['k8sxgcr.io/*'] }),
      }),
    );
  });

  it('takes no longer for patterns that are made to', () => {
    expect(() => selectImages([{ names: ['a'.repeat(500)] }], [`${'*a'.repeat(200)}b`])).toThrow('no such image');
  });
});
