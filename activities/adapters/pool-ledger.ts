import type { Pool } from 'pg';

/** Training pool of a stage from a step on: lines of pass rates, as a profile writes them. */
export interface StagePool {
  step: number;
  tasks: number;
  blob: string;
}

/** Which tasks a stage trains on since it last measured pass rates. */
export class PoolLedger {
  readonly #pool: Pool;

  constructor(pool: Pool) {
    this.#pool = pool;
  }

  /** The first choice after a step wins: a retry may not change what later steps draw from. */
  async choose(stageKey: string, { step, tasks, blob }: StagePool): Promise<void> {
    await this.#pool.query(
      'insert into stage_pools (stage_key, step, tasks, blob) values ($1, $2, $3, $4) on conflict do nothing',
      [stageKey, step, tasks, blob],
    );
  }

  /** The newest pool chosen after a step up to and including `step`; null while the profile's is in use. */
  async newest(stageKey: string, step: number): Promise<StagePool | null> {
    const { rows } = await this.#pool.query<StagePool>(
      'select step, tasks, blob from stage_pools where stage_key = $1 and step <= $2 order by step desc limit 1',
      [stageKey, step],
    );
    return rows[0] ?? null;
  }
}
