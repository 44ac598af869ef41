/** From tasks to the trainer's batch by the product's own activities: rolloutBatch, then planRlStep. */
import { join } from 'node:path';
import { MockActivityEnvironment } from '@temporalio/testing';
import type pg from 'pg';
import type { ArtifactStore } from '../../../activities/adapters/artifact-store.ts';
import type { EnginePool } from '../../../activities/adapters/engine.ts';
import { SpendLedger } from '../../../activities/adapters/spend-ledger.ts';
import { TurnJournal } from '../../../activities/adapters/turn-journal.ts';
import type { NodeRef, RolloutShard } from '../../../activities/index.ts';
import { createPlanRlStepActivities } from '../../../activities/plan-rl-step.ts';
import type { RolloutSpec } from '../../../activities/prepare-rollouts.ts';
import { readGraded } from '../../../activities/read-shards.ts';
import { createRolloutActivities } from '../../../activities/rollout-batch.ts';
import type { Tokenizer } from '../../../environments/deep-research/prompt.ts';
import type { World } from '../../../environments/environment.ts';
import type { Checkpoint } from '../../../schemas/checkpoint.ts';
import type { Plan } from '../../../schemas/plan.ts';
import type { Task } from '../../../schemas/task.ts';
import type { RecordedEngines } from './recorded-engines.ts';

export interface SampleInput {
  pool: pg.Pool;
  store: ArtifactStore;
  engines: RecordedEngines;
  tokenizer: Tokenizer;
  world: World;
  checkpoint: Checkpoint;
  name: string;
  tasks: readonly Task[];
  sampling: { temperature: number; top_p: number };
  observationTokens: number;
  folder: string;
}

const MANAGEMENT = ['none', 'drop_observations', 'summarize'] as const;
const BATCH = 32;
const FREE = { currency: 'USD', gpu_hour: 0, cpu_hour: 0, million_tokens: 0, thousand_tool_calls: 0 };

export async function sampleBatch(input: SampleInput) {
  const { pool, store, engines, tokenizer, world, checkpoint, name, folder } = input;
  const node: NodeRef = { plan: 'p', arm: 'base', id: name, kind: 'rl', key: name };
  const specs = input.tasks.map((task, index) => specOf(input, task, index));
  const lines = [{ batch_size: BATCH }, ...specs].map((line) => JSON.stringify(line));
  const request = await store.putBlob(Buffer.from(`${lines.join('\n')}\n`));
  const { rolloutBatch } = createRolloutActivities({
    pool,
    engines: engines as unknown as EnginePool,
    store,
    journal: new TurnJournal(pool),
    spend: new SpendLedger({ pool, plans: { load: async () => ({ spec: {} }) as Plan }, prices: FREE }),
    worlds: { open: async () => world },
    judges: { open: async () => async (rows) => rows },
    tokenizers: { load: async () => tokenizer },
    progress: async (_key, done, total, detail) => console.error(`${name}: ${done} of ${total}, ${detail}`),
    work: join(folder, 'work'),
  });
  // All at once, as the workflow's window of batches: the last trajectories of one do not leave the engine idle.
  const shards = await Promise.all(
    Array.from({ length: Math.ceil(specs.length / BATCH) }, (_, batch) => {
      const asked = { node, step: 1, request, batch, checkpoint, holder: `rollouts/${name}` };
      return new MockActivityEnvironment().run(rolloutBatch, asked) as Promise<RolloutShard>;
    }),
  );
  await engines.release(`rollouts/${name}`);

  let planned = '';
  const { planRlStep } = createPlanRlStepActivities({
    plans: { node: async () => ({ id: name, kind: 'rl', parameters: PARAMETERS(input), unkeyed: {} }) },
    store,
    ledger: {
      plan: async (_key: string, _step: number, blob: string) => {
        planned = blob;
      },
    },
    progress: { record: async () => undefined },
    work: join(folder, 'work'),
  } as unknown as Parameters<typeof createPlanRlStepActivities>[0]);
  const step = { node, step: 1, shards, checkpoint, last: true } as Parameters<typeof planRlStep>[0];
  await new MockActivityEnvironment().run(planRlStep, step);
  return { path: await store.openBlob(planned), specs, counts: await countsOf(store, shards) };
}

async function countsOf(store: ArtifactStore, shards: readonly RolloutShard[]) {
  const counts = {
    trajectories: 0,
    with_tool_calls: 0,
    malformed_turns: 0,
    forced_answers: 0,
    summaries: 0,
    failed: 0,
  };
  for await (const { spans, termination } of readGraded(store, shards)) {
    const actions = spans.filter(({ kind }) => kind === 'action');
    counts.trajectories += 1;
    counts.with_tool_calls += Number(actions.some(({ tool }) => tool === 'search' || tool === 'visit'));
    counts.malformed_turns += actions.filter(({ status }) => status === 'malformed').length;
    counts.forced_answers += spans.filter(({ status }) => status === 'forced').length;
    counts.summaries += spans.filter(({ status }) => status === 'summary').length;
    counts.failed += Number(termination === 'failed');
  }
  return counts;
}

/** One group, so that no trajectory is left out of the batch as teaching nothing. */
function specOf({ name, sampling, observationTokens }: SampleInput, task: Task, index: number): RolloutSpec {
  return {
    trajectory_id: `${name}/${task.task_id}`,
    task,
    group_id: 'all',
    sample: index,
    seed: 1_000_000 + index,
    agent: {
      tools: ['search', 'visit'],
      max_turns: 5,
      max_turn_tokens: 96,
      observation_tokens: observationTokens,
      search_results: 3,
      context_management: MANAGEMENT[index % MANAGEMENT.length] as (typeof MANAGEMENT)[number],
      terminate_on_answer: true,
      deny_urls: 'none',
      faults: { search: { empty: 0.05 }, visit: { truncated: 0.1 } },
    },
    // One observation fits, a second does not.
    context_length: 690,
    sampling,
    cutoff: null,
    reward: { outcome: 'exact_match', format_penalty: 1, judge: null },
  };
}

const PARAMETERS = ({ sampling }: SampleInput) => ({
  rollout: { group_size: 2, prompts_per_step: 1, ...sampling, max_staleness: 0, cutoff: null },
  algorithm: {
    name: 'grpo',
    clip: { low: 0.2, high: 0.2, dual: null },
    kl: null,
    loss: 'token_mean',
    importance: null,
    normalize_std: true,
    igpo: null,
  },
  optimizer: { minibatch: 1 },
  keep: null,
});
