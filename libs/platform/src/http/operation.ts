import { applyDecorators, HttpCode, SerializeOptions } from '@nestjs/common';
import { ApiOperation, ApiResponse } from '@nestjs/swagger';
import { z } from 'zod';
import { routeAccess } from './access.js';

/** A problem document (RFC 9457), as every error is answered. */
export const ProblemDocument = z
  .object({
    type: z.string(),
    title: z.string(),
    status: z.number().int(),
    code: z.string().describe('Stable; see docs/errors.md'),
    detail: z.string().optional(),
    nextStep: z.string().describe('What the operator can do'),
    instance: z.string().optional(),
    requestId: z.string().optional(),
  })
  .catchall(z.unknown())
  .meta({ id: 'Problem' });

interface OperationOptions {
  /** operationId, the method's name in generated clients. */
  id: string;
  summary: string;
  /** The response's schema: it decides what leaves, so that a column that is not in it cannot leak. */
  returns?: z.ZodType;
  /** @default 200, or 204 without `returns` */
  status?: number;
}

/**
 * One route, as the OpenAPI document and the response see it.
 *
 * @example
 * ```ts
 * @Get(':id')
 * @Operation({ id: 'getPush', summary: 'One push', returns: pushSchema })
 * get(@Param('id') id: string) {
 *   return this.pushes.get(id);
 * }
 * ```
 */
export function Operation({ id, summary, returns, status = returns ? 200 : 204 }: OperationOptions) {
  return applyDecorators(
    ApiOperation({ operationId: id, summary }),
    routeAccess({ operationId: id }),
    HttpCode(status),
    ApiResponse({ status, description: summary, ...(returns ? { standardSchema: returns } : {}) }),
    ProblemResponses(),
    ...(returns ? [SerializeOptions({ schema: returns })] : []),
  );
}

/** One route whose answer is no JSON of a schema, such as a stream. */
export function RawOperation({ id, summary }: Pick<OperationOptions, 'id' | 'summary'>) {
  return applyDecorators(
    ApiOperation({ operationId: id, summary }),
    routeAccess({ operationId: id }),
    ProblemResponses(),
  );
}

function ProblemResponses() {
  return applyDecorators(
    ...(['4XX', '5XX'] as const).map((family) =>
      ApiResponse({ status: family, description: 'A problem document (RFC 9457)', standardSchema: ProblemDocument }),
    ),
  );
}
