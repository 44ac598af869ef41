/** Which runs stay, and every key and blob they stand for. */
import type { Pool, PoolClient } from 'pg';
import type { ArtifactStore } from '../../activities/adapters/artifact-store.ts';
import { ExpError } from '../../schemas/errors.ts';
import type { Plan } from '../../schemas/plan.ts';

export interface KeepPolicy {
  /** So many of the newest runs; null: the number does not decide. */
  runs: number | null;
  /** Runs that began after this; null: the age does not decide. */
  since: Date | null;
  /** What was at work after this may still be at work. */
  grace: Date;
}

interface Row {
  id: string;
  plan_blob: string;
  status: string;
  created_at: Date;
  ended_at: Date | null;
}

/** Runs that no rule keeps. With neither a number nor an age, every run is kept. */
export async function droppedRuns(db: Pool | PoolClient, { runs, since, grace }: KeepPolicy): Promise<string[]> {
  const { rows } = await db.query<Row>(
    'select id, plan_blob, status, created_at, ended_at from runs order by created_at desc, id',
  );
  return rows
    .filter((row, at) => {
      if (row.status === 'running' || row.ended_at === null || row.ended_at > grace) return false;
      if (runs === null && since === null) return false;
      return (runs === null || at >= runs) && (since === null || row.created_at < since);
    })
    .map(({ id }) => id);
}

/** Keys of the plans of all runs but the dropped ones, brought up to date as runs come. */
export class KeptKeys {
  readonly keys = new Set<string>();
  readonly #store: ArtifactStore;
  readonly #dropped: ReadonlySet<string>;
  readonly #known = new Set<string>();

  constructor(store: ArtifactStore, dropped: readonly string[]) {
    this.#store = store;
    this.#dropped = new Set(dropped);
  }

  /** Read the plans of runs not seen yet. Throws GC_UNSURE when one cannot be read: nobody knows what it needs. */
  async refresh(db: Pool | PoolClient): Promise<void> {
    const { rows } = await db.query<Pick<Row, 'id' | 'plan_blob'>>('select id, plan_blob from runs');
    for (const { id, plan_blob } of rows) {
      if (this.#known.has(id) || this.#dropped.has(id)) continue;
      const { arms } = await this.#store.readJson<Plan>(plan_blob).catch((cause: Error) => {
        throw new ExpError(
          'GC_UNSURE',
          id,
          `its plan cannot be read, so nobody knows what it needs: ${cause.message}`,
          {
            cause,
          },
        );
      });
      for (const { key } of arms.flatMap(({ nodes }) => nodes)) this.keys.add(key);
      this.#known.add(id);
    }
  }
}
