import type { PackageFamily, ServedRepository } from '@airdock/core/host/package-list';
import type { NameKind } from '@airdock/core/oci/reference';
import type { RuntimeName } from '../runtime/runtime-host.js';
import type { SystemFacts } from '../system/system-facts.js';
import { HostWork, type HostWorkOptions } from '../work/host-work.js';

/** The steps of configuring and unconfiguring a host. */
export const configurationStepNames = [
  'check',
  'tunnel',
  'repositories',
  'runtime',
  'images',
  'verify',
  'packages',
] as const;
/** One of the steps of configuring and unconfiguring a host. */
export type ConfigurationStepName = (typeof configurationStepNames)[number];

/** What a site wants of all its hosts: the part of its configuration that the steps need. */
export interface SiteSettings {
  /** The port of the registry on 127.0.0.1 of each host. */
  registry: { port: number };
  naming: readonly NameKind[];
  mirroredUpstreams: readonly string[];
  packages: {
    repositories: readonly ServedRepository[];
    /** Packages that each host is to have. */
    install: Record<PackageFamily, readonly string[]>;
    /** Packages that make Docker. */
    docker: Record<PackageFamily, readonly string[]>;
  };
}

/** What is wanted of one host. */
export interface HostWishes {
  skipYumRepoInstall: boolean;
  skipDockerInstall: boolean;
  /** Default: Docker where its daemon is installed, else containerd where it answers, else Docker. */
  containerRuntime?: RuntimeName | undefined;
}

/** What a `ConfigurationWork` is made of. */
export interface ConfigurationWorkOptions extends HostWorkOptions<ConfigurationStepName, 'skipped'> {
  site: SiteSettings;
  facts: SystemFacts;
  wishes: HostWishes;
  hasTunnel: boolean;
}

/** The work of configuring or unconfiguring a host. */
export class ConfigurationWork extends HostWork<ConfigurationStepName, 'skipped'> {
  readonly site: SiteSettings;
  /** What the host was before the work. */
  readonly facts: SystemFacts;
  readonly wishes: HostWishes;
  /** 127.0.0.1 of the host leads to the registry and the packages of the DU. */
  readonly hasTunnel: boolean;

  constructor({ site, facts, wishes, hasTunnel, ...options }: ConfigurationWorkOptions) {
    super(options);
    this.site = site;
    this.facts = facts;
    this.wishes = wishes;
    this.hasTunnel = hasTunnel;
  }
}
