/** What a benchmark's numbers are called in MLflow, measured by itself or within a stage. Pure. */
import type { BenchmarkScores, QuestionResult } from './score-benchmark.ts';
import { meanOf } from './statistics.ts';

export function resultMetrics(
  benchmark: string,
  questions: readonly QuestionResult[],
  { results, groups, answer_in_observation, unfinished, masked }: Omit<BenchmarkScores, 'baselines'>,
): Record<string, number> {
  const prefix = `eval/${benchmark}`;
  return {
    [`${prefix}/f1`]: meanOf(questions.map(({ f1 }) => f1)),
    [`${prefix}/answer_in_observation`]: answer_in_observation,
    [`${prefix}/unfinished`]: unfinished,
    [`${prefix}/masked`]: masked,
    ...Object.fromEntries(
      Object.entries(results).flatMap(([name, { value, low, high }]) => [
        [`${prefix}/${name}`, value],
        [`${prefix}/${name}_low`, low],
        [`${prefix}/${name}_high`, high],
      ]),
    ),
    ...Object.fromEntries(Object.entries(groups).map(([name, { value }]) => [`${prefix}/${name}`, value])),
  };
}
