/** Everything a report says, read from PostgreSQL, the artifact store and the workflows' histories. Writes nothing. */
import { stringify } from 'yaml';
import { redact } from '../../activities/adapters/mlflow-limits.ts';
import type { BenchmarkBody, CorpusBody, Metric, TasksBody, TrajectoriesBody } from '../../schemas/artifact.ts';
import { ExpError } from '../../schemas/errors.ts';
import type { Unkeyed } from '../../schemas/node-parameters.ts';
import type { Plan } from '../../schemas/plan.ts';
import type { Profile } from '../../schemas/profile.ts';
import { compareRuns } from '../comparison.ts';
import type { Stack } from '../open-stack.ts';
import { readHistory } from '../run-history.ts';
import { RunReader, type RunRow, type RunState } from '../run-state.ts';
import { groupBenchmarks } from './benchmarks.ts';
import type {
  ArmComparison,
  CostLine,
  ReportedArm,
  ReportedRun,
  RunReport,
  ShownTrajectory,
  StageCurves,
  TimelineEvent,
} from './document.ts';
import { licencesOf } from './licences.ts';
import { readPassRates } from './pass-rates.ts';
import { bodiesOf, metricsOf, type NodeFacts, readNodes } from './read-nodes.ts';
import { readTrajectories } from './read-trajectories.ts';
import type { Tally } from './tally.ts';

export interface CollectOptions {
  row: RunRow;
  /** Trajectories the reader holds at most. */
  trajectories: number;
  /** The arm others are compared with; the first one when absent. */
  control: string | undefined;
  onFile(done: number, files: number): void;
}

export interface Collected {
  report: RunReport;
  /** Those of the report's index, in its order. */
  shown(): AsyncGenerator<ShownTrajectory>;
}

export async function collectReport(stack: Stack, profile: Profile, options: CollectOptions): Promise<Collected> {
  const { row } = options;
  const plan = await stack.store.readJson<Plan>(row.plan_blob);
  const state = await new RunReader(stack, row.id).read();
  const nodes = await readNodes(stack, plan, state);
  const read = await readTrajectories(stack, nodes, {
    most: options.trajectories,
    seed: row.id,
    onFile: options.onFile,
  });
  const { comparisons, problem } = await compareArms(stack, plan, options);
  const history = await readEvents(stack, plan, row);
  const report: RunReport = {
    run: runOf(row, plan, state),
    arms: armsOf(plan, state),
    nodes: nodes.map(({ reported }) => reported),
    licences: licencesOf(plan, profile),
    corpora: bodiesOf<CorpusBody>(nodes, 'corpus').map(({ node, body: { pages, bytes, dropped } }) => ({
      node,
      body: { pages, bytes, dropped },
    })),
    tasks: bodiesOf<TasksBody>(nodes, 'tasks'),
    demonstrations: bodiesOf<TrajectoriesBody>(nodes, 'trajectories'),
    curves: await curvesOf(stack, nodes),
    profiles: await readPassRates(stack, nodes),
    usage: [...read.tallies.values()].map(({ usage }) => usage),
    cost: nodes.flatMap((node) => costOf(node, read.tallies.get(node.reported.name), profile)),
    currency: profile.prices.currency,
    benchmarks: groupBenchmarks(bodiesOf<BenchmarkBody>(nodes, 'benchmark'), nodes, plan.spec),
    comparisons,
    events: history.events,
    trajectories: read.index,
    notes: [
      ...(state.status === 'running' ? ['The run was still going on when this was written.'] : []),
      ...(profile.name === plan.profile
        ? []
        : [`Licences of models and prices are those of the profile ${profile.name}; the run used ${plan.profile}.`]),
      ...problem,
      ...history.notes,
      ...read.notes,
    ],
  };
  return { report, shown: read.shown };
}

function runOf(row: RunRow, plan: Plan, state: RunState): ReportedRun {
  const { description } = plan.spec as { description?: string };
  return {
    id: row.id,
    name: row.name,
    description: description ?? '',
    status: state.status,
    profile: plan.profile,
    run_key: plan.run_key,
    spec_path: plan.spec_path,
    spec: stringify(redact(plan.spec), { lineWidth: 120 }),
    created_ms: row.created_at.getTime(),
    ended_ms: row.ended_at?.getTime() ?? null,
    mlflow_url: row.mlflow_url,
  };
}

function armsOf({ arms }: Plan, state: RunState): ReportedArm[] {
  const asText = (value: unknown): string =>
    value === null ? 'unset' : typeof value === 'string' ? value : JSON.stringify(value);
  return arms.map(({ name, seed, changes }) => ({
    name,
    seed,
    status: state.arms.find(({ arm }) => arm === name)?.status ?? 'waiting',
    // Plans that were frozen before there were ablations have none.
    changes: Object.fromEntries(Object.entries(redact(changes ?? {})).map(([path, value]) => [path, asText(value)])),
  }));
}

const TRAINS = new Set(['sft', 'rl']);

async function curvesOf(stack: Stack, nodes: readonly NodeFacts[]): Promise<StageCurves[]> {
  const trained = nodes.filter(({ node }) => TRAINS.has(node.kind));
  const curves = await Promise.all(
    trained.map(async (facts) => ({
      node: facts.reported.name,
      kind: facts.node.kind,
      metrics: byName(await metricsOf(stack, facts)),
    })),
  );
  return curves.filter(({ metrics }) => Object.keys(metrics).length > 0);
}

function byName(metrics: readonly Metric[]): StageCurves['metrics'] {
  const curves: StageCurves['metrics'] = {};
  for (const { name, step, value } of metrics.toSorted((a, b) => a.step - b.step)) {
    curves[name] ??= [];
    curves[name].push([step, value]);
  }
  return curves;
}

/** What a node that worked in this run used, at the prices of the profile. */
function costOf({ node, reported }: NodeFacts, tally: Tally | undefined, { prices }: Profile): CostLine[] {
  const { started_ms, ended_ms, status } = reported;
  if (status === 'reused' || started_ms === null || ended_ms === null) return [];
  const isSampled = node.kind !== 'trajectories'; // demonstrations are written by a script, not sampled from an engine
  const totals = (isSampled ? tally?.totals : undefined) ?? {
    trajectories: 0,
    tokens: 0,
    action_tokens: 0,
    tool_calls: 0,
  };
  const { gpu: gpus = 0, nodes: machines = 1 } = (node.unkeyed as Unkeyed).resources ?? {};
  const seconds = (ended_ms - started_ms) / 1000;
  const hourly = gpus > 0 ? gpus * prices.gpu_hour : machines * prices.cpu_hour;
  const price =
    (seconds / 3600) * hourly +
    (totals.tokens / 1e6) * prices.million_tokens +
    (totals.tool_calls / 1000) * prices.thousand_tool_calls;
  return [{ node: reported.name, ...totals, seconds, gpus, price }];
}

/** A run of one arm has nothing to compare; arms without results are told, not fatal, unless a control was asked for. */
async function compareArms(
  { store }: Stack,
  plan: Plan,
  { row, control }: CollectOptions,
): Promise<{ comparisons: ArmComparison[]; problem: string[] }> {
  if (plan.arms.length < 2) return { comparisons: [], problem: [] };
  try {
    const comparisons = await compareRuns(store, [{ id: row.id, plan }], { control });
    return {
      comparisons: comparisons.map((one) => ({
        ...one,
        rows: one.rows.map((compared) => ({ ...compared, seeds: compared.seeds.length })),
      })),
      problem: [],
    };
  } catch (error) {
    if (!(error instanceof ExpError) || control !== undefined) throw error;
    return { comparisons: [], problem: [`Arms are not compared: ${error.message}`] };
  }
}

/** Histories are kept for a while only; a report without them says so. */
async function readEvents(
  stack: Stack,
  plan: Plan,
  row: RunRow,
): Promise<{ events: TimelineEvent[]; notes: string[] }> {
  try {
    const entries = await readHistory(await stack.temporal(), { run: row.id, since: row.created_at, plan, all: false });
    if (entries.length === 0)
      return {
        events: [],
        notes: ['Temporal no longer has the histories of this run: retries and crashes are not known.'],
      };
    const events = entries.flatMap(({ where, at, mark, text }): TimelineEvent[] =>
      mark === null || (row.ended_at !== null && at > row.ended_at) ? [] : [{ where, at_ms: at.getTime(), mark, text }],
    );
    return { events, notes: [] };
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    return { events: [], notes: [`Histories could not be read, so retries and crashes are not known: ${reason}`] };
  }
}
