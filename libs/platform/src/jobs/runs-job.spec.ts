import { describe, expect, it } from 'vitest';
import { defineService } from '../service.js';
import type { JobContext } from './job-processor.js';
import type { JobsService } from './jobs.service.js';
import { jobProcessors, RunsJob } from './runs-job.js';

class Things {
  readonly made = 'a thing';

  @RunsJob('image.make', { concurrency: 3, maxFailures: 1 })
  async make({ resourceId }: JobContext) {
    return { made: this.made, of: resourceId };
  }

  @RunsJob('image.mend')
  @RunsJob('image.break')
  async change() {
    return {};
  }
}

class OtherThings {
  @RunsJob('image.make')
  async make() {
    return {};
  }
}

describe('methods that run jobs', () => {
  it('give a class as many processors as it has types of jobs, each for its own type', () => {
    const processors = jobProcessors([Things], ['image.make', 'image.break', 'image.mend']);
    expect(processors.map((provider) => 'provide' in provider && provider.provide)).toEqual(
      expect.arrayContaining(['processor:image.make', 'processor:image.break', 'processor:image.mend']),
    );
    expect(processors).toHaveLength(3);
  });

  it('are called on the instance that the module made, with the options that they name', async () => {
    const [provider] = jobProcessors([Things], ['image.make', 'image.break', 'image.mend']).filter(
      (one) => 'provide' in one && one.provide === 'processor:image.make',
    );
    const registered: unknown[] = [];
    const { useFactory } = provider as { useFactory(jobs: JobsService, instance: Things): object };
    const processor = useFactory({ processors: registered } as unknown as JobsService, new Things());
    expect(registered).toEqual([processor]);
    expect(processor).toMatchObject({ limits: { maxFailures: 1, stallMs: 7_200_000 } });
    expect(Reflect.getMetadata('bullmq:worker_metadata', processor.constructor)).toMatchObject({
      autorun: false,
      concurrency: 3,
    });
    const { run } = processor as { run(context: Partial<JobContext>): Promise<unknown> };
    expect(await run({ resourceId: 'clay' })).toEqual({ made: 'a thing', of: 'clay' });
  });

  it.each([
    ['without a method', [], ['image.make'], /type image\.make; there is none/],
    [
      'with two methods',
      [Things, OtherThings],
      ['image.make'],
      /image\.make; there is Things\.make, OtherThings\.make/,
    ],
    ['that the service does not name', [OtherThings], [], /OtherThings\.make runs jobs .* not registered: image\.make/],
  ])('keep a service with a job type %s from starting', (_what, providers, jobTypes, message) => {
    const module = class ThingModule {};
    expect(() =>
      defineService(['api'], {
        module,
        name: 'image',
        entities: [],
        migrations: [],
        controllers: [],
        providers,
        jobTypes,
      }),
    ).toThrow(message);
  });
});
