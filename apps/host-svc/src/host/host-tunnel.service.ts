/** What a host's tunnel has to do with the host being forgotten. Tunnels stand above hosts: they are this service. */
export abstract class HostTunnelService {
  /** Forgets the tunnel of a host; whoever keeps it closes it. */
  abstract remove(hostId: string): Promise<void>;
}
