import { createHost, createSshCredential } from '@airdock/clients/generated/sdk.gen';
import type { Client } from '@airdock/clients/service-clients';
import { type SshServer, startSshServer } from '@airdock/testing/ssh-server';

/** What a host of the lab answers, without being one. */
const simulated: Record<string, string> = {
  swapKiB: `time=now\nos=debian\nosVersion=12\nmachine=x86_64\npackageManager=apt-get\ncpus=4\nmemoryKiB=16000000\nswapKiB=0\ndiskFreeKiB=90000000\nrootKiB=90000000
rootFreeKiB=80000000\nsystemd=yes\ncgroup=2\ncodename=bookworm\ndockerd=yes\ndocker=20.10.24\nregistryStatus=200\n`,
  VERSION_CODENAME: 'os=debian\ncodename=bookworm\nosVersion=12\ndockerd=yes\ndocker=20.10.24\n',
};

/** What such a host says to a command. */
export function simulatedAnswer(command: string, input: string): string {
  if (command.includes('docker version')) return 'docker=20.10.24\n';
  if (command.includes('sport = :')) return 'address=127.0.0.1\n';
  // It has none of the files that are read.
  const [, paths] = /echo unusable[^]* sh '?\d+'? (.*)$/.exec(command) ?? [];
  if (paths) return 'settled not absent\n'.repeat(paths.split(' ').length);
  const said = Object.entries(simulated).find(([word]) => input.includes(word))?.[1] ?? '';
  return said.replace(/^time=.*/, `time=${Date.now() / 1000}`);
}

/**
 * Hosts that are none: an SSH server in this process, which answers at once. `answer` is asked before what every host
 * says.
 */
export const startSimulatedHosts = (
  answer: (command: string) => string | undefined = () => undefined,
): Promise<SshServer> =>
  startSshServer({
    user: 'root',
    password: 'simulated',
    takesForwards: true,
    answer: (command, input) => answer(command) ?? simulatedAnswer(command, input),
  });

/** Registers `count` hosts that are this server. Returns their ids. */
export async function registerSimulatedHosts(
  client: Client,
  { port, hostKey }: SshServer,
  count: number,
): Promise<string[]> {
  const secrets = { name: 'simulated', username: 'root', password: 'simulated' };
  const { data: credential } = await createSshCredential({ client, body: secrets, throwOnError: true });
  const ids: string[] = [];
  for (let index = 0; index < count; index++) {
    const body = { name: `simulated-${index}`, address: '127.0.0.1', port, credentialId: credential.id, hostKey };
    ids.push((await createHost({ client, body, throwOnError: true })).data.id);
  }
  return ids;
}
