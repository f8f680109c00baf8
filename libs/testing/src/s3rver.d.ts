/** As far as it is used here; the package has no types. */
declare module 's3rver' {
  interface Options {
    address: string;
    port: number;
    silent: boolean;
    directory: string;
    configureBuckets: { name: string; configs: string[] }[];
  }
  interface Context {
    method: string;
    path: string;
    req: import('node:http').IncomingMessage;
    status: number;
    type: string;
    body: string;
    get(header: string): string;
  }
  export default class S3rver {
    constructor(options: Options);
    /** Of koa, the first of them first. */
    readonly middleware: ((context: Context, next: () => Promise<void>) => Promise<void>)[];
    run(): Promise<unknown>;
    close(): Promise<void>;
  }
}
