import { describe, expect, it } from 'vitest';
import { AppError } from '../errors.js';
import { type PmkClusterRequest, pmkCreateBody, pmkRegistryFields } from './create-body.js';

const request: PmkClusterRequest = {
  name: 'site-a',
  kubeRoleVersion: '1.20.11-pmk.2038',
  nodePoolUuid: 'pool',
  containerRuntime: 'containerd',
  allowWorkloadsOnMaster: false,
  privileged: true,
};

const failure = (change: Partial<PmkClusterRequest>): AppError => {
  try {
    pmkCreateBody({ ...request, ...change });
  } catch (error) {
    if (error instanceof AppError) return error;
    throw error;
  }
  throw new Error('was accepted');
};

describe('pmkCreateBody', () => {
  it('fills in the network of PMK, writes booleans as 0 and 1, and leaves out what is empty', () => {
    const registries = { dockerPrivateRegistry: '', k8sPrivateRegistry: undefined };
    expect(
      pmkCreateBody({ ...request, registries, dockerCentosPackageRepoUrl: '', masterVipIpv4: '', masterVipIface: '' }),
    ).toEqual({
      name: 'site-a',
      kubeRoleVersion: '1.20.11-pmk.2038',
      nodePoolUuid: 'pool',
      containersCidr: '10.20.0.0/16',
      servicesCidr: '10.21.0.0/16',
      mtuSize: 1440,
      networkPlugin: 'calico',
      containerRuntime: 'containerd',
      allowWorkloadsOnMaster: 0,
      privileged: 1,
    });
  });

  it('takes over registries, package repositories, the virtual IP and another network', () => {
    const registries = Object.fromEntries(pmkRegistryFields.map((field) => [field, 'localhost:5100']));
    const rest = {
      masterVipIpv4: '10.0.0.9',
      masterVipIface: 'eth0',
      dockerCentosPackageRepoUrl: 'http://127.0.0.1:5102/docker-el',
      dockerUbuntuPackageRepoUrl: 'http://127.0.0.1:5102/docker-deb',
    };
    const network = {
      containersCidr: '10.30.0.0/16',
      servicesCidr: '10.31.0.0/16',
      mtuSize: 9000,
      networkPlugin: 'flannel',
    };
    expect(pmkCreateBody({ ...request, registries, network, ...rest })).toMatchObject({
      ...registries,
      ...network,
      ...rest,
    });
  });

  it.each(['localhost', 'localhost:5100', 'registry.site.example:443', '10.0.0.1:5000', '[::1]:5100'])(
    'takes the registry %s',
    (value) => {
      expect(pmkCreateBody({ ...request, registries: { quayPrivateRegistry: value } }).quayPrivateRegistry).toBe(value);
    },
  );

  it.each([
    'http://localhost:5100',
    'localhost:5100/',
    'localhost:5100/quay.io',
    'user@localhost:5100',
    'local host',
    'localhost:port',
    ' ',
  ])('refuses the registry %j by the name of its field', (value) => {
    const error = failure({ registries: { dockerPrivateRegistry: 'localhost:5100', gcrPrivateRegistry: value } });
    expect(error).toMatchObject({ code: 'pmk_field_invalid', status: 422, details: { field: 'gcrPrivateRegistry' } });
  });

  it('refuses half of a virtual IP', () => {
    expect(failure({ masterVipIpv4: '10.0.0.9' }).details.field).toBe('masterVipIface');
    expect(failure({ masterVipIface: 'eth0' }).details.field).toBe('masterVipIpv4');
  });
});
