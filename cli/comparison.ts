/** Arms of runs beside each other: read from their plans and artifacts, seeds pooled, paired with a control by question. */
import { readFile } from 'node:fs/promises';
import type { ArtifactStore } from '../activities/adapters/artifact-store.ts';
import {
  comparePaired,
  type PairedComparison,
  poolSeeds,
  type QuestionValues,
  questionValue,
} from '../environments/deep-research/benchmarks/paired.ts';
import type { QuestionResult } from '../environments/deep-research/benchmarks/score-benchmark.ts';
import { bootstrapMean, type Estimate } from '../environments/deep-research/benchmarks/statistics.ts';
import type { BenchmarkBody } from '../schemas/artifact.ts';
import { canonicalJson } from '../schemas/canonical.ts';
import { ExpError } from '../schemas/errors.ts';
import type { Experiment } from '../schemas/experiment.ts';
import type { Plan, PlanArm } from '../schemas/plan.ts';

/** One benchmark of one arm at one checkpoint. */
interface Measured {
  arm: string;
  /** Run and arm without its seed; arms that differ in their seed alone are one. */
  group: string;
  seed: string;
  leaves: ReadonlyMap<string, string>;
  body: BenchmarkBody;
  questions: readonly QuestionResult[];
}

export interface ComparedRow {
  name: string;
  /** The leaves of the spec in which rows differ. */
  differs: Record<string, string>;
  /** One for each seed; the row's own value pools them by question. */
  seeds: { seed: string; value: Estimate }[];
  after: string;
  value: Estimate;
  /** Null for the control itself. */
  paired: PairedComparison | null;
}

export interface Comparison {
  benchmark: string;
  metric: string;
  control: string;
  rows: ComparedRow[];
  /** Arms that were measured by another protocol than the control, and in what it differs. */
  refused: { name: string; reason: string }[];
  /** Arms without a result. */
  missing: string[];
  /** Published results of other systems: beside ours, never paired with them. */
  references: PublishedResult[];
}

export interface PublishedResult {
  name: string;
  /** Share, as ours. */
  value: number;
  /** In words: what is known of how it was measured. */
  protocol: string;
}

export interface ComparisonOptions {
  /** `eval/BENCHMARK/METRIC`; the first metric of every benchmark when absent. */
  metric?: string | undefined;
  /** A stage, `base` or `last`; the last when absent. */
  at?: string | undefined;
  control?: string | undefined;
}

const SEED_PART = /^(.*\.)?seed=/;
/** Leaves that tell runs apart and change no result. */
const UNKEYED =
  /^(api_version|name|description|extends|vars|tracking|ablations|sweep|benchmark_defaults|references|compare|budget)(\.|$)|(^|\.)seed$/;

export async function compareRuns(
  store: ArtifactStore,
  runs: readonly { id: string; plan: Plan }[],
  asked: ComparisonOptions,
): Promise<Comparison[]> {
  const spec = runs[0]?.plan.spec as Partial<Experiment> | undefined;
  const severalRuns = runs.length > 1;
  const declared = spec?.compare ?? {};
  const options = {
    metric: asked.metric ?? declared.metric,
    at: asked.at ?? declared.at ?? 'last',
    // Among several runs, an arm is named with its run.
    control: asked.control ?? (severalRuns ? undefined : declared.control),
  };
  const measured: Measured[] = [];
  const missing: string[] = [];
  for (const { id, plan } of runs) {
    for (const arm of plan.arms) {
      const { group, seed } = groupOf(arm, severalRuns ? id : null);
      const found = await readMeasured(store, arm, options.at);
      const name = severalRuns ? `${id}/${arm.name}` : arm.name;
      if (found.length === 0) missing.push(name);
      measured.push(...found.map((one) => ({ ...one, arm: name, group, seed, leaves: leavesOf(plan, arm) })));
    }
  }
  const [, wanted, metric] = options.metric?.match(/^eval\/([^/]+)\/([^/]+)$/) ?? [];
  if (options.metric !== undefined && wanted === undefined)
    throw new ExpError('USAGE', options.metric, 'a metric is eval/BENCHMARK/METRIC, such as eval/held_out/avg_at_2');
  const names = [...new Set(measured.map(({ body }) => body.benchmark))].filter((name) => name === (wanted ?? name));
  if (names.length === 0) throw new ExpError('NO_RESULT', options.metric ?? 'compare', 'no arm has a result of this');
  return names.map((name) =>
    compareBenchmark(
      measured.filter(({ body }) => body.benchmark === name),
      { benchmark: name, metric, control: options.control, missing, references: publishedFor(name, spec?.references) },
    ),
  );
}

/** What a spec says others have measured on a benchmark. */
export function publishedFor(benchmark: string, references: Experiment['references'] = {}): PublishedResult[] {
  return Object.entries(references).flatMap(([name, { world, protocol, [benchmark]: result }]) => {
    if (result === undefined || typeof result === 'string') return [];
    const { value, protocol: own } = typeof result === 'number' ? { value: result, protocol: undefined } : result;
    const words = [`world ${world}`, protocol, own].filter((part) => part !== undefined);
    return [{ name, value: value / 100, protocol: words.join('; ') }];
  });
}

function groupOf({ name, seed }: PlanArm, run: string | null): { group: string; seed: string } {
  const parts = name.split(',');
  const others = parts.filter((part) => !SEED_PART.test(part)).join(',');
  const own = parts.filter((part) => SEED_PART.test(part)).join(',');
  const group = run === null ? others || 'all seeds' : [run, others].filter((part) => part !== '').join('/');
  return { group, seed: own || `seed=${seed}` };
}

/** Results of an arm, of each benchmark at the checkpoint that `at` names. */
async function readMeasured(
  store: ArtifactStore,
  arm: PlanArm,
  at: string,
): Promise<Pick<Measured, 'body' | 'questions'>[]> {
  const nodes = arm.nodes.filter(({ kind }) => kind === 'benchmark');
  const byName = groupBy(nodes, ({ id }) => id.split('.')[0] as string);
  const chosen = [...byName.values()].flatMap((family) =>
    at === 'last' ? family.slice(-1) : family.filter(({ id }) => id.endsWith(`.${at}`)),
  );
  const published = await store.findAll(chosen.map(({ key }) => key));
  return Promise.all(
    chosen.flatMap(({ key }) => {
      const artifact = published.get(key);
      if (artifact === undefined) return [];
      return [
        store.manifest(artifact).then(async (manifest) => ({
          body: manifest.body as unknown as BenchmarkBody,
          questions: questionsOf(await readFile(await store.openFile(manifest, 'results.jsonl'), 'utf8')),
        })),
      ];
    }),
  );
}

function groupBy<T>(items: readonly T[], nameOf: (item: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const item of items) {
    const group = groups.get(nameOf(item));
    if (group) group.push(item);
    else groups.set(nameOf(item), [item]);
  }
  return groups;
}

const questionsOf = (text: string): QuestionResult[] =>
  text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as QuestionResult);

function compareBenchmark(
  measured: readonly Measured[],
  {
    benchmark,
    metric: wanted,
    control: wantedControl,
    ...rest
  }: Pick<Comparison, 'benchmark' | 'missing' | 'references'> & {
    metric: string | undefined;
    control: string | undefined;
  },
): Comparison {
  const groups = groupBy(measured, ({ group }) => group);
  const control = wantedControl ?? (groups.has('control') ? 'control' : ([...groups.keys()][0] as string));
  const base = groups.get(control)?.[0];
  if (base === undefined)
    throw new ExpError(
      'CONTROL_UNKNOWN',
      control,
      `no such arm has a result; there are ${[...groups.keys()].join(', ')}`,
    );
  const metric = wanted ?? (Object.keys(base.body.results)[0] as string);
  if (base.body.results[metric] === undefined)
    throw new ExpError('METRIC_UNKNOWN', metric, `there are ${Object.keys(base.body.results).join(', ')}`);

  const protocol = canonicalJson(base.body.protocol);
  const isComparable = ({ body }: Measured): boolean => canonicalJson(body.protocol) === protocol;
  const refused = measured
    .filter((one) => !isComparable(one))
    .map(({ arm, body }) => ({ name: arm, reason: protocolDifference(base.body.protocol, body.protocol) }));
  const kept = [...groupBy(measured.filter(isComparable), ({ group }) => group)];
  const differing = differingLeaves(kept.map(([, members]) => (members[0] as Measured).leaves));
  const pooled = new Map(kept.map(([name, members]) => [name, poolSeeds(members.map((one) => valuesOf(one, metric)))]));
  const controlValues = pooled.get(control) as QuestionValues;
  const rows = kept.map(([name, members]): ComparedRow => {
    const [first] = members as [Measured];
    const values = pooled.get(name) as QuestionValues;
    return {
      name,
      differs: Object.fromEntries(differing.map((leaf) => [leaf, first.leaves.get(leaf) ?? '–'])),
      seeds: members.map((one) => ({
        seed: one.seed,
        value: bootstrapMean([...valuesOf(one, metric).values()], benchmark),
      })),
      after: first.body.after,
      value: bootstrapMean([...values.values()], benchmark),
      paired: name === control ? null : comparePaired(controlValues, values, benchmark),
    };
  });
  return { benchmark, metric, control, rows, refused, ...rest };
}

function valuesOf({ questions }: Measured, metric: string): QuestionValues {
  return new Map(
    questions.flatMap((question): [string, number][] => {
      const value = questionValue(metric, question);
      return value === null ? [] : [[question.task_id, value]];
    }),
  );
}

/** Leaves of the spec as this arm has it, by dotted path. */
function leavesOf({ spec }: Plan, { changes }: PlanArm): Map<string, string> {
  const leaves = flatten(spec);
  for (const [path, value] of Object.entries(changes)) {
    // A map is merged with what is there; anything else takes its place.
    if (value === null || typeof value !== 'object' || Array.isArray(value))
      for (const leaf of [...leaves.keys()]) if (leaf === path || leaf.startsWith(`${path}.`)) leaves.delete(leaf);
    if (value !== null) for (const [leaf, text] of flatten(value, path)) leaves.set(leaf, text);
  }
  for (const leaf of [...leaves.keys()]) if (UNKEYED.test(leaf)) leaves.delete(leaf);
  return leaves;
}

function flatten(value: unknown, path = ''): Map<string, string> {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    return new Map([[path, typeof value === 'string' ? value : JSON.stringify(value)]]);
  return new Map(
    Object.entries(value).flatMap(([name, inner]) => [...flatten(inner, path === '' ? name : `${path}.${name}`)]),
  );
}

function differingLeaves(rows: readonly ReadonlyMap<string, string>[]): string[] {
  const all = new Set(rows.flatMap((leaves) => [...leaves.keys()]));
  return [...all].filter((leaf) => new Set(rows.map((leaves) => leaves.get(leaf))).size > 1);
}

function protocolDifference(control: unknown, other: unknown): string {
  const [ours, theirs] = [flatten(control), flatten(other)];
  const names = differingLeaves([ours, theirs]);
  return names.map((name) => `${name} is ${theirs.get(name) ?? '–'}, not ${ours.get(name) ?? '–'}`).join('; ');
}
