/** Making a run, and making sure that its workflow exists: safe to do twice, and by fifty callers at once. */
import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Client } from '@temporalio/client';
import { ExpError } from '../schemas/errors.ts';
import type { Experiment } from '../schemas/experiment.ts';
import type { Plan } from '../schemas/plan.ts';
import { isOutage, type Stack } from './open-stack.ts';
import { doneArms, findRun, type RunRow, workflowPhase } from './run-state.ts';

export interface StartedRun {
  run: string;
  /** False where a run of the same key was active already: the caller attached to it. */
  created: boolean;
}

/** How long a submit keeps trying to start the workflow of a run it has recorded. */
const START_DEADLINE_MS = 20_000;

/** `<name>-<yymmdd>-<6 hex>`: says what and when, and is short enough to type. */
export function newRunId(name: string, now: Date): string {
  const day = now.toISOString().slice(2, 10).replaceAll('-', '');
  return `${name}-${day}-${randomBytes(3).toString('hex')}`;
}

/**
 * Record a run of the plan and start it, or attach to the active run of the same key.
 * The row comes first, as the promise: whoever attaches starts the workflow if its maker died before doing so.
 */
export async function startRun(stack: Stack, plan: Plan): Promise<StartedRun> {
  const client = await stack.temporal();
  const blob = await stack.store.putJson(plan);
  for (;;) {
    const { row, created } = await claimRun(stack, plan, blob);
    if (await ensureStarted(stack, client, row, plan)) return { run: row.id, created };
    // It ended between our look and our start: its key is free again.
  }
}

async function claimRun(stack: Stack, plan: Plan, blob: string): Promise<{ row: RunRow; created: boolean }> {
  for (;;) {
    const id = newRunId(plan.name, new Date());
    const { rowCount } = await stack.pool.query(
      `insert into runs (id, run_key, name, profile, plan_blob) values ($1, $2, $3, $4, $5)
       on conflict (run_key) where status = 'running' do nothing`,
      [id, plan.run_key, plan.name, plan.profile, blob],
    );
    if (rowCount === 1) return { row: await findRun(stack.pool, id), created: true };
    const { rows } = await stack.pool.query<{ id: string }>(
      `select id from runs where run_key = $1 and status = 'running'`,
      [plan.run_key],
    );
    if (rows[0]) return { row: await findRun(stack.pool, rows[0].id), created: false };
  }
}

/**
 * The workflow of an active run, started unless it is there. False when the run has ended meanwhile.
 *
 * A run's last activity writes its final status before the workflow closes. So a closed workflow under a row that
 * still says `running` was ended from outside, or belongs to a `resume` that died half-way: both go on.
 */
export async function ensureStarted(
  stack: Stack,
  client: Client,
  row: RunRow,
  plan: Plan,
  done: readonly string[] = [],
): Promise<boolean> {
  const deadline = Date.now() + START_DEADLINE_MS;
  for (let pause = 200; ; pause = Math.min(pause * 2, 2_000)) {
    try {
      if ((await workflowPhase(client, row.id)) === 'open') return true;
      if ((await findRun(stack.pool, row.id)).status !== 'running') return false;
      await startWorkflow(stack, client, row, plan, done);
      return true;
    } catch (error) {
      if (!isOutage(error)) throw error;
      if (Date.now() + pause > deadline) throw notStarted(row, error);
    }
    await sleep(pause);
  }
}

async function startWorkflow(
  stack: Stack,
  client: Client,
  row: RunRow,
  plan: Plan,
  done: readonly string[],
): Promise<void> {
  await client.connection.withDeadline(Date.now() + 10_000, () =>
    client.workflow.start('run', {
      workflowId: `run/${row.id}`,
      taskQueue: `${stack.connections.temporal.queuePrefix}-cpu`,
      args: [{ run: row.id, plan: row.plan_blob, ...armPolicy(plan), ...(done.length > 0 && { done }) }],
      workflowIdConflictPolicy: 'USE_EXISTING',
      workflowIdReusePolicy: 'ALLOW_DUPLICATE',
    }),
  );
}

/** Arms in flight at a time, all when the spec does not say; and whether one that fails ends the others. */
function armPolicy({ spec, arms }: Plan): { max_parallel: number; fail_fast: boolean } {
  const { max_parallel = Math.max(1, arms.length), fail_fast = false } = (spec as unknown as Experiment).sweep ?? {};
  return { max_parallel, fail_fast };
}

function notStarted(row: RunRow, cause: unknown): ExpError {
  return new ExpError(
    'SERVICE_UNREACHABLE',
    `run ${row.id}`,
    'recorded, but Temporal stopped answering before it was started; submit the spec again, or `exp resume` it',
    { cause },
  );
}

/**
 * Go on with an ended run under its own id, from its frozen plan: arms that are done stay as they are, and in the others
 * what is published is reused.
 * Throws RUN_ACTIVE when another run of the same key is active.
 */
export async function resumeRun(stack: Stack, row: RunRow): Promise<StartedRun> {
  const client = await stack.temporal();
  const plan = await stack.store.readJson<Plan>(row.plan_blob);
  const done = row.status === 'running' ? [] : await doneArms(client, row.id);
  const reopened = row.status !== 'running' && (await reopen(stack, row));
  // The ended execution may still be closing; the new one begins when it has.
  if (reopened) await waitUntilClosed(client, row.id);
  await ensureStarted(stack, client, row, plan, done);
  return { run: row.id, created: reopened };
}

async function reopen(stack: Stack, row: RunRow): Promise<boolean> {
  try {
    const { rowCount } = await stack.pool.query(
      `update runs set status = 'running', ended_at = null where id = $1 and status <> 'running'`,
      [row.id],
    );
    return rowCount === 1;
  } catch (error) {
    if ((error as { code?: string }).code !== '23505') throw error;
    const { rows } = await stack.pool.query<{ id: string }>(
      `select id from runs where run_key = $1 and status = 'running'`,
      [row.run_key],
    );
    const other = rows[0]?.id ?? 'another run';
    throw new ExpError('RUN_ACTIVE', row.id, `${other} runs the same spec now; watch that one, or cancel it first`);
  }
}

async function waitUntilClosed(client: Client, run: string): Promise<void> {
  for (let tries = 0; tries < 50 && (await workflowPhase(client, run)) === 'open'; tries++) await sleep(200);
}
