import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Webhook } from 'standardwebhooks';

export interface Received {
  id: string;
  /** The signature and the time were those of the endpoint's secret. */
  verified: boolean;
  event: { type: string; data: { resource: string; state: string } };
}

/** Takes webhooks on loopback. Give it the secret when it is known; it answers `status()`. */
export async function startWebhookReceiver(status: () => number = () => 204) {
  const received: Received[] = [];
  let secret = '';
  let isHeld = false;
  const server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => {
      const body = Buffer.concat(chunks).toString();
      let verified = true;
      try {
        new Webhook(secret).verify(body, request.headers as Record<string, string>);
      } catch {
        verified = false;
      }
      received.push({
        id: String(request.headers['webhook-id']),
        verified,
        event: JSON.parse(body) as Received['event'],
      });
      if (!isHeld) response.writeHead(status()).end();
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const stop = async () => {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  };
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/airdock`,
    received,
    setSecret: (value: string) => {
      secret = value;
    },
    /** Leaves what comes from now on without an answer. */
    hold: (value: boolean) => {
      isHeld = value;
    },
    stop,
    [Symbol.asyncDispose]: stop,
  };
}
