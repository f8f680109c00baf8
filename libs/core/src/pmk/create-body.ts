/**
 * The body of qbert's `POST /clusters`. Source: the API document that Platform9 publishes with its Terraform provider,
 * `cluster_details_for_post` in https://github.com/platform9/terraform-provider-pf9/blob/main/openapi-spec/pf9-2.0.yml
 */
import { AppError } from '../errors.js';
import { isRegistry } from '../oci/reference.js';

/** The fields by which qbert points a cluster at a registry. */
export const pmkRegistryFields = [
  'dockerPrivateRegistry',
  'quayPrivateRegistry',
  'gcrPrivateRegistry',
  'k8sPrivateRegistry',
] as const;
/** One of the fields. */
export type PmkRegistryField = (typeof pmkRegistryFields)[number];

/** What PMK calls a container runtime. */
export type PmkContainerRuntime = 'docker' | 'containerd';

/** The network of a cluster, in qbert’s terms. */
export interface PmkNetwork {
  /** Default 10.20.0.0/16. */
  containersCidr?: string | undefined;
  /** Default 10.21.0.0/16. */
  servicesCidr?: string | undefined;
  /** Bytes. Default 1440. */
  mtuSize?: number | undefined;
  /** Default calico. */
  networkPlugin?: string | undefined;
}

/** A new cluster, without its nodes: they are attached once it exists. */
export interface PmkClusterRequest {
  name: string;
  /** One of the versions that PMK supports, such as `1.20.11-pmk.2038`. */
  kubeRoleVersion: string;
  nodePoolUuid: string;
  network?: PmkNetwork | undefined;
  containerRuntime: PmkContainerRuntime;
  allowWorkloadsOnMaster: boolean;
  privileged: boolean;
  /** The address that several masters share. Needs `masterVipIface`. */
  masterVipIpv4?: string | undefined;
  masterVipIface?: string | undefined;
  /** Bare `host[:port]` each. Empty and missing ones are left out: then PMK takes the public registry. */
  registries?: Partial<Record<PmkRegistryField, string>> | undefined;
  /** Where nodes get Docker's packages from. Left out when empty. */
  dockerCentosPackageRepoUrl?: string | undefined;
  dockerUbuntuPackageRepoUrl?: string | undefined;
}

/** What qbert takes: booleans are 0 or 1. */
export interface PmkCreateBody extends Partial<Record<PmkRegistryField, string>> {
  name: string;
  kubeRoleVersion: string;
  nodePoolUuid: string;
  containersCidr: string;
  servicesCidr: string;
  mtuSize: number;
  networkPlugin: string;
  containerRuntime: PmkContainerRuntime;
  allowWorkloadsOnMaster: 0 | 1;
  privileged: 0 | 1;
  masterVipIpv4?: string;
  masterVipIface?: string;
  dockerCentosPackageRepoUrl?: string;
  dockerUbuntuPackageRepoUrl?: string;
}

/**
 * The body that creates a cluster. Throws `pmk_field_invalid` for a registry with a scheme or a path, which PMK takes
 * and its nodes fail with (a `sed` with `/` as its delimiter), and for one half of a virtual IP. All else is left to
 * PMK to judge.
 */
export function pmkCreateBody(request: PmkClusterRequest): PmkCreateBody {
  const {
    name,
    kubeRoleVersion,
    nodePoolUuid,
    network = {},
    containerRuntime,
    masterVipIpv4,
    masterVipIface,
    registries = {},
  } = request;
  for (const field of pmkRegistryFields) {
    const value = registries[field];
    if (value && !isRegistry(value))
      throw invalid(field, `${field} must be host or host:port, without scheme, user and path`);
  }
  if (masterVipIpv4 && !masterVipIface)
    throw invalid('masterVipIface', 'masterVipIpv4 needs masterVipIface, the interface that has the address');
  if (masterVipIface && !masterVipIpv4)
    throw invalid('masterVipIpv4', 'masterVipIface needs masterVipIpv4, the address that the interface gets');
  const { dockerCentosPackageRepoUrl, dockerUbuntuPackageRepoUrl } = request;
  const fields = Object.fromEntries(pmkRegistryFields.map((field) => [field, registries[field]]));
  const optional = { ...fields, masterVipIpv4, masterVipIface, dockerCentosPackageRepoUrl, dockerUbuntuPackageRepoUrl };
  return {
    name,
    kubeRoleVersion,
    nodePoolUuid,
    containersCidr: network.containersCidr ?? '10.20.0.0/16',
    servicesCidr: network.servicesCidr ?? '10.21.0.0/16',
    mtuSize: network.mtuSize ?? 1440,
    networkPlugin: network.networkPlugin ?? 'calico',
    containerRuntime,
    allowWorkloadsOnMaster: request.allowWorkloadsOnMaster ? 1 : 0,
    privileged: request.privileged ? 1 : 0,
    ...Object.fromEntries(Object.entries(optional).filter(([, value]) => value)),
  };
}

const invalid = (field: string, detail: string): AppError => new AppError('pmk_field_invalid', { detail, field });
