/**
 * What has to reach a system that may be down: exact payloads in PostgreSQL, sent in order per run.
 * Writing is one insert, so work goes on during an outage; sending again is harmless, because the rows are the same.
 */
import type { Pool, PoolClient } from 'pg';
import { ExpError } from '../../schemas/errors.ts';

export interface OutboxItem<Payload> {
  id: string;
  run_id: string;
  payload: Payload;
}

export interface OutboxOptions<Payload> {
  pool: Pool;
  /** Send one payload. Throws an ExpError of `refusedCodes` when it will never be taken; anything else is an outage. */
  deliver(payload: Payload, runId: string): Promise<void>;
  refusedCodes: readonly string[];
  log(line: string): void;
}

export interface DrainOptions {
  signal: AbortSignal;
  feed?: () => Promise<void>;
}

const LOCK = 'exp outbox drain';
const IDLE_MS = 400;
const FEED_MS = 3000;
const BACKOFF_MS = { first: 500, most: 10_000 } as const;

/** Store a payload; a second one under the same `dedup` is dropped, so a retry sends what the first attempt wrote. */
export async function enqueue(pool: Pool, dedup: string, runId: string, payload: object): Promise<void> {
  await pool.query('insert into outbox (dedup, run_id, payload) values ($1, $2, $3) on conflict (dedup) do nothing', [
    dedup,
    runId,
    JSON.stringify(payload),
  ]);
}

export class Outbox<Payload extends object> {
  readonly #options: OutboxOptions<Payload>;

  constructor(options: OutboxOptions<Payload>) {
    this.#options = options;
  }

  enqueue(dedup: string, runId: string, payload: Payload): Promise<void> {
    return enqueue(this.#options.pool, dedup, runId, payload);
  }

  /** Wait until everything of a run is sent. False when it takes longer: the drain goes on without the caller. */
  async flush(runId: string, timeoutMs: number): Promise<boolean> {
    const deadline = Date.now() + timeoutMs;
    for (;;) {
      const { rows } = await this.#options.pool.query(
        'select 1 from outbox where run_id = $1 and sent_at is null limit 1',
        [runId],
      );
      if (rows.length === 0) return true;
      if (Date.now() >= deadline) return false;
      await sleep(100);
    }
  }

  /**
   * Send until told to stop. Any number of workers may call this: one of them drains, the others stand by.
   * `feed` is called about every 3 s by the one that drains, to enqueue what nobody else does (live curves).
   */
  async drain({ signal, feed }: DrainOptions): Promise<void> {
    while (!signal.aborted) {
      const lock = await this.#takeLock().catch((error: unknown) => {
        this.#options.log(`outbox: PostgreSQL does not answer (${describe(error)})`);
        return null;
      });
      if (lock) {
        await this.#drainLocked(lock, signal, feed).catch((error: unknown) =>
          this.#options.log(`outbox: drain interrupted (${describe(error)})`),
        );
        lock.client.release(true); // closes the connection, and the lock with it
      }
      await sleep(2000, signal);
    }
  }

  /** Session lock on a connection of its own: when the connection goes, so does the lock. */
  async #takeLock(): Promise<DrainLock | null> {
    const client = await this.#options.pool.connect();
    const lock: DrainLock = { client, lost: false };
    const onError = (): void => {
      lock.lost = true;
    };
    client.on('error', onError);
    try {
      const { rows } = await client.query<{ taken: boolean }>(
        'select pg_try_advisory_lock(hashtextextended($1, 0)) as taken',
        [LOCK],
      );
      if (rows[0]?.taken) return lock;
    } catch (error) {
      client.release(true);
      throw error;
    }
    client.off('error', onError);
    client.release();
    return null;
  }

  async #drainLocked(lock: DrainLock, signal: AbortSignal, feed: DrainOptions['feed']): Promise<void> {
    const resting = new Map<string, { until: number; waitMs: number }>();
    let nextFeed = 0;
    while (!signal.aborted && !lock.lost) {
      if (feed && Date.now() >= nextFeed) {
        await feed();
        nextFeed = Date.now() + FEED_MS;
      }
      const asleep = [...resting].filter(([, { until }]) => until > Date.now()).map(([runId]) => runId);
      const { rows } = await lock.client.query<OutboxItem<Payload>>(
        'select id, run_id, payload from outbox where sent_at is null and not run_id = any($1) order by id limit 100',
        [asleep],
      );
      for (const item of rows) {
        if (signal.aborted || lock.lost) return;
        if ((resting.get(item.run_id)?.until ?? 0) > Date.now()) continue; // keeps the order within the run
        const failure = await this.#send(lock.client, item);
        if (failure) this.#rest(resting, item.run_id, failure);
        else if (resting.delete(item.run_id)) this.#options.log(`outbox: ${item.run_id} is being sent again`);
      }
      if (rows.length === 0) await sleep(IDLE_MS, signal);
    }
  }

  /** Null when the item is dealt with: sent, or refused for good and marked so. Otherwise the outage. */
  async #send(client: PoolClient, item: OutboxItem<Payload>): Promise<unknown> {
    let refusal: string | null = null;
    try {
      await this.#options.deliver(item.payload, item.run_id);
    } catch (error) {
      if (!(error instanceof ExpError) || !this.#options.refusedCodes.includes(error.code))
        return error ?? new Error('unknown');
      refusal = error.message;
      this.#options.log(`outbox: ${item.run_id}: refused, will not be sent again: ${error.message}`);
    }
    await client.query('update outbox set sent_at = now(), error = $2 where id = $1', [item.id, refusal]);
    return null;
  }

  #rest(resting: Map<string, { until: number; waitMs: number }>, runId: string, failure: unknown): void {
    const before = resting.get(runId);
    const waitMs = before ? Math.min(2 * before.waitMs, BACKOFF_MS.most) : BACKOFF_MS.first;
    resting.set(runId, { until: Date.now() + waitMs, waitMs });
    if (!before) this.#options.log(`outbox: ${runId} waits, work goes on: ${describe(failure)}`);
  }
}

interface DrainLock {
  client: PoolClient;
  lost: boolean;
}

const describe = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** Resolves early, without an error, when the signal aborts. */
function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  if (signal?.aborted) return Promise.resolve();
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal?.addEventListener('abort', done);
  });
}
