/**
 * What MLflow is told of a run: submit → arm → node as nested runs, with parameters, curves, files and true endings.
 * Every call here only writes to the outbox, so an outage of MLflow stops no work.
 */
import { Context } from '@temporalio/activity';
import type { Pool } from 'pg';
import { stringify } from 'yaml';
import type { BenchmarkBody, Manifest, Metric } from '../schemas/artifact.ts';
import { ExpError } from '../schemas/errors.ts';
import type { Plan, PlanNode } from '../schemas/plan.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import type { MlflowStatus } from './adapters/mlflow.ts';
import { openDedup, type TrackingPayload } from './adapters/mlflow-delivery.ts';
import { finiteMetrics, type LogBatch, paramsOf, redact, splitBatches, tagsOf } from './adapters/mlflow-limits.ts';
import type { Outbox } from './adapters/outbox.ts';
import { readStanding } from './adapters/spend-ledger.ts';
import type { CpuActivities, NodeOutcome } from './index.ts';

export interface TrackingDeps {
  pool: Pool;
  store: ArtifactStore;
  outbox: Outbox<TrackingPayload>;
  plans: { load(planBlob: string): Promise<Plan> };
}

type TrackingActivities = Pick<CpuActivities, 'trackRunStarted' | 'trackNode' | 'trackArm' | 'finishRun'>;

/** Where a node stands: whose plan, which arm, which vertex. */
interface NodePlace {
  run: string;
  plan: Plan;
  arm: string;
  node: PlanNode;
}

/** How long starting and ending a run wait for MLflow to have everything; then the outbox goes on alone. */
const FLUSH_MS = 5_000;
/** Files a reader opens in MLflow's pages; the rest stays in the artifact store. */
const SHOWN_FILE = /\.(json|jsonl|md|csv|yaml|txt)$/;
const SHOWN_BYTES = 1_000_000;

const MLFLOW_STATUS: Record<string, MlflowStatus> = {
  done: 'FINISHED',
  failed: 'FAILED',
  gate_failed: 'FAILED',
  budget: 'FAILED',
  cancelled: 'KILLED',
  skipped: 'KILLED',
};

export const armPath = (run: string, arm: string): string => `${run}/${arm}`;
export const nodePath = (run: string, arm: string, node: string): string => `${run}/${arm}/${node}`;

/** What a payload's dedup key carries besides its path: a resumed run says its endings anew, a retried activity does not. */
const execution = (): string => Context.current().info.workflowExecution?.runId ?? 'direct';

export const createTrackingActivities = ({ pool, store, outbox, plans }: TrackingDeps): TrackingActivities => {
  const log = async (run: string, path: string, dedup: string, batch: Partial<LogBatch>): Promise<void> => {
    const batches = splitBatches({ metrics: [], params: [], tags: [], ...batch });
    for (const [part, one] of batches.entries()) {
      await outbox.enqueue(`log ${path} ${dedup} ${part}`, run, { op: 'log', path, batch: one });
    }
  };
  const file = (run: string, path: string, name: string, blob: string): Promise<void> =>
    outbox.enqueue(`file ${path} ${name} ${blob}`, run, { op: 'file', path, name, blob });
  const end = async (run: string, path: string, status: string): Promise<void> => {
    await log(run, path, `end ${execution()}`, { tags: tagsOf({ 'exp.status': status }) });
    const payload: TrackingPayload = {
      op: 'status',
      path,
      status: MLFLOW_STATUS[status] ?? 'FAILED',
      at_ms: Date.now(),
    };
    await outbox.enqueue(`end ${path} ${execution()}`, run, payload);
  };

  return {
    /** Open the submit's run, or open it again when the run is resumed. */
    async trackRunStarted({ run, plan: planBlob }) {
      const plan = await plans.load(planBlob);
      await openTop(outbox, run, plan);
      await outbox.enqueue(`reopen ${run} ${execution()}`, run, {
        op: 'status',
        path: run,
        status: 'RUNNING',
        at_ms: null,
      });
      await log(run, run, 'parameters', { params: paramsOf(plan.spec) });
      const spec = redact(plan.spec);
      await file(run, run, 'spec.yaml', await store.putBlob(Buffer.from(stringify(spec, { lineWidth: 120 }))));
      await file(run, run, 'plan.json', await store.putBlob(readable(redact(plan))));
      await outbox.flush(run, FLUSH_MS);
    },

    /** Tell how a node ended: its parameters, its curves as its artifact holds them, the files worth reading. */
    async trackNode({ run, plan: planBlob, arm, outcome }) {
      const plan = await plans.load(planBlob);
      const place: NodePlace = { run, plan, arm, node: nodeOf(plan, arm, outcome.id) };
      const path = nodePath(run, arm, outcome.id);
      await openNode(outbox, place, outcome.reused ? Date.now() : await startedAt(pool, outcome.key));
      await log(run, armPath(run, arm), 'changes', { params: paramsOf(changesOf(plan, arm)) });

      const manifest = outcome.artifact ? await store.manifest(outcome.artifact) : null;
      const metrics = manifest?.metrics ?? (await recordedMetrics(pool, outcome.key, 0));
      await log(run, path, `outcome ${execution()}`, {
        tags: outcomeTags(outcome),
        params: parametersOf(place.node),
        metrics: finiteMetrics(metrics),
      });
      if (manifest) {
        await file(run, path, 'manifest.json', await store.putBlob(readable(manifest)));
        for (const shown of shownFiles(manifest)) await file(run, path, shown.name, shown.sha256);
        await log(run, armPath(run, arm), `results ${outcome.id}`, { metrics: armResults(place, manifest) });
      }
      await end(run, path, outcome.status);
    },

    async trackArm({ run, arm, status }) {
      await end(run, armPath(run, arm), status);
    },

    /** The run's own ending: in PostgreSQL for `exp status`, and on every level in MLflow. */
    async finishRun({ run, status }) {
      await log(run, run, `spend ${execution()}`, { metrics: await spendMetrics(pool, run) });
      await end(run, run, status);
      await outbox.enqueue(`settle ${run} ${execution()}`, run, { op: 'settle', path: run, at_ms: Date.now() });
      await outbox.flush(run, FLUSH_MS);
      await pool.query('update runs set status = $2, ended_at = coalesce(ended_at, now()) where id = $1', [
        run,
        status,
      ]);
    },
  };
};

/** Curves while they grow: what a running node has recorded goes to every run that is waiting for it. */
export function createLiveTracking({ pool, outbox, plans }: Omit<TrackingDeps, 'store'>) {
  /** Time of the newest point already handed over, by path. Lost with the process: then points are sent again, as the same rows. */
  const sentThrough = new Map<string, number>();

  async function trackLive(place: NodePlace): Promise<void> {
    const { run, arm, node } = place;
    const path = nodePath(run, arm, node.id);
    if (!sentThrough.has(path)) await openNode(outbox, place, await startedAt(pool, node.key));
    const from = sentThrough.get(path) ?? 0;
    const metrics = await recordedMetrics(pool, node.key, from);
    const through = Math.max(from, ...metrics.map(({ timestamp_ms }) => timestamp_ms));
    if (metrics.length > 0 && through > from) {
      const batches = splitBatches({ metrics: finiteMetrics(metrics), params: [], tags: [] });
      for (const [part, batch] of batches.entries()) {
        await outbox.enqueue(`live ${path} ${from} ${through} ${metrics.length} ${part}`, run, {
          op: 'log',
          path,
          batch,
        });
      }
    }
    sentThrough.set(path, through);
  }

  /** One look over all active runs; called by the worker that drains the outbox. */
  async function trackRunning(): Promise<void> {
    const { rows: runs } = await pool.query<{ id: string; plan_blob: string }>(
      `select id, plan_blob from runs where status = 'running' and exists (select 1 from outbox where dedup = 'open ' || runs.id)`,
    );
    const { rows: progress } = await pool.query<{ key: string }>(
      "select key from node_progress where status = 'running'",
    );
    const running = new Set(progress.map(({ key }) => key));
    if (running.size === 0) return;
    for (const { id: run, plan_blob } of runs) {
      const plan = await plans.load(plan_blob);
      for (const arm of plan.arms) {
        const nodes = arm.nodes.filter(({ key }) => running.has(key));
        for (const node of nodes) await trackLive({ run, plan, arm: arm.name, node });
      }
    }
  }

  return { trackLive, trackRunning };
}

/** What a run has spent in all of its executions, where it ends. */
async function spendMetrics(pool: Pool, run: string): Promise<Metric[]> {
  const { spent } = await readStanding(pool, run);
  const timestamp_ms = Date.now();
  return Object.entries(spent).map(([name, value]) => ({ name: `spend/${name}`, step: 0, value, timestamp_ms }));
}

const readable = (document: unknown): Buffer => Buffer.from(`${JSON.stringify(document, null, 2)}\n`);

async function openTop(outbox: TrackingDeps['outbox'], run: string, plan: Plan): Promise<void> {
  const { description } = plan.spec as { description?: string };
  await open(outbox, run, plan, {
    path: run,
    parent: null,
    name: run,
    tags: {
      'exp.run': run,
      'exp.run_key': plan.run_key,
      'exp.profile': plan.profile,
      'mlflow.source.name': plan.spec_path,
      ...(description !== undefined && { 'mlflow.note.content': description }),
    },
    start_ms: Date.now(),
  });
}

async function openNode(
  outbox: TrackingDeps['outbox'],
  { run, plan, arm, node }: NodePlace,
  start_ms: number,
): Promise<void> {
  const parent = armPath(run, arm);
  const seed = plan.arms.find(({ name }) => name === arm)?.seed;
  const armTags = { 'exp.run': run, 'exp.arm': arm, ...(seed !== undefined && { 'exp.seed': String(seed) }) };
  await open(outbox, run, plan, { path: parent, parent: run, name: arm, tags: armTags, start_ms: Date.now() });
  await open(outbox, run, plan, {
    path: nodePath(run, arm, node.id),
    parent,
    name: node.id,
    tags: { 'exp.run': run, 'exp.arm': arm, 'exp.node': node.id, 'exp.kind': node.kind, 'exp.key': node.key },
    start_ms,
  });
}

interface Opening {
  path: string;
  parent: string | null;
  name: string;
  tags: Record<string, string>;
  start_ms: number;
}

async function open(
  outbox: TrackingDeps['outbox'],
  run: string,
  plan: Plan,
  { tags, ...rest }: Opening,
): Promise<void> {
  const experiment = plan.tracking.mlflow_experiment;
  await outbox.enqueue(openDedup(rest.path), run, { op: 'open', experiment, tags: tagsOf(tags), ...rest });
}

/** What sets an arm apart is its only parameters, so that MLflow's own comparison of arms shows just that. */
function changesOf(plan: Plan, arm: string): Record<string, unknown> {
  const changes = plan.arms.find(({ name }) => name === arm)?.changes ?? {};
  return Object.fromEntries(Object.entries(changes).map(([path, value]) => [path, value ?? 'unset']));
}

function nodeOf(plan: Plan, arm: string, id: string): PlanNode {
  const node = plan.arms.find(({ name }) => name === arm)?.nodes.find((candidate) => candidate.id === id);
  if (!node) throw new ExpError('PLAN', `${arm}/${id}`, 'the stored plan has no such node');
  return node;
}

/** When the node began, by the clock of PostgreSQL; now, if it never did. */
async function startedAt(pool: Pool, key: string): Promise<number> {
  const { rows } = await pool.query<{ started_at: Date | null }>(
    'select started_at from node_progress where key = $1',
    [key],
  );
  return rows[0]?.started_at?.getTime() ?? Date.now();
}

/** Points recorded after a time. They keep the timestamp of their first write, so sending them twice makes no second point. */
async function recordedMetrics(pool: Pool, key: string, afterMs: number): Promise<Metric[]> {
  const { rows } = await pool.query<Omit<Metric, 'timestamp_ms'> & { timestamp_ms: string }>(
    'select name, step, value, timestamp_ms from node_metrics where key = $1 and timestamp_ms > $2 order by timestamp_ms, name, step',
    [key, afterMs],
  );
  return rows.map((row) => ({ ...row, timestamp_ms: Number(row.timestamp_ms) }));
}

function outcomeTags({ reused, artifact, error }: NodeOutcome): LogBatch['tags'] {
  return tagsOf({
    'exp.reused': String(reused ?? false),
    ...(artifact && { 'exp.digest': artifact.digest, 'exp.generation': String(artifact.generation) }),
    ...(error && { 'exp.error_code': error.code, 'exp.error': error.message }),
  });
}

function parametersOf({ kind, kind_version, seed, parameters }: PlanNode): LogBatch['params'] {
  return paramsOf({ kind, kind_version, ...(seed !== null && { seed }), ...parameters });
}

function shownFiles({ files }: Manifest): Manifest['files'] {
  return files.filter(({ name, bytes }) => SHOWN_FILE.test(name) && bytes <= SHOWN_BYTES);
}

/**
 * The results of a benchmark, repeated on its arm, where ablations are compared: one curve per result, whose steps
 * are the checkpoints in the order of the plan.
 */
function armResults({ plan, arm, node }: NodePlace, manifest: Manifest): Metric[] {
  if (node.kind !== 'benchmark') return [];
  const { benchmark, results } = manifest.body as unknown as BenchmarkBody;
  const family = (id: string): string => id.split('.')[0] as string;
  const nodes = plan.arms.find(({ name }) => name === arm)?.nodes ?? [];
  const siblings = nodes.filter(({ kind, id }) => kind === 'benchmark' && family(id) === family(node.id));
  const step = siblings.findIndex(({ id }) => id === node.id);
  const timestamp_ms = Date.parse(manifest.created_at);
  const points = Object.entries(results).map(([name, { value }]) => ({
    name: `eval/${benchmark}/${name}`,
    step,
    value,
    timestamp_ms,
  }));
  return finiteMetrics(points);
}
