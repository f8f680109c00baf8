import { Processor } from '@nestjs/bullmq';
import type { Provider, Type } from '@nestjs/common';
import { type JobLimits, JobProcessor, type JobRun } from './job-processor.js';
import { JobsService } from './jobs.service.js';

/** How the jobs of a type are run. */
export interface JobOptions extends JobLimits {
  /** How many jobs of the type one process runs at the same time. Default 2. */
  concurrency?: number;
}

interface JobMethod extends JobOptions {
  type: string;
  name: string;
}

const metadataKey = 'airdock:runs-job';
const methodsOf = (target: object): readonly JobMethod[] => Reflect.getMetadata(metadataKey, target) ?? [];

/**
 * The method runs the jobs of this type, in processes with the role `worker`. It begins to with `startProcessors`, when
 * the process answers requests: jobs call services, perhaps this one.
 *
 * @example
 * ```ts
 * @RunsJob(pushJobType, { concurrency: 4 })
 * async run({ resourceId, signal, progress }: JobContext): Promise<Record<string, unknown>> {
 * ```
 */
export const RunsJob =
  (type: string, options: JobOptions = {}) =>
  <Name extends string>(target: Record<Name, JobRun>, name: Name): void =>
    Reflect.defineMetadata(metadataKey, [...methodsOf(target), { ...options, type, name }], target);

/**
 * A worker for each method of these classes that runs jobs. Throws when one of the types has no method, or more than
 * one, and when a method runs jobs of another type.
 */
export function jobProcessors(providers: readonly Provider[], jobTypes: readonly string[]): Provider[] {
  const found = providers
    .filter((provider): provider is Type => typeof provider === 'function')
    .flatMap((service) => methodsOf(service.prototype as object).map((method) => ({ service, method })));
  for (const type of new Set([...jobTypes, ...found.map(({ method }) => method.type)])) {
    const methods = found.filter(({ method }) => method.type === type);
    const names = methods.map(({ service, method }) => `${service.name}.${method.name}`).join(', ') || 'none';
    if (!jobTypes.includes(type)) throw new Error(`${names} runs jobs of a type that is not registered: ${type}`);
    if (methods.length !== 1) throw new Error(`one method runs the jobs of type ${type}; there is ${names}`);
  }
  return found.map(({ service, method }) => jobProcessor(service, method));
}

function jobProcessor(service: Type, { type, name, concurrency = 2, ...limits }: JobMethod): Provider {
  // A wake-up is short-lived, the job's own row carries everything that has to last. Whoever waits for a wake-up gets
  // it at once: to ask every five seconds, as is the default, only keeps an idle DU busy. What a worker that is frozen
  // was handed is found by the look after locks: it must not wait for long.
  @Processor(type, {
    autorun: false,
    concurrency,
    drainDelay: 30,
    lockDuration: 10_000,
    stalledInterval: 10_000,
    maxStalledCount: 100,
    runRetryDelay: 1_000,
  })
  class TypeProcessor extends JobProcessor {}
  return {
    provide: `processor:${type}`,
    inject: [JobsService, service],
    useFactory: (jobs: JobsService, instance: Record<string, JobRun>) =>
      new TypeProcessor(jobs, type, (context) => (instance[name] as JobRun).call(instance, context), limits),
  };
}
