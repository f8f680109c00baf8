/**
 * The sessions of a connection, of which an sshd may allow few (MaxSessions): when one is refused while others run, no
 * more than these run at a time from then on, and who comes waits for one to end.
 */
export class SessionSlots {
  private open = 0;
  private readonly waiting = new Set<() => void>();
  /** As far as it was found out. */
  limit = Number.POSITIVE_INFINITY;
  /** One was let in. */
  hasOpened = false;

  /** Resolves when one more may be opened; it is `give`n back. Rejects with the signal's reason. */
  async take(signal: AbortSignal | undefined): Promise<void> {
    while (this.open >= this.limit) {
      let abort = () => undefined as unknown;
      await new Promise<void>((resolve, reject) => {
        abort = () => reject(signal?.reason);
        this.waiting.add(resolve);
        signal?.addEventListener('abort', abort, { once: true });
      }).finally(() => signal?.removeEventListener('abort', abort));
      signal?.throwIfAborted();
    }
    this.open += 1;
  }

  give(): void {
    this.open -= 1;
    this.wake();
  }

  private wake(): void {
    for (const one of this.waiting) one();
    this.waiting.clear();
  }

  /** Nobody waits any more: the connection has ended, which whoever comes now is told. */
  end(): void {
    this.limit = Number.POSITIVE_INFINITY;
    this.wake();
  }

  /** One that was taken was refused by the host. Answers how many others there are. */
  refuse(): number {
    const others = this.open - 1;
    this.limit = Math.max(1, Math.min(this.limit, others));
    this.give();
    return others;
  }
}
