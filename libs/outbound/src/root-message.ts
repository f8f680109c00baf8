/** Connection errors hide their reason below, sometimes in several attempts. */
export function rootMessage(error: unknown): string {
  let current = error;
  while (current instanceof Error && (current.cause instanceof Error || current instanceof AggregateError)) {
    current = current instanceof AggregateError ? current.errors[0] : current.cause;
  }
  return current instanceof Error ? current.message || current.name : 'connection failed';
}
