/** What a spec says about its stages once sections that inherit are put together. */
import type { Benchmark, Experiment, Stage } from '../schemas/experiment.ts';

const STAGE_REFERENCE = /^\$\{stages\.([a-z][a-z0-9_]*)\.checkpoint\}$/;

/** The stage that a reference to weights names; null for the base policy. */
export const stageNamed = (reference: string): string | null => reference.match(STAGE_REFERENCE)?.[1] ?? null;

/** The stage whose checkpoint a stage starts from; null for the base policy. */
export const parentOf = (stage: Stage): string | null => stageNamed(stage.from);

/** The stages that a stage goes back to, nearest first. */
export function ancestorsOf(experiment: Experiment, name: string): string[] {
  const stage = experiment.curriculum[name];
  const parent = stage && parentOf(stage);
  return parent ? [parent, ...ancestorsOf(experiment, parent)] : [];
}

export const splitOf = (stage: Stage): string => stage.tasks?.split ?? 'train';

export const trains = (stage: Stage | undefined): boolean => stage?.kind === 'sft' || stage?.kind === 'rl';

/** The last stage in the file that makes weights; `base` when none does. */
export function lastTrained(experiment: Experiment): string {
  return Object.entries(experiment.curriculum).findLast(([, stage]) => trains(stage))?.[0] ?? 'base';
}

/** Whose checkpoints a benchmark measures, each once, with `last` put into words. */
export function measuredAfter(experiment: Experiment, benchmark: Pick<Benchmark, 'after'>): string[] {
  const listed = typeof benchmark.after === 'string' ? [benchmark.after] : benchmark.after;
  return [...new Set(listed.map((name) => (name === 'last' ? lastTrained(experiment) : name)))];
}

export const agentOf = (experiment: Experiment, stage: Stage): Experiment['agent'] => ({
  ...experiment.agent,
  ...stage.agent,
});

/** A benchmark with one turn limit. */
export type Protocol = Omit<Benchmark, 'max_turns'> & { max_turns?: number };

/** A list of turn limits is a protocol each, named `NAME_turns_50`. */
export function protocolsOf(name: string, benchmark: Benchmark): [name: string, protocol: Protocol][] {
  const { max_turns, ...rest } = benchmark;
  if (!Array.isArray(max_turns)) return [[name, { ...rest, ...(max_turns !== undefined && { max_turns }) }]];
  return max_turns.map((turns) => [`${name}_turns_${turns}`, { ...rest, max_turns: turns }]);
}

export const allProtocols = ({ benchmarks }: Experiment): [name: string, protocol: Protocol][] =>
  Object.entries(benchmarks).flatMap(([name, benchmark]) => protocolsOf(name, benchmark));

/** Its results, as `publish-benchmark` names them: `avg_at_2`, `pass_at_2`. */
export const resultNames = ({ metrics, samples }: Pick<Benchmark, 'metrics' | 'samples'>): string[] =>
  metrics.map((metric) => metric.replace('@k', `_at_${samples}`));

/** What a benchmark asks, in one form; `name` is a dataset of the profile, `split` a part of the tasks. */
export function datasetOf({ dataset }: Pick<Benchmark, 'dataset'>): Exclude<Benchmark['dataset'], string> {
  return typeof dataset === 'string' ? { name: dataset } : dataset;
}

export function benchmarkAgent(
  experiment: Experiment,
  { max_turns, max_turn_tokens, context_management }: Protocol,
): Experiment['agent'] {
  return {
    ...experiment.agent,
    ...(max_turns !== undefined && { max_turns }),
    ...(max_turn_tokens !== undefined && { max_turn_tokens }),
    ...(context_management !== undefined && { context_management }),
  };
}

/** Node of the plan that holds the tasks of one source, or of all. */
export function tasksNode(experiment: Experiment, source: string | undefined): string {
  const isAll = source === undefined || Object.keys(experiment.tasks.sources).length === 1;
  return isAll ? 'tasks' : `tasks.${source}`;
}

/** Of the benchmark, or of the longest stage; null when neither says one. */
export function benchmarkContext(
  experiment: Experiment,
  { context_length }: Pick<Benchmark, 'context_length'>,
): number | null {
  const lengths = Object.values(experiment.curriculum).map((stage) => stage.context_length);
  return context_length ?? (lengths.length > 0 ? Math.max(...lengths) : null);
}
