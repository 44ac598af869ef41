import type { Pool } from 'pg';

/** Blobs of a saved trainer state: enough to go on from its step on any process. */
export interface SavedState {
  /** What the stage trained: its adapter, or all weights where it has none. */
  adapter: string;
  optimizer: string;
  trainer_state: string;
}

export interface LedgerStep {
  step: number;
  batch_blob: string;
  /** Digest of the weights that sampled the batch. */
  sampled_with: string;
  status: 'planned' | 'done';
  /** Set where the trainer's state was saved after the step. */
  saved: SavedState | null;
}

interface StepRow {
  step: number;
  batch_blob: string;
  checkpoint_before: string;
  status: 'planned' | 'done';
  result: SavedState | null;
}

/** One row per optimizer step of a stage: which batch it used, and whether it happened. */
export class StepLedger {
  readonly #pool: Pool;

  constructor(pool: Pool) {
    this.#pool = pool;
  }

  /** Fix the batch of a step. The first plan wins: a retry that sampled anew may not change a step's data. */
  async plan(stageKey: string, step: number, batchBlob: string, sampledWith: string): Promise<void> {
    await this.#pool.query(
      `insert into steps (stage_key, step, batch_blob, checkpoint_before, status) values ($1, $2, $3, $4, 'planned')
       on conflict do nothing`,
      [stageKey, step, batchBlob, sampledWith],
    );
  }

  async get(stageKey: string, step: number): Promise<LedgerStep | null> {
    const { rows } = await this.#pool.query<StepRow>(
      'select step, batch_blob, checkpoint_before, status, result from steps where stage_key = $1 and step = $2',
      [stageKey, step],
    );
    return rows[0] ? toStep(rows[0]) : null;
  }

  /** The newest step whose state was saved, at or before `step`. */
  async lastSaved(stageKey: string, step = 2 ** 31 - 1): Promise<LedgerStep | null> {
    const { rows } = await this.#pool.query<StepRow>(
      `select step, batch_blob, checkpoint_before, status, result from steps
       where stage_key = $1 and step <= $2 and status = 'done' and result is not null order by step desc limit 1`,
      [stageKey, step],
    );
    return rows[0] ? toStep(rows[0]) : null;
  }

  /** Steps after `from` up to and including `to`, in order: the batches a new process replays. */
  async between(stageKey: string, from: number, to: number): Promise<LedgerStep[]> {
    const { rows } = await this.#pool.query<StepRow>(
      'select step, batch_blob, checkpoint_before, status, result from steps where stage_key = $1 and step > $2 and step <= $3 order by step',
      [stageKey, from, to],
    );
    return rows.map(toStep);
  }

  /** Steps whose state is saved. */
  async savedSteps(stageKey: string): Promise<number[]> {
    const { rows } = await this.#pool.query<{ step: number }>(
      'select step from steps where stage_key = $1 and result is not null order by step',
      [stageKey],
    );
    return rows.map(({ step }) => step);
  }

  /** Forget the saved states of all steps but these; returns the blobs that the ledger names no more. */
  async letGo(stageKey: string, kept: readonly number[]): Promise<string[]> {
    const { rows } = await this.#pool.query<{ blob: string }>(
      `with gone as (
         select stage_key, step, result from steps where stage_key = $1 and result is not null and step <> all($2)
       ), forgotten as (
         update steps s set result = null, adapter_blob = null from gone g
         where s.stage_key = g.stage_key and s.step = g.step
       )
       select distinct file.value as blob from gone, jsonb_each_text(gone.result) as file
       where not exists (
         select 1 from steps s, jsonb_each_text(s.result) as other
         where other.value = file.value and (s.stage_key, s.step) not in (select stage_key, step from gone)
       )`,
      [stageKey, kept],
    );
    return rows.map(({ blob }) => blob);
  }

  /** The step happened; later calls for the same step change nothing but may add the saved state. */
  async done(stageKey: string, step: number, saved: SavedState | null): Promise<void> {
    await this.#pool.query(
      `update steps set status = 'done', result = coalesce(result, $3), adapter_blob = coalesce(adapter_blob, $4)
       where stage_key = $1 and step = $2`,
      [stageKey, step, saved, saved?.adapter ?? null],
    );
  }
}

const toStep = ({ step, batch_blob, checkpoint_before, status, result }: StepRow): LedgerStep => ({
  step,
  batch_blob,
  sampled_with: checkpoint_before,
  status,
  saved: result,
});
