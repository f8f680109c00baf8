import { Readable } from 'node:stream';
import { AppError, type ErrorCode } from '@airdock/core/errors';
import { StreamedBody } from '@airdock/platform/http/access';
import { RawOperation } from '@airdock/platform/http/operation';
import { sendProblem } from '@airdock/platform/http/problem.filter';
import {
  Controller,
  Delete,
  Head,
  Logger,
  type OnModuleInit,
  Options,
  Param,
  Patch,
  Post,
  Req,
  Res,
} from '@nestjs/common';
import { HttpAdapterHost } from '@nestjs/core';
import { ApiHeader, ApiResponse, ApiTags } from '@nestjs/swagger';
import { UploadService } from './upload.service.js';

type TusRequest = Parameters<typeof sendProblem>[0];
type TusReply = Parameters<typeof sendProblem>[1];

const codeByStatus: Record<number, ErrorCode> = {
  404: 'resource_not_found',
  410: 'resource_not_found',
  409: 'resource_changed',
  412: 'request_malformed',
  413: 'payload_too_large',
  415: 'media_type_unsupported',
};

/**
 * Uploads by the tus protocol 1.0.0: any tus client works, e.g. tus-js-client or tusc. The last part of `Location` is
 * the upload's id.
 */
@ApiTags('uploads')
@Controller({ path: 'uploads', version: '1' })
export class UploadController implements OnModuleInit {
  private readonly logger = new Logger('uploads');

  constructor(
    private readonly uploads: UploadService,
    private readonly adapterHost: HttpAdapterHost,
  ) {}

  /** The bytes of an upload are streamed to its file, not parsed. */
  onModuleInit(): void {
    const fastify = this.adapterHost.httpAdapter?.getInstance();
    fastify?.addContentTypeParser(
      'application/offset+octet-stream',
      (_request: unknown, _payload: unknown, done: (error: null) => void) => done(null),
    );
  }

  @Post()
  @StreamedBody()
  @RawOperation({ id: 'createUpload', summary: 'Start a resumable upload (tus)' })
  @ApiHeader({ name: 'Tus-Resumable', schema: { type: 'string', default: '1.0.0' } })
  @ApiHeader({ name: 'Upload-Length', schema: { type: 'integer' } })
  @ApiResponse({ status: 201, description: 'Location names the upload' })
  create(@Req() request: TusRequest, @Res() reply: TusReply) {
    return this.answer(request, reply);
  }

  @Head(':id')
  @RawOperation({ id: 'headUpload', summary: 'How many bytes have arrived (tus)' })
  @ApiResponse({ status: 200, description: 'Upload-Offset' })
  head(@Req() request: TusRequest, @Res() reply: TusReply, @Param('id') _id: string) {
    return this.answer(request, reply);
  }

  @Patch(':id')
  @StreamedBody()
  @RawOperation({ id: 'patchUpload', summary: 'Send bytes from an offset on (tus)' })
  @ApiHeader({ name: 'Upload-Offset', schema: { type: 'integer' } })
  @ApiResponse({ status: 204, description: 'Upload-Offset' })
  patch(@Req() request: TusRequest, @Res() reply: TusReply, @Param('id') _id: string) {
    return this.answer(request, reply);
  }

  @Delete(':id')
  @RawOperation({ id: 'deleteUpload', summary: 'Give an upload up (tus)' })
  @ApiResponse({ status: 204, description: 'Gone' })
  remove(@Req() request: TusRequest, @Res() reply: TusReply, @Param('id') _id: string) {
    return this.answer(request, reply);
  }

  @Options()
  @RawOperation({ id: 'describeUploads', summary: 'What this tus server can do' })
  @ApiResponse({ status: 204, description: 'Tus-Version, Tus-Extension' })
  options(@Req() request: TusRequest, @Res() reply: TusReply) {
    return this.answer(request, reply);
  }

  private async answer(request: TusRequest, reply: TusReply): Promise<void> {
    const { raw } = request;
    if (raw.headers['upload-concat'] !== undefined)
      return sendProblem(
        request,
        reply,
        new AppError('request_malformed', {
          detail: 'uploads are not put together from others: send one upload, in order',
        }),
      );
    const hasBody = raw.method === 'PATCH' || raw.method === 'POST';
    const sent = new Request(`http://localhost${raw.url}`, {
      method: raw.method ?? 'GET',
      headers: Object.entries(raw.headers).map(([name, value]) => [name, String(value)] as [string, string]),
      ...(hasBody ? { body: Readable.toWeb(raw) as never, duplex: 'half' } : {}),
    });
    const response = await this.uploads.handle(sent);
    // A client that went away, or was too slow, hears nothing more; what has come of its upload stays.
    if (reply.sent || raw.socket.destroyed) return;
    if (response.status >= 400) {
      // Whatever tus does not do is the client's to leave; only what it does not know itself is ours.
      const code = codeByStatus[response.status] ?? (response.status === 500 ? 'internal_error' : 'request_malformed');
      const detail = (await response.text()).trim().slice(0, 300);
      if (code === 'internal_error') this.logger.error({ requestId: request.id }, `an upload failed: ${detail}`);
      const status = response.status > 500 ? 400 : response.status;
      return sendProblem(request, reply, new AppError(code, code === 'internal_error' ? {} : { detail }), status);
    }
    // tus answers every origin; a browser on another site has no business here.
    const headers = [...response.headers].filter(([name]) => !name.startsWith('access-control-'));
    reply.status(response.status).headers(Object.fromEntries(headers));
    reply.send(await response.text());
  }
}
