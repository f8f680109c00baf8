/**
 * Connections of Airdock's own, which go where their URL says: to loopback, to services of the site, through no proxy.
 * With `NODE_USE_ENV_PROXY=1` Node.js sends whatever uses its global agents by the proxies of the environment, also to
 * 127.0.0.1. So nothing here uses those: every client has an agent of its own. Source:
 * https://nodejs.org/api/http.html#built-in-proxy-support
 */
import { Agent, fetch as fetchBy } from 'undici';

/**
 * As `fetch`, by a dispatcher of its own, perhaps over one Unix socket. Answers may take as long as a long-poll or a
 * stream does.
 */
export function makeDirectFetch({ socketPath }: { socketPath?: string | undefined } = {}): typeof fetch {
  const dispatcher = new Agent({
    ...(socketPath !== undefined && { connect: { socketPath } }),
    headersTimeout: 0,
    bodyTimeout: 0,
  });
  return async (input, init) => {
    const request = new Request(input, init);
    const { method, headers, body, signal, redirect } = request;
    const answer = await fetchBy(request.url, {
      ...{ method, signal, dispatcher, redirect, headers: [...headers] as [string, string][] },
      ...(body ? { body: body as never, duplex: 'half' } : {}),
    });
    return answer as unknown as Response;
  };
}

/** Fetches past the proxies of the environment, over TCP. */
export const directFetch = makeDirectFetch();
