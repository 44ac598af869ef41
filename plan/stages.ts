/** What a spec says about its stages once sections that inherit are put together. */
import type { Benchmark, Experiment, Stage } from '../schemas/experiment.ts';

const STAGE_REFERENCE = /^\$\{stages\.([a-z][a-z0-9_]*)\.checkpoint\}$/;

/** The stage whose checkpoint a stage starts from; null for the base policy. */
export function parentOf(stage: Stage): string | null {
  return stage.from.match(STAGE_REFERENCE)?.[1] ?? null;
}

export const splitOf = (stage: Stage): string => stage.tasks?.split ?? 'train';

export const trains = (stage: Stage | undefined): boolean => stage?.kind === 'sft' || stage?.kind === 'rl';

/** The last stage in the file that makes weights; `base` when none does. */
export function lastTrained(experiment: Experiment): string {
  return Object.entries(experiment.curriculum).findLast(([, stage]) => trains(stage))?.[0] ?? 'base';
}

/** Whose checkpoints a benchmark measures, each once, with `last` put into words. */
export function measuredAfter(experiment: Experiment, benchmark: Benchmark): string[] {
  const listed = typeof benchmark.after === 'string' ? [benchmark.after] : benchmark.after;
  return [...new Set(listed.map((name) => (name === 'last' ? lastTrained(experiment) : name)))];
}

export const agentOf = (experiment: Experiment, stage: Stage): Experiment['agent'] => ({
  ...experiment.agent,
  ...stage.agent,
});

export function benchmarkAgent(experiment: Experiment, { max_turns, max_turn_tokens }: Benchmark): Experiment['agent'] {
  return {
    ...experiment.agent,
    ...(max_turns !== undefined && { max_turns }),
    ...(max_turn_tokens !== undefined && { max_turn_tokens }),
  };
}

/** Of the benchmark, or of the longest stage; null when neither says one. */
export function benchmarkContext(experiment: Experiment, { context_length }: Benchmark): number | null {
  const lengths = Object.values(experiment.curriculum).map((stage) => stage.context_length);
  return context_length ?? (lengths.length > 0 ? Math.max(...lengths) : null);
}
