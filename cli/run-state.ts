/** What a run is doing, put together from its row, the workflows' answers and the live numbers. Reads only. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Client } from '@temporalio/client';
import type { Pool } from 'pg';
import { readBounds, readStanding } from '../activities/adapters/spend-ledger.ts';
import { BOUNDED, type Bounds, moneyOf, type Standing } from '../activities/budget.ts';
import { ExitCode, ExpError } from '../schemas/errors.ts';
import type { Plan } from '../schemas/plan.ts';
import type { Profile } from '../schemas/profile.ts';
import type { Stack } from './open-stack.ts';
import { oneLine } from './terminal.ts';

export type RunStatus = 'running' | 'done' | 'failed' | 'cancelled' | 'gate_failed' | 'budget';
export type NodeStatus =
  | 'waiting'
  | 'running'
  | 'paused'
  | 'done'
  | 'reused'
  | 'failed'
  | 'skipped'
  | 'cancelled'
  | 'gate_failed';

/** One row of the table `runs`. */
export interface RunRow {
  id: string;
  run_key: string;
  name: string;
  profile: string;
  plan_blob: string;
  status: RunStatus;
  created_at: Date;
  ended_at: Date | null;
  mlflow_url: string | null;
}

export interface NodeState {
  id: string;
  kind: string;
  key: string;
  status: NodeStatus;
  /** Another run asked for this node first; both wait for the same work. */
  shared: boolean;
  error: string | null;
  attempts: number;
  done: number;
  total: number;
  detail: string;
  started_at: Date | null;
  ended_at: Date | null;
}

/** What a run has spent, what is reserved for its work in flight, and its bounds. */
export interface Spend extends Standing {
  bounds: Bounds;
  /** By the prices of the profile; null where it has none. */
  money: { amount: number; currency: string } | null;
}

/** Why a run is held back, and since when. */
export interface RunPause {
  reason: string;
  since: string;
  over_budget: boolean;
}

/** What stands between a stage and those that start from it. */
export interface GateState {
  /** The stage. */
  name: string;
  status: 'waiting' | 'asks' | 'passed' | 'failed' | 'skipped' | 'cancelled';
  metric: string | null;
  value: number | null;
  reason: string;
}

export interface ArmState {
  arm: string;
  status: RunStatus | 'waiting';
  nodes: NodeState[];
  gates: GateState[];
}

export interface RunState {
  run: string;
  name: string;
  status: RunStatus;
  created_at: Date;
  ended_at: Date | null;
  mlflow_url: string | null;
  arms: ArmState[];
  paused: RunPause | null;
  spend: Spend;
  /** Seconds still to go, where earlier runs say how long the kinds that wait took; null otherwise. */
  eta_seconds: number | null;
  /** What stands between the reader and fresh answers, in words; null when nothing does. */
  trouble: string | null;
}

interface ProgressRow {
  key: string;
  status: string;
  attempts: number;
  done: string;
  total: string;
  detail: string;
  started_at: Date | null;
  ended_at: Date | null;
  updated_at: Date;
}

/** What the workflow `run/<id>` answers to the query `state`. */
interface RunAnswer {
  arms: { arm: string; status: ArmState['status'] }[];
  paused?: RunPause | null;
}

/** What the workflow `arm/<run>/<arm>` answers to the query `state`. */
interface ArmAnswer {
  arm: string;
  status: ArmState['status'];
  nodes: { id: string; status: NodeStatus; error?: { code: string; message: string } }[];
  gates?: GateState[];
}

const RUN_COLUMNS = 'id, run_key, name, profile, plan_blob, status, created_at, ended_at, mlflow_url';

/** The one RUN a verb was given. Throws USAGE. */
export function runArgument(positionals: readonly string[], verb: string): string {
  const [wanted, ...more] = positionals;
  if (wanted === undefined || more.length > 0) throw new ExpError('USAGE', `exp ${verb}`, 'wants one RUN, or `latest`');
  return wanted;
}

/** The run meant by an id, a prefix that only one run has, or `latest`. Throws RUN_UNKNOWN, RUN_AMBIGUOUS. */
export async function findRun(pool: Pool, wanted: string): Promise<RunRow> {
  if (wanted === 'latest') {
    const { rows } = await pool.query<RunRow>(`select ${RUN_COLUMNS} from runs order by created_at desc, id limit 1`);
    if (!rows[0]) throw new ExpError('RUN_UNKNOWN', 'latest', 'there is no run yet; `exp submit SPEC` makes one');
    return rows[0];
  }
  const { rows } = await pool.query<RunRow>(
    `select ${RUN_COLUMNS} from runs where id = $1 or starts_with(id, $1) order by (id = $1) desc, created_at desc limit 6`,
    [wanted],
  );
  const [first] = rows;
  if (!first) throw new ExpError('RUN_UNKNOWN', wanted, 'no run has this id or begins like this; `exp list` shows all');
  if (first.id === wanted || rows.length === 1) return first;
  throw new ExpError(
    'RUN_AMBIGUOUS',
    wanted,
    `more than one run begins like this: ${rows.map(({ id }) => id).join(', ')}`,
  );
}

export async function listRuns(pool: Pool, options: { active?: boolean; limit?: number } = {}): Promise<RunRow[]> {
  const { rows } = await pool.query<RunRow>(
    `select ${RUN_COLUMNS} from runs where ($1::boolean is not true or status = 'running') order by created_at desc, id limit $2`,
    [options.active ?? false, options.limit ?? 1000],
  );
  return rows;
}

const QUERY_MS = 2_000;
/** Workflow queries cost a worker's time: ask at most this often, while the numbers in PostgreSQL are read each time. */
const ASK_EVERY_MS = 1_000;
const CLOSED_CHECK_MS = 5_000;
/** A busy worker may miss an answer or two: no trouble yet. */
const PATIENCE_MS = 4_000;

/** Reads the state of one run again and again; remembers the plan and the workflows' last answers. */
export class RunReader {
  readonly #stack: Stack;
  readonly #id: string;
  readonly #prices: Profile['prices'] | null;
  #plan: Plan | null = null;
  #answers = new Map<string, ArmAnswer>();
  #asking: Promise<void> | null = null;
  #askedAt = 0;
  #checkedAt = 0;
  #overview = new Map<string, ArmState['status']>();
  #paused: RunPause | null = null;
  #trouble: string | null = null;
  #troubleSince: number | null = null;
  #orphaned = false;
  #secondsByKind: Map<string, number> | null = null;

  /** Without `prices` nothing is said of money. */
  constructor(stack: Stack, id: string, prices: Profile['prices'] | null = null) {
    this.#stack = stack;
    this.#id = id;
    this.#prices = prices;
  }

  /** The state now. Throws when PostgreSQL cannot be read; says `trouble` when only the workflows do not answer. */
  async read(): Promise<RunState> {
    const row = await findRun(this.#stack.pool, this.#id);
    const plan = this.#plan ?? (await this.#stack.store.readJson<Plan>(row.plan_blob));
    this.#plan = plan;
    const keys = plan.arms.flatMap(({ nodes }) => nodes.map(({ key }) => key));
    const [progress, published, spend] = await Promise.all([
      readProgress(this.#stack.pool, keys),
      readPublished(this.#stack.pool, keys),
      readSpend(this.#stack.pool, row.id, plan, this.#prices),
    ]);
    this.#asking ??= this.#ask(row).finally(() => {
      this.#asking = null;
    });
    // A slow answer must not hold up the picture; only the first one, and the last words of a run, are waited for.
    if (this.#answers.size === 0 || row.status !== 'running') await this.#asking;

    const context: NodeContext = { row, progress, published };
    const arms = plan.arms.map((arm) => {
      const answer = this.#answers.get(arm.name);
      const answers = new Map(answer?.nodes.map((node) => [node.id, node]));
      const nodes = arm.nodes.map((node) => nodeState(node, answers.get(node.id), context));
      return {
        arm: arm.name,
        status: this.#overview.get(arm.name) ?? armStatus(row.status, nodes),
        nodes,
        gates: answer?.gates ?? [],
      };
    });
    const status = row.status === 'running' && this.#orphaned ? 'failed' : row.status;
    this.#secondsByKind ??= await readSecondsByKind(this.#stack.pool);
    return {
      run: row.id,
      name: row.name,
      status,
      created_at: row.created_at,
      ended_at: row.ended_at,
      mlflow_url: row.mlflow_url,
      arms,
      spend,
      paused: status === 'running' ? this.#paused : null,
      eta_seconds: status === 'running' && !this.#paused ? estimateRemaining(arms, this.#secondsByKind) : null,
      trouble:
        status !== row.status
          ? `its workflow is gone and left no final status; \`exp resume ${row.id}\` goes on with it`
          : row.status === 'running' && this.#troubleSince !== null && Date.now() - this.#troubleSince > PATIENCE_MS
            ? this.#trouble
            : null,
    };
  }

  /** Bring the workflows' answers up to date; an ended run is asked once, so that its errors can be shown. */
  async #ask(row: RunRow): Promise<void> {
    const now = Date.now();
    const ended = row.status !== 'running';
    if (now - this.#askedAt < ASK_EVERY_MS && !ended) return;
    if (ended && this.#askedAt > (row.ended_at?.getTime() ?? 0)) return;
    this.#askedAt = now;
    try {
      const client = await this.#stack.temporal();
      await this.#collect(client, row.id);
      if (!ended) await this.#noticeOrphan(client, row);
      this.#troubleSince = null;
    } catch (error) {
      this.#troubleSince ??= now;
      this.#trouble = describeTrouble(error);
    }
  }

  /**
   * The run says which arms have begun: a resumed run's old arms still answer, and are not meant. An arm that has ended
   * says the same for ever, and each time a worker would replay all of it: its last words are kept.
   */
  async #collect(client: Client, run: string): Promise<void> {
    const overview = await ask<RunAnswer>(client, `run/${run}`);
    this.#overview = new Map(overview?.arms.map(({ arm, status }) => [arm, status]));
    this.#paused = overview?.paused ?? null;
    const begun = [...this.#overview].filter(([, status]) => status !== 'waiting');
    const answers = await Promise.all(
      begun.map(([arm, status]) => {
        const known = this.#answers.get(arm);
        const isLast = known !== undefined && status !== 'running' && known.status === status;
        return isLast ? known : ask<ArmAnswer>(client, `arm/${run}/${arm}`);
      }),
    );
    this.#answers = new Map(answers.flatMap((answer) => (answer ? [[answer.arm, answer]] : [])));
  }

  /**
   * A workflow that was terminated, or never started, writes no status. The row is written before a workflow closes,
   * so a row that still says `running` after two looks at a workflow that is not open tells of one that is over.
   */
  async #noticeOrphan(client: Client, row: RunRow): Promise<void> {
    if (Date.now() - this.#checkedAt < CLOSED_CHECK_MS) return;
    this.#checkedAt = Date.now();
    this.#orphaned = await twice(async () => {
      const phase = await workflowPhase(client, row.id);
      return phase !== 'open' && (await findRun(this.#stack.pool, row.id)).status === 'running';
    });
  }
}

async function readSpend(pool: Pool, run: string, plan: Plan, prices: Profile['prices'] | null): Promise<Spend> {
  const [standing, bounds] = await Promise.all([readStanding(pool, run), readBounds(pool, run, plan)]);
  const money = prices && { amount: moneyOf(standing.spent, prices), currency: prices.currency };
  return { ...standing, bounds, money };
}

/** `spent 12000 tokens, 87 of 200 tool calls`: what was used, and what is bounded. Empty when nothing was and is. */
export function spendLine({ spent, reserved, bounds, money }: Spend): string {
  const used = { ...spent, money: money?.amount ?? 0 };
  const words = {
    tokens: 'tokens',
    tool_calls: 'tool calls',
    gpu_hours: 'GPU-hours',
    money: money?.currency ?? 'money',
  };
  const parts = BOUNDED.filter((name) => used[name] > 0 || bounds[name] !== undefined).map((name) => {
    const amount = Number(used[name].toFixed(2));
    return `${bounds[name] === undefined ? amount : `${amount} of ${bounds[name]}`} ${words[name]}`;
  });
  const held =
    reserved.tokens > 0 ? `; at most ${reserved.tokens} tokens and ${reserved.tool_calls} tool calls in flight` : '';
  return parts.length === 0 ? 'nothing spent' : `spent ${parts.join(', ')}${held}`;
}

/** Whether a claim holds now and still holds a moment later. */
async function twice(claim: () => Promise<boolean>): Promise<boolean> {
  if (!(await claim())) return false;
  await sleep(1_500);
  return claim();
}

/** Whether the workflow of a run is open, has ended, or was never started. */
export async function workflowPhase(client: Client, run: string): Promise<'open' | 'closed' | 'absent'> {
  const { WorkflowNotFoundError } = await import('@temporalio/client');
  try {
    const { status } = await client.connection.withDeadline(Date.now() + 5_000, () =>
      client.workflow.getHandle(`run/${run}`).describe(),
    );
    return status.name === 'RUNNING' ? 'open' : 'closed';
  } catch (error) {
    if (error instanceof WorkflowNotFoundError) return 'absent';
    throw error;
  }
}

/** A workflow that was not started yet, or does not answer queries yet, says nothing. */
async function ask<Answer>(client: Client, workflowId: string): Promise<Answer | null> {
  const { QueryNotRegisteredError, WorkflowNotFoundError } = await import('@temporalio/client');
  try {
    return await client.connection.withDeadline(Date.now() + QUERY_MS, () =>
      client.workflow.getHandle(workflowId).query<Answer>('state'),
    );
  } catch (error) {
    if (error instanceof WorkflowNotFoundError || error instanceof QueryNotRegisteredError) return null;
    throw error;
  }
}

/** Arms that the last execution of a run brought to their end; none where it does not answer. */
export async function doneArms(client: Client, run: string): Promise<string[]> {
  const answer = await ask<RunAnswer>(client, `run/${run}`).catch(() => null);
  return (answer?.arms ?? []).filter(({ status }) => status === 'done').map(({ arm }) => arm);
}

function describeTrouble(error: unknown): string {
  const { code, cause } = error as { code?: unknown; cause?: { code?: unknown } };
  const grpc = typeof code === 'number' ? code : cause?.code;
  if (grpc === 4) return 'no worker answers yet';
  return 'reconnecting to Temporal';
}

async function readProgress(pool: Pool, keys: readonly string[]): Promise<Map<string, ProgressRow>> {
  const { rows } = await pool.query<ProgressRow>(
    `select key, status, attempts, done, total, detail, started_at, ended_at, updated_at from node_progress where key = any($1)`,
    [keys],
  );
  return new Map(rows.map((row) => [row.key, row]));
}

/** When each key was published, for those that were. */
async function readPublished(pool: Pool, keys: readonly string[]): Promise<Map<string, Date>> {
  const { rows } = await pool.query<{ key: string; created_at: Date }>(
    'select distinct on (key) key, created_at from artifacts where key = any($1) order by key, generation desc',
    [keys],
  );
  return new Map(rows.map((row) => [row.key, row.created_at]));
}

async function readSecondsByKind(pool: Pool): Promise<Map<string, number>> {
  const { rows } = await pool.query<{ kind: string; seconds: number }>(
    `select kind, percentile_cont(0.5) within group (order by extract(epoch from ended_at - started_at))::float8 as seconds
     from node_progress where status = 'done' and ended_at > started_at group by kind`,
  );
  return new Map(rows.map((row) => [row.kind, row.seconds]));
}

interface NodeContext {
  row: RunRow;
  progress: ReadonlyMap<string, ProgressRow>;
  published: ReadonlyMap<string, Date>;
}

function nodeState(
  node: { id: string; kind: string; key: string },
  answer: ArmAnswer['nodes'][number] | undefined,
  { row, progress, published }: NodeContext,
): NodeState {
  const live = progress.get(node.key);
  const trusted = answer && !contradicts(answer.status, row.status);
  const told = trusted ? answer.status : statusFromTables(node.key, { row, progress, published });
  // An arm knows that it waits for the node; that it is held back, only the node knows.
  const status = told === 'running' && live?.status === 'paused' ? 'paused' : told;
  // Numbers of an earlier execution of the same key say nothing about one that only begins.
  const current = live && EXECUTED.has(status) && !(status === 'running' && live.ended_at) ? live : null;
  const error = errorText(status, answer?.error, current);
  return {
    id: node.id,
    kind: node.kind,
    key: node.key,
    status,
    shared: status === 'running' && Boolean(current?.started_at && current.started_at < row.created_at),
    error: error === null ? null : oneLine(error),
    attempts: live?.attempts ?? 0,
    done: Number(current?.done ?? 0),
    total: Number(current?.total ?? 0),
    detail: error === null ? oneLine(current?.detail ?? '') : '',
    started_at: current?.started_at ?? null,
    ended_at: current?.ended_at ?? null,
  };
}

const EXECUTED: ReadonlySet<NodeStatus> = new Set(['running', 'paused', 'done', 'failed', 'cancelled', 'gate_failed']);

function errorText(
  status: NodeStatus,
  error: { code: string; message: string } | undefined,
  live: ProgressRow | null,
): string | null {
  if (error) return error.message.includes(error.code) ? error.message : `${error.code}: ${error.message}`;
  return (status === 'failed' || status === 'gate_failed') && live?.detail ? live.detail : null;
}

/** A last answer that says `running` is out of date once the run has ended. */
function contradicts(answer: NodeStatus, run: RunStatus): boolean {
  return run !== 'running' && (answer === 'running' || answer === 'waiting');
}

/** Without the workflows' answer: what the tables alone say about a node. */
function statusFromTables(key: string, { row, progress, published }: NodeContext): NodeStatus {
  const publishedAt = published.get(key);
  if (publishedAt) return publishedAt < row.created_at ? 'reused' : 'done';
  const live = progress.get(key);
  const ended = row.status !== 'running';
  if (live && (live.updated_at >= row.created_at || (!live.ended_at && !ended))) {
    if ((live.status === 'running' || live.status === 'paused') && ended) return 'cancelled';
    if (live.status !== 'done') return live.status as NodeStatus;
  }
  if (!ended) return 'waiting';
  return row.status === 'cancelled' ? 'cancelled' : 'skipped';
}

function armStatus(run: RunStatus, nodes: readonly NodeState[]): ArmState['status'] {
  if (run === 'running') return nodes.every(({ status }) => status === 'waiting') ? 'waiting' : 'running';
  const statuses = new Set(nodes.map(({ status }) => status));
  for (const status of ['cancelled', 'failed', 'gate_failed'] as const) if (statuses.has(status)) return status;
  return 'done';
}

/** Seconds to go if what is left runs one after another; null while a kind that waits was never timed here. */
function estimateRemaining(arms: readonly ArmState[], secondsByKind: ReadonlyMap<string, number>): number | null {
  const left = new Map<string, number>();
  for (const node of arms.flatMap(({ nodes }) => nodes)) {
    if (!isOpen(node.status)) continue;
    const seconds = nodeSecondsLeft(node, secondsByKind.get(node.kind));
    if (seconds === null) return null;
    left.set(node.key, seconds);
  }
  return [...left.values()].reduce((sum, seconds) => sum + seconds, 0);
}

export const isOpen = (status: NodeStatus): boolean =>
  status === 'waiting' || status === 'running' || status === 'paused';

/** From its own pace where it has one, else from how long its kind took before. */
function nodeSecondsLeft(node: NodeState, typical: number | undefined): number | null {
  const elapsed = node.started_at ? (Date.now() - node.started_at.getTime()) / 1000 : 0;
  if (node.status === 'running' && node.done > 0 && node.total > 0)
    return (elapsed / node.done) * Math.max(0, node.total - node.done);
  return typical === undefined ? null : Math.max(0, typical - elapsed);
}

/** Nodes with the arm they belong to, in plan order. */
export function allNodes(state: RunState): (NodeState & { arm: string })[] {
  return state.arms.flatMap(({ arm, nodes }) => nodes.map((node) => ({ ...node, arm })));
}

/** Gates that tell something, with the arm they belong to. */
export function toldGates(state: RunState): (GateState & { arm: string })[] {
  return state.arms.flatMap(({ arm, gates }) =>
    gates.filter(({ status }) => status !== 'waiting').map((gate) => ({ ...gate, arm })),
  );
}

/** The exit code that a final status stands for. */
export function exitCodeOf(status: RunStatus): number {
  if (status === 'done' || status === 'running') return 0;
  if (status === 'gate_failed') return ExitCode.gateFailed;
  return status === 'budget' ? ExitCode.budget : ExitCode.runFailed;
}
