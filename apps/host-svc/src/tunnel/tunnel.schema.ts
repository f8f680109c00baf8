import { ProblemDocument } from '@airdock/platform/http/operation';
import { PageQuery, pageOf } from '@airdock/platform/http/page';
import { z } from 'zod';

export const Tunnel = z
  .object({
    id: z.uuid(),
    hostId: z.uuid(),
    state: z.enum(['connecting', 'up', 'down']),
    since: z.iso.datetime().describe('When it came into this state'),
    hostPort: z.number().int().describe('On 127.0.0.1 of the host'),
    target: z.string().describe('Where it leads on the DU: the read-only registry'),
    packagePort: z
      .number()
      .int()
      .nullable()
      .describe('On 127.0.0.1 of the host, leads to the package repositories; null where the DU has none'),
    hostEnd: z
      .enum(['port', 'socket'])
      .describe(
        'socket: the ports are held by the host itself, which hands connections to the tunnel; port: only while the tunnel is up, by its sshd',
      ),
    reconnects: z.number().int(),
    latencyMs: z
      .number()
      .nullable()
      .describe('Of a question and its answer, measured every ten seconds; null before the first time'),
    bytesSent: z.number().int().describe('To the host, since the connection is up'),
    bytesPerSecond: z.number().int().describe('To the host, over the last ten seconds'),
    error: ProblemDocument.nullable().describe(
      'Why it is down, and tried again by itself; or, while it is up, which bound the host has run into',
    ),
    createdAt: z.iso.datetime(),
  })
  .meta({ id: 'Tunnel' });
export type Tunnel = z.infer<typeof Tunnel>;
export const TunnelPage = pageOf(Tunnel, 'TunnelPage');

export const TunnelListQuery = PageQuery.extend({ hostId: z.uuid().optional() });
export type TunnelListQuery = z.infer<typeof TunnelListQuery>;
