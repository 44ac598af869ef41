import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { MockActivityEnvironment } from '@temporalio/testing';
import { expect, test } from 'vitest';
import type { ArtifactStore } from '../../activities/adapters/artifact-store.ts';
import { readParquet, trajectoryColumns, writeParquet } from '../../activities/adapters/parquet.ts';
import type { PlanReader } from '../../activities/plan-reader.ts';
import { createPlanRlStepActivities } from '../../activities/plan-rl-step.ts';
import { scoreBeliefs } from '../../activities/score-beliefs.ts';
import { loadTokenizer, renderPseudoAnswer } from '../../environments/deep-research/prompt.ts';
import { IGPO_PRESETS } from '../../schemas/algorithms.ts';
import type { Span, Trajectory } from '../../schemas/trajectory.ts';
import { modelsDir } from '../../services/home.ts';
import { temporaryFolder } from '../temporary-folder.ts';

const folder = temporaryFolder('exp-beliefs-');

/** Blobs as files of a folder, by digest. */
const store = {
  openBlob: async (sha256: string) => join(folder, sha256),
  putBlob: async (source: string | Buffer) => {
    const bytes = typeof source === 'string' ? readFileSync(source) : source;
    const sha256 = createHash('sha256').update(bytes).digest('hex');
    writeFileSync(join(folder, sha256), bytes);
    return sha256;
  },
  openFile: async () => join(folder, 'tasks.jsonl'),
} as unknown as ArtifactStore;

type Turn = [tool: string | null, action: number, observation: number];

function trajectory(
  id: string,
  group: string,
  outcome: number,
  turns: Turn[],
  own: Partial<Trajectory> = {},
): Trajectory {
  const spans: Span[] = [];
  const push = (kind: Span['kind'], turn: number, tokens: number, tool: string | null) => {
    const start = spans.at(-1)?.end ?? 0;
    const rest = { latency_ms: 0, cached: false, denied: 0, weight_version: '' };
    spans.push({ kind, turn, start, end: start + tokens, tool, status: 'ok', ...rest });
  };
  push('prompt', 0, 3, 'prompt');
  for (const [turn, [tool, action, observation]] of turns.entries()) {
    push('action', turn, action, tool);
    if (observation > 0) push('observation', turn, observation, tool);
  }
  const length = spans.at(-1)?.end ?? 0;
  const mask = Array.from({ length }, (_, at) =>
    spans.some(({ kind, start, end }) => kind === 'action' && at >= start && at < end) ? 1 : 0,
  );
  return {
    trajectory_id: id,
    task_id: `task-${group}`,
    group_id: group,
    sample: Number(id.at(-1)),
    branch: 0,
    checkpoint: 'weights',
    sampling: { temperature: 0.7, top_p: 1, seed: 1 },
    token_ids: mask.map((_, at) => 100 + at),
    mask,
    logprobs: mask.map(() => -1),
    spans,
    reward: { outcome, turns: turns.map(() => null) },
    score: { exact_match: outcome, f1: outcome, format_valid: true, answer_in_observation: false },
    judge: null,
    advantages: [],
    beliefs: [],
    termination: 'answer',
    failure_class: null,
    answer: 'x',
    messages: [],
    ...own,
  };
}

const ref = { plan: 'p', arm: 'main', id: 'stage1', kind: 'rl' as const, key: 'k' };
function plansWith(beliefs: 'trainer' | 'engine'): PlanReader {
  const algorithm = {
    ...{ name: 'igpo', clip: { low: 0.2, high: 0.2, dual: null }, kl: null, entropy: 0, loss: 'token_mean' },
    ...{ importance: null, normalize_std: true, overlong: null, igpo: IGPO_PRESETS.dr_venus },
  };
  const parameters = {
    algorithm,
    rollout: { group_size: 2, prompts_per_step: 2, temperature: 0.7, top_p: 1, max_staleness: 0, cutoff: null },
    optimizer: { minibatch: 1 },
    keep: null,
    policy: { model: 'm' },
    reward: { format_penalty: 1 },
    context_length: 1000,
  };
  return {
    node: async () => ({ ...ref, parameters, unkeyed: { beliefs } }),
    input: async () => ({}),
  } as unknown as PlanReader;
}

const seal = async (rows: Trajectory[]) => {
  const path = join(folder, 'shard.parquet');
  await writeParquet(path, rows, trajectoryColumns);
  return { blob: await store.putBlob(path), trajectories: rows.length, failed: 0 };
};

/** Two groups; with visits in the second and third turn, an answer alone, and one that failed. */
const rows = [
  trajectory('t0', 'a', 1, [
    ['search', 2, 3],
    ['visit', 2, 4],
    ['answer', 3, 0],
  ]),
  trajectory('t1', 'a', 0, [
    ['visit', 2, 2],
    ['answer', 2, 0],
  ]),
  trajectory('t2', 'b', 0, [['answer', 2, 0]]),
  trajectory(
    't3',
    'b',
    0,
    [
      ['search', 2, 2],
      ['answer', 2, 0],
    ],
    { termination: 'failed' },
  ),
  trajectory('t4', 'b', 0, [
    ['search', 2, 2],
    ['answer', 2, 0],
  ]),
];

test('the trainer is asked before the turns that need it, and its answers reach the tokens of those turns', async () => {
  writeFileSync(
    join(folder, 'tasks.jsonl'),
    ['a', 'b'].map((group) => JSON.stringify({ task_id: `task-${group}`, answer: `MIT ${group}` })).join('\n'),
  );
  const tokenizer = await loadTokenizer(join(modelsDir(), 'smollm2-135m-instruct'));
  const deps = { plans: plansWith('trainer'), store, tokenizers: { load: async () => tokenizer }, work: folder };
  const shards = [await seal(rows)];
  type Query = { sequence_id: string; token_ids: number[]; boundaries: number[]; suffix_ids: number[] };
  const asked: Query[] = [];
  const blob = await scoreBeliefs(deps, ref, shards, async ({ batch, out, temperature }) => {
    expect(temperature).toBe(0.7);
    for await (const row of readParquet<Query>(batch)) asked.push(row);
    const beliefs = asked.map(({ sequence_id, boundaries }) => ({
      sequence_id,
      beliefs: boundaries.map((_, at) => (sequence_id === 't0#0' ? -3 + at : -3)),
    }));
    await writeParquet(out, beliefs, { sequence_id: 'VARCHAR', beliefs: 'DOUBLE[]' });
  });

  // At the beginning, and after a visit; the search of t4 is outside the scope, t2 has nothing to compare.
  expect(asked.map(({ sequence_id, boundaries }) => [sequence_id, boundaries])).toEqual([
    ['t0#0', [3, 14]],
    ['t1#0', [3, 7]],
    ['t4#0', [3]],
  ]);
  expect(asked[0]?.token_ids).toHaveLength(14);
  expect(asked[0]?.suffix_ids).toEqual(renderPseudoAnswer(tokenizer, 'MIT a').token_ids);

  const batches: string[] = [];
  const recorded: Record<string, number>[] = [];
  const { planRlStep } = createPlanRlStepActivities({
    plans: deps.plans,
    store,
    ledger: { plan: async (_key: string, _step: number, batch: string) => void batches.push(batch) } as never,
    progress: {
      record: async (_key: string, _step: number, metrics: object) => void recorded.push({ ...metrics }),
    } as never,
    work: folder,
  });
  const environment = new MockActivityEnvironment();
  const input = { node: ref, step: 1, shards, checkpoint: { digest: 'd' } as never, last: true };
  expect(await environment.run(planRlStep, { ...input, beliefs: [blob] })).toEqual({ usable: true });

  // Group b is left out: no outcome and no gain differs. In a, gains are 1 and 0, outcomes 1 and 0: z is ±1, scale 1.
  const trained: Record<string, unknown>[] = [];
  for await (const row of readParquet<Record<string, unknown>>(await store.openBlob(batches[0] as string)))
    trained.push(row);
  expect(trained.map(({ sequence_id, update, turn_rewards }) => [sequence_id, update, turn_rewards])).toEqual([
    ['t0#0', 0, [null, 1, null]],
    ['t1#0', 0, [0, null]],
  ]);
  const about = (value: number) => expect.closeTo(value, 3);
  expect(trained[0]?.['advantages']).toEqual(
    [0, 0, 0, 1.95, 1.95, 0, 0, 0, 1.95, 1.95, 0, 0, 0, 0, 1, 1, 1].map(about),
  );
  expect(trained[1]?.['advantages']).toEqual([0, 0, 0, -1.95, -1.95, 0, 0, -1, -1].map(about));
  expect(recorded[0]).toMatchObject({
    'igpo/ig_active_ratio': 1,
    'rollout/groups': 2,
    'rollout/groups_trained': 1,
  });

  await expect(environment.run(planRlStep, input)).rejects.toThrow('BELIEFS: there is no belief before turn 0');
});

test('beliefs that the engine measured while rolling out come with the shard', async () => {
  const measured = rows.slice(0, 2).map((row, at) => ({ ...row, beliefs: at === 0 ? [-3, null, -2] : [-3, -3] }));
  const batches: string[] = [];
  const { planRlStep } = createPlanRlStepActivities({
    plans: plansWith('engine'),
    store,
    ledger: { plan: async (_key: string, _step: number, batch: string) => void batches.push(batch) } as never,
    progress: { record: async () => undefined } as never,
    work: folder,
  });
  const checkpoint = { digest: 'd' } as never;
  await new MockActivityEnvironment().run(planRlStep, {
    node: ref,
    step: 1,
    shards: [await seal(measured)],
    checkpoint,
    last: true,
  });
  const rewards: unknown[] = [];
  for await (const { turn_rewards } of readParquet<{ turn_rewards: unknown }>(
    await store.openBlob(batches[0] as string),
  ))
    rewards.push(turn_rewards);
  expect(rewards).toEqual([
    [null, 1, null],
    [0, null],
  ]);
});
