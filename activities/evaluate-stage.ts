import { resultMetrics } from '../environments/deep-research/benchmarks/metric-names.ts';
import { resultOf, scoreQuestions } from '../environments/deep-research/benchmarks/score-benchmark.ts';
import { ExpError } from '../schemas/errors.ts';
import { nodeOf } from '../schemas/node-parameters.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import type { StageActivities } from './index.ts';
import { readByTask } from './measure-pass-rates.ts';
import type { NodeProgress } from './node-progress.ts';
import type { PlanReader } from './plan-reader.ts';
import { withPulse } from './pulse.ts';
import { readTasks } from './task-files.ts';

export interface EvaluateStageDeps {
  plans: PlanReader;
  store: ArtifactStore;
  progress: NodeProgress;
}

export const createEvaluateStageActivities = ({
  plans,
  store,
  progress,
}: EvaluateStageDeps): Pick<StageActivities, 'recordEvaluation'> => ({
  /** Scores as the benchmark itself has them, without its baselines, as points at `step` of the stage's curves. */
  recordEvaluation: ({ node: ref, step, shards }) =>
    withPulse(async (moved) => {
      const { evaluate } = nodeOf('rl', await plans.node(ref)).parameters;
      const input = (await plans.inputs(ref)).find(({ id }) => id === evaluate?.questions);
      if (!evaluate || !input) throw new ExpError('PLAN', ref.id, 'evaluates nothing');
      const samples = await readByTask(store, shards, (trajectory) => trajectory, moved);
      const results = [];
      for await (const task of readTasks(store, input.manifest)) {
        const of = samples.get(task.task_id);
        if (of) results.push(resultOf(task, { samples: of, closedBook: [], rules: {}, seenTemplates: new Set() }));
      }
      const { benchmark, protocol } = evaluate;
      const scores = scoreQuestions(results, { benchmark, samples: protocol.samples, metrics: protocol.metrics });
      await progress.record(ref.key, step, resultMetrics(benchmark, results, scores));
    }),
});
