import { rootMessage } from '@airdock/outbound/root-message';
import { RegistryHttp, type RegistryResponse } from './registry-http.js';

const maxAnswerBytes = 64 * 1024;

/**
 * Why what answers at an address is no registry, or nothing does; undefined for a registry, also for one that wants a
 * login. Not every server that says 200 to everything is one: a registry says so in a header, or answers for an image
 * that nobody has in the words of the distribution API. Never throws. Source:
 * https://github.com/opencontainers/distribution-spec/blob/main/spec.md#determining-support
 */
export async function whyNoRegistry(address: string, timeoutMs: number): Promise<string | undefined> {
  const http = new RegistryHttp(address, { timeoutMs });
  const signal = AbortSignal.timeout(timeoutMs);
  const get = (path: string) => http.send({ method: 'GET', path, signal }, () => true);
  try {
    const root = await get('/v2/');
    if (root.status !== 200 && root.status !== 401) {
      await root.discard();
      return `GET /v2/ is answered with ${root.status}`;
    }
    if (root.header('docker-distribution-api-version')?.startsWith('registry/2')) {
      await root.discard();
      return undefined;
    }
    if (await speaksOfErrors(root)) return undefined;
    return (await speaksOfErrors(await get('/v2/airdock.never-given/manifests/none')))
      ? undefined
      : 'what answers is no registry';
  } catch (error) {
    return signal.aborted ? `no answer within ${timeoutMs} ms` : rootMessage(error);
  } finally {
    await http.close();
  }
}

async function speaksOfErrors(response: RegistryResponse): Promise<boolean> {
  try {
    const { errors } = JSON.parse((await response.read(maxAnswerBytes)).toString('utf8')) as { errors?: unknown };
    return Array.isArray(errors) && errors.length > 0;
  } catch {
    // Too large, or something else.
    return false;
  }
}
