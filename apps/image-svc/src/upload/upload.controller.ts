import type { IncomingMessage } from 'node:http';
import { Readable } from 'node:stream';
import { AppError, type ErrorCode, toProblem } from '@airdock/core/errors';
import { Controller, Delete, Head, type OnModuleInit, Options, Param, Patch, Post, Req, Res } from '@nestjs/common';
import { HttpAdapterHost } from '@nestjs/core';
import { ApiHeader, ApiOperation, ApiResponse, ApiTags } from '@nestjs/swagger';
import { UploadService } from './upload.service.js';

interface TusRequest {
  raw: IncomingMessage;
  id: string;
}

interface TusReply {
  status(code: number): TusReply;
  headers(values: Record<string, string>): TusReply;
  type(value: string): TusReply;
  send(body?: unknown): unknown;
}

const codeByStatus: Record<number, ErrorCode> = {
  404: 'resource_not_found',
  410: 'resource_not_found',
  409: 'resource_changed',
  412: 'request_malformed',
  413: 'payload_too_large',
  415: 'media_type_unsupported',
};

/** Uploads by the tus protocol 1.0.0: any tus client works, e.g. tus-js-client or tusc. The last part of `Location` is the upload's id. */
@ApiTags('uploads')
@Controller({ path: 'uploads', version: '1' })
export class UploadController implements OnModuleInit {
  constructor(
    private readonly uploads: UploadService,
    private readonly adapterHost: HttpAdapterHost,
  ) {}

  /** The bytes of an upload are streamed to its file, not parsed. */
  onModuleInit(): void {
    const fastify = this.adapterHost.httpAdapter?.getInstance();
    fastify?.addContentTypeParser('application/offset+octet-stream', (_request: unknown, _payload: unknown, done: (error: null) => void) => done(null));
  }

  @Post()
  @ApiOperation({ operationId: 'createUpload', summary: 'Start a resumable upload (tus)' })
  @ApiHeader({ name: 'Tus-Resumable', schema: { type: 'string', default: '1.0.0' } })
  @ApiHeader({ name: 'Upload-Length', schema: { type: 'integer' } })
  @ApiResponse({ status: 201, description: 'Location names the upload' })
  create(@Req() request: TusRequest, @Res() reply: TusReply) {
    return this.answer(request, reply);
  }

  @Head(':id')
  @ApiOperation({ operationId: 'headUpload', summary: 'How many bytes have arrived (tus)' })
  @ApiResponse({ status: 200, description: 'Upload-Offset' })
  head(@Req() request: TusRequest, @Res() reply: TusReply, @Param('id') _id: string) {
    return this.answer(request, reply);
  }

  @Patch(':id')
  @ApiOperation({ operationId: 'patchUpload', summary: 'Send bytes from an offset on (tus)' })
  @ApiHeader({ name: 'Upload-Offset', schema: { type: 'integer' } })
  @ApiResponse({ status: 204, description: 'Upload-Offset' })
  patch(@Req() request: TusRequest, @Res() reply: TusReply, @Param('id') _id: string) {
    return this.answer(request, reply);
  }

  @Delete(':id')
  @ApiOperation({ operationId: 'deleteUpload', summary: 'Give an upload up (tus)' })
  @ApiResponse({ status: 204, description: 'Gone' })
  remove(@Req() request: TusRequest, @Res() reply: TusReply, @Param('id') _id: string) {
    return this.answer(request, reply);
  }

  @Options()
  @ApiOperation({ operationId: 'describeUploads', summary: 'What this tus server can do' })
  @ApiResponse({ status: 204, description: 'Tus-Version, Tus-Extension' })
  options(@Req() request: TusRequest, @Res() reply: TusReply) {
    return this.answer(request, reply);
  }

  private async answer({ raw, id }: TusRequest, reply: TusReply): Promise<void> {
    const hasBody = raw.method === 'PATCH' || raw.method === 'POST';
    const request = new Request(`http://localhost${raw.url}`, {
      method: raw.method ?? 'GET',
      headers: Object.entries(raw.headers).map(([name, value]) => [name, String(value)] as [string, string]),
      ...(hasBody ? { body: Readable.toWeb(raw) as never, duplex: 'half' } : {}),
    });
    const response = await this.uploads.handle(request);
    // tus answers every origin; a browser on another site has no business here.
    const headers = [...response.headers].filter(([name]) => !name.startsWith('access-control-'));
    reply.status(response.status).headers(Object.fromEntries(headers));
    if (response.status < 400) return void reply.send(await response.text());
    const problem = toProblem(
      new AppError(codeByStatus[response.status] ?? (response.status < 500 ? 'request_malformed' : 'internal_error'), {
        detail: (await response.text()).trim().slice(0, 300),
      }),
    );
    reply.type('application/problem+json').send(JSON.stringify({ ...problem, status: response.status, requestId: id }));
  }
}
