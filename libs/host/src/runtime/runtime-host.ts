import type { Readable } from 'node:stream';

/** The container runtimes that Airdock configures. */
export const runtimeNames = ['docker', 'containerd'] as const;
/** One of the container runtimes. */
export type RuntimeName = (typeof runtimeNames)[number];

/** A runtime fetches the layers of one image beside each other by itself; more at once only share the way. */
export const pullsAtOnce = 3;

/** The container runtime of a host, spoken to through SSH. */
export interface RuntimeHost {
  readonly name: RuntimeName;
  /** Of the daemon; undefined where it gives no answer. */
  version(): Promise<string | undefined>;
  /**
   * Digests of the image configurations, by full reference, of everything in the runtime's cache, also by digest; of an
   * index that of `platform`.
   */
  imageIds(platform: string): Promise<Map<string, string>>;
  /**
   * Feeds a docker-archive to the runtime: nothing is written on the host but what the runtime keeps. Names are taken
   * as they are. Throws `host_disk_full`.
   */
  load(archive: Readable): Promise<void>;
  /**
   * Pulls, and returns the digest that the registry served. Throws `host_pull_failed` with the runtime's own words,
   * `host_disk_full`.
   */
  pull(reference: string): Promise<string>;
  /** Gives an image that is there one more name, or an image of another its name. */
  tag(reference: string, name: string): Promise<void>;
  /**
   * Takes a name off an image, and the image when it was the last. False when a container uses it. One that is not
   * there is no error.
   */
  remove(reference: string): Promise<boolean>;
}
