import type { Pool } from 'pg';
import type { Metric } from '../schemas/artifact.ts';
import type { NodeEnding, NodeRef } from './index.ts';

/** What a node is doing, for `exp status` and `exp watch`, and the metrics it has recorded so far. */
export class NodeProgress {
  readonly #pool: Pool;

  constructor(pool: Pool) {
    this.#pool = pool;
  }

  async started({ key, kind }: NodeRef): Promise<void> {
    await this.#pool.query(
      `insert into node_progress (key, kind, status, attempts, started_at) values ($1, $2, 'running', 1, now())
       on conflict (key) do update set status = 'running',
         attempts = node_progress.attempts + case node_progress.status when 'paused' then 0 else 1 end,
         started_at = now(), ended_at = null, done = 0, total = 0, detail = '', updated_at = now()`,
      [key, kind],
    );
  }

  async ended(key: string, status: NodeEnding['status'], detail: string): Promise<void> {
    await this.#pool.query(
      `update node_progress set status = $2, detail = case when $3 = '' then detail else $3 end, ended_at = now(), updated_at = now()
       where key = $1`,
      [key, status, detail],
    );
  }

  /** An activity of the node runs again after a crash or an outage. */
  async retried(key: string): Promise<void> {
    await this.#pool.query('update node_progress set attempts = attempts + 1 where key = $1', [key]);
  }

  readonly report = async (key: string, done: number, total: number, detail: string): Promise<void> => {
    await this.#pool.query(
      'update node_progress set done = $2, total = $3, detail = $4, updated_at = now() where key = $1',
      [key, done, total, detail],
    );
  };

  /**
   * Record points of a curve. The first write of a (name, step) fixes value and timestamp, so a retry repeats it.
   * What is no number is recorded as such: a 1 under `<name>_nan_count`.
   */
  async record(key: string, step: number, values: Record<string, number>): Promise<void> {
    const entries = Object.entries(values).map(([name, value]) =>
      Number.isFinite(value) ? ([name, value] as const) : ([`${name}_nan_count`, 1] as const),
    );
    await this.#pool.query(
      `insert into node_metrics (key, name, step, value, timestamp_ms)
       select $1, name, $2, value, $5 from unnest($3::text[], $4::float8[]) as point (name, value)
       on conflict do nothing`,
      [key, step, entries.map(([name]) => name), entries.map(([, value]) => value), Date.now()],
    );
  }

  /** Curves by name, each value by step; what was recorded as no number is NaN. Names without a point are left out. */
  async curves(key: string, names: readonly string[]): Promise<Map<string, Map<number, number>>> {
    const { rows } = await this.#pool.query<{ name: string; step: number; value: number }>(
      `select name, step, value from node_metrics where key = $1 and name = any($2)
       union all
       select wanted.name, step, 'NaN'::float8 from node_metrics
       join unnest($2::text[]) as wanted (name) on node_metrics.name = wanted.name || '_nan_count' where key = $1`,
      [key, names],
    );
    const curves = new Map<string, Map<number, number>>();
    for (const { name, step, value } of rows) {
      const curve = curves.get(name) ?? new Map<number, number>();
      curves.set(name, curve.set(step, value));
    }
    return curves;
  }

  async metrics(key: string): Promise<Metric[]> {
    const { rows } = await this.#pool.query<{ name: string; step: number; value: number; timestamp_ms: string }>(
      'select name, step, value, timestamp_ms from node_metrics where key = $1 order by name, step',
      [key],
    );
    return rows.map((row) => ({ ...row, timestamp_ms: Number(row.timestamp_ms) }));
  }
}
