/**
 * What webhook endpoints can be told of. A job of one of these types yields `TYPE.started`, once, and `TYPE.succeeded`,
 * `TYPE.failed` or `TYPE.cancelled` whenever it ends, by nothing but its line here. Plans, and jobs that are parts of
 * another, are not told.
 */
const jobTypes = [
  'registry.apply',
  'registry.upgrade-du',
  'registry.collect-garbage',
  'image.read-bundle',
  'image.push',
  'image.verify',
  'image.rebuild-catalogue',
  'host.check',
  'host.configure',
  'host.operate-node',
  'cluster.create',
  'cluster.check-readiness',
  'cluster.upgrade',
  'backup.create',
  'backup.restore',
  'backup.verify',
  'backup.prune',
  'backup.export',
  'backup.import',
] as const;

const jobMoments = ['started', 'succeeded', 'failed', 'cancelled'] as const;
/** When in the life of a job something is told. */
export type JobMoment = (typeof jobMoments)[number];

/** What is no job's; services emit it through their outbox. */
const otherEvents = ['host.quarantined', 'backup.stale', 'webhook.disabled'] as const;

/** Sent to one endpoint, whatever it wants to hear of, when it is tried out. */
export const pingEvent = 'webhook.ping';

/** All types of events that webhooks can subscribe to. */
export const eventTypes = [
  ...jobTypes.flatMap((type) => jobMoments.map((moment) => `${type}.${moment}` as const)),
  ...otherEvents,
  pingEvent,
] as const;
/** One of the types. */
export type EventType = (typeof eventTypes)[number];

/** The event that tells of a job; undefined for job types that nobody is told of. */
export const jobEvent = (jobType: string, moment: JobMoment): EventType | undefined =>
  eventTypes.find((type) => type === `${jobType}.${moment}`);

/** Parts of names between dots; `*` stands for one or more of them, at the end or before. */
export const eventFilterPattern = /^(\*|[a-z-]{1,40})(\.(\*|[a-z-]{1,40})){0,3}$/;

/** Whether a filter such as `image.push.failed`, `backup.*`, `*.failed` or `*` lets an event through. */
export function matchesEventFilter(filter: string, type: string): boolean {
  if (!eventFilterPattern.test(filter)) return false;
  return new RegExp(`^${filter.replaceAll('.', '\\.').replaceAll('*', '.+')}$`).test(type);
}
