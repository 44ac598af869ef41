/**
 * What runs spend. A unit of work (one batch of rollouts, one hold of a trainer) is charged in full to every run that
 * waits for its node when it is dispatched; work that is found done is free. Rows stand under (run, node, unit), never
 * under an attempt, so what is done twice is counted once, and a restart forgets nothing.
 */
import type { Pool, PoolClient } from 'pg';
import type { Experiment } from '../../schemas/experiment.ts';
import type { Plan } from '../../schemas/plan.ts';
import type { Profile } from '../../schemas/profile.ts';
import { type Amounts, type Bounds, NOTHING, overBound, type Standing, sumOf } from '../budget.ts';

/** Why a run may not go on, and what its spec wants done about it. */
export interface Refusal {
  run: string;
  reason: string;
  on_exceed: 'pause' | 'stop';
}

/** `wait`: there is room once work in flight has turned out smaller than what was reserved for it. */
export type Admission = { kind: 'admitted' } | { kind: 'wait' } | { kind: 'refused'; refusals: Refusal[] };

export interface SpendLedgerDeps {
  pool: Pool;
  plans: { load(planBlob: string): Promise<Plan> };
  prices: Profile['prices'];
}

interface Payer {
  run: string;
  plan_blob: string;
  bounds: Bounds | null;
}

interface SpendRow {
  tokens: string;
  tool_calls: string;
  gpu_seconds: number;
  cpu_seconds: number;
  reserved_tokens: string;
  reserved_tool_calls: string;
}

const SUMS = `coalesce(sum(tokens), 0) as tokens, coalesce(sum(tool_calls), 0) as tool_calls,
  coalesce(sum(gpu_seconds), 0) as gpu_seconds, coalesce(sum(cpu_seconds), 0) as cpu_seconds,
  coalesce(sum(greatest(most_tokens - tokens, 0)) filter (where open), 0) as reserved_tokens,
  coalesce(sum(greatest(most_tool_calls - tool_calls, 0)) filter (where open), 0) as reserved_tool_calls`;

/** What a run has spent, and what is reserved for its work in flight. */
export async function readStanding(
  db: Pick<Pool, 'query'>,
  run: string,
  except: { key: string; unit: string } | null = null,
): Promise<Standing> {
  const { rows } = await db.query<SpendRow>(
    `select ${SUMS} from spend where run = $1 and not (node_key = $2 and unit = $3)`,
    [run, except?.key ?? '', except?.unit ?? ''],
  );
  const row = rows[0] as SpendRow;
  return {
    spent: {
      tokens: Number(row.tokens),
      tool_calls: Number(row.tool_calls),
      gpu_hours: row.gpu_seconds / 3600,
      cpu_hours: row.cpu_seconds / 3600,
    },
    reserved: { ...NOTHING, tokens: Number(row.reserved_tokens), tool_calls: Number(row.reserved_tool_calls) },
  };
}

/** The bounds of a run: those of its spec, and what `exp budget` said since. */
export async function readBounds(db: Pick<Pool, 'query'>, run: string, plan: Plan): Promise<Bounds> {
  const { rows } = await db.query<{ bounds: Bounds }>('select bounds from budgets where run = $1', [run]);
  return boundsOf(plan, rows[0]?.bounds ?? null);
}

function boundsOf({ spec }: Plan, said: Bounds | null): Bounds {
  const { on_exceed: _, ...bounds } = (spec as unknown as Experiment).budget ?? {};
  return { ...bounds, ...said };
}

export async function setBounds(db: Pick<Pool, 'query'>, run: string, bounds: Bounds): Promise<void> {
  await db.query(
    `insert into budgets (run, bounds) values ($1, $2)
     on conflict (run) do update set bounds = budgets.bounds || excluded.bounds`,
    [run, JSON.stringify(bounds)],
  );
}

export class SpendLedger {
  readonly #deps: SpendLedgerDeps;

  constructor(deps: SpendLedgerDeps) {
    this.#deps = deps;
  }

  /**
   * Reserve the most that a unit may take with every run that waits for the node and has room for it. One such run is
   * enough: a run without room does not stop another's work. Again for the same unit: the same reservation.
   */
  admit(key: string, unit: string, most: Amounts): Promise<Admission> {
    return this.#transaction(async (db) => {
      const payers = await this.#payers(db, key);
      const standings = await this.#judge(db, payers, most, { key, unit });
      const able = standings.filter(({ over }) => over === null).map(({ run }) => run);
      await db.query(
        `insert into spend (run, node_key, unit, most_tokens, most_tool_calls)
         select run, $2, $3, $4, $5 from unnest($1::text[]) as run
         on conflict (run, node_key, unit) do update
           set open = true, most_tokens = excluded.most_tokens, most_tool_calls = excluded.most_tool_calls`,
        [able, key, unit, most.tokens, most.tool_calls],
      );
      return admissionOf(payers.length, able.length, standings);
    });
  }

  /** Whether a run that waits for the node may still use what is counted as time passes. */
  mayGoOn(key: string): Promise<Admission> {
    return this.#transaction(async (db) => {
      const payers = await this.#payers(db, key);
      const standings = await this.#judge(db, payers, NOTHING, null);
      return admissionOf(payers.length, standings.filter(({ over }) => over === null).length, standings);
    });
  }

  /** What a unit has taken so far, in all of its attempts. */
  async report(
    key: string,
    unit: string,
    { tokens, tool_calls }: Pick<Amounts, 'tokens' | 'tool_calls'>,
  ): Promise<void> {
    await this.#deps.pool.query(
      `update spend set tokens = greatest(tokens, $3), tool_calls = greatest(tool_calls, $4)
       where node_key = $1 and unit = $2 and open`,
      [key, unit, tokens, tool_calls],
    );
  }

  /** The unit takes no more; what was reserved beyond is free again. */
  async close(key: string, unit: string): Promise<void> {
    await this.#deps.pool.query('update spend set open = false where node_key = $1 and unit = $2', [key, unit]);
  }

  /** Machines that are held for a node since the first call; told again and again while they are. */
  async hold(key: string, unit: string, { gpus, cpus }: { gpus: number; cpus: number }): Promise<void> {
    await this.#deps.pool.query(
      `insert into spend (run, node_key, unit, open)
       select distinct s.run, $1, $2, false from subscriptions s join runs r on r.id = s.run and r.status = 'running'
       where s.node_key = $1
       on conflict (run, node_key, unit) do update set
         gpu_seconds = extract(epoch from now() - spend.since) * $3::float8,
         cpu_seconds = extract(epoch from now() - spend.since) * $4::float8`,
      [key, unit, gpus, cpus],
    );
  }

  /** Active runs that wait for the node. Locked in one order until the transaction ends, so two never wait for each other. */
  async #payers(db: PoolClient, key: string): Promise<Payer[]> {
    const { rows } = await db.query<Payer>(
      `select r.id as run, r.plan_blob, b.bounds from runs r left join budgets b on b.run = r.id
       where r.status = 'running' and r.id in (select run from subscriptions where node_key = $1) order by r.id`,
      [key],
    );
    for (const { run } of rows)
      await db.query("select pg_advisory_xact_lock(hashtextextended('spend ' || $1, 0))", [run]);
    return rows;
  }

  #judge(db: PoolClient, payers: readonly Payer[], most: Amounts, except: { key: string; unit: string } | null) {
    const { plans, prices } = this.#deps;
    return inTurn(payers, async ({ run, plan_blob, bounds: said }) => {
      const plan = await plans.load(plan_blob);
      const bounds = boundsOf(plan, said);
      const standing = await readStanding(db, run, except);
      const over = overBound(sumOf(standing.spent, standing.reserved), most, bounds, prices);
      // Reservations are upper bounds: without them there may be room.
      const waits = over !== null && overBound(standing.spent, most, bounds, prices) === null;
      const on_exceed = (plan.spec as unknown as Experiment).budget?.on_exceed ?? 'pause';
      return { run, over, waits, on_exceed };
    });
  }

  async #transaction<T>(work: (db: PoolClient) => Promise<T>): Promise<T> {
    const db = await this.#deps.pool.connect();
    try {
      await db.query('begin');
      const result = await work(db);
      await db.query('commit');
      return result;
    } catch (error) {
      await db.query('rollback').catch(() => {});
      throw error;
    } finally {
      db.release();
    }
  }
}

function admissionOf(
  payers: number,
  able: number,
  standings: readonly { run: string; over: string | null; waits: boolean; on_exceed: 'pause' | 'stop' }[],
): Admission {
  if (payers === 0 || able > 0) return { kind: 'admitted' };
  if (standings.some(({ waits }) => waits)) return { kind: 'wait' };
  return {
    kind: 'refused',
    refusals: standings.map(({ run, over, on_exceed }) => ({ run, reason: `budget: ${over}`, on_exceed })),
  };
}

/** One after another: a connection answers one question at a time. */
async function inTurn<T, R>(items: readonly T[], work: (item: T) => Promise<R>): Promise<R[]> {
  const results: R[] = [];
  for (const item of items) results.push(await work(item));
  return results;
}
