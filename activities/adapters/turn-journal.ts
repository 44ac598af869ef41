/**
 * Turn journal: a finished turn is durable before the next begins. Group commit: the turns of a few milliseconds
 * share one statement, so a hundred trajectories cost a few commits, not a hundred.
 */
import type { Pool } from 'pg';
import type { TurnRecord } from '../../environments/deep-research/agent-loop.ts';

interface Pending {
  trajectoryId: string;
  record: TurnRecord;
  written: () => void;
  failed: (error: unknown) => void;
}

export class TurnJournal {
  readonly #pool: Pool;
  readonly #gatherMs: number;
  #pending: Pending[] = [];
  #writing: Promise<void> | null = null;

  constructor(pool: Pool, { gatherMs = 3 }: { gatherMs?: number } = {}) {
    this.#pool = pool;
    this.#gatherMs = gatherMs;
  }

  /** Resolves once the turn is committed. A turn that is there already stays as it was first written. */
  append(trajectoryId: string, record: TurnRecord): Promise<void> {
    const written = new Promise<void>((resolve, reject) => {
      this.#pending.push({ trajectoryId, record, written: resolve, failed: reject });
    });
    this.#writing ??= this.#write();
    return written;
  }

  /** Turns of each trajectory in order, as far as they follow one another from turn 0. */
  async load(trajectoryIds: readonly string[]): Promise<Map<string, TurnRecord[]>> {
    const { rows } = await this.#pool.query<{ trajectory_id: string; turn: number; record: TurnRecord }>(
      'select trajectory_id, turn, record from turns where trajectory_id = any($1) order by trajectory_id, turn',
      [trajectoryIds],
    );
    const turns = new Map<string, TurnRecord[]>(trajectoryIds.map((id) => [id, []]));
    for (const { trajectory_id, turn, record } of rows) {
      const known = turns.get(trajectory_id);
      if (known?.length === turn) known.push(record);
    }
    return turns;
  }

  /** Forget trajectories whose shard is sealed. */
  async drop(trajectoryIds: readonly string[]): Promise<void> {
    await this.#pool.query('delete from turns where trajectory_id = any($1)', [trajectoryIds]);
  }

  /** One writer: while a commit is under way the next turns gather. */
  async #write(): Promise<void> {
    await new Promise((resolve) => setTimeout(resolve, this.#gatherMs));
    while (this.#pending.length > 0) {
      const batch = this.#pending.splice(0, 512);
      try {
        await this.#insert(batch);
        for (const { written } of batch) written();
      } catch (error) {
        for (const { failed } of batch) failed(error);
      }
    }
    this.#writing = null;
  }

  async #insert(batch: readonly Pending[]): Promise<void> {
    await this.#pool.query(
      `insert into turns (trajectory_id, turn, record)
       select * from unnest($1::text[], $2::int[], $3::jsonb[]) on conflict do nothing`,
      [
        batch.map(({ trajectoryId }) => trajectoryId),
        batch.map(({ record }) => record.turn),
        batch.map(({ record }) => JSON.stringify(record)),
      ],
    );
  }
}
