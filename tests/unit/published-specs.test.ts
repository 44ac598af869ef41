import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { loadProfile } from '../../plan/profile.ts';
import type { NodeParameters } from '../../schemas/node-parameters.ts';
import type { Plan, PlanNode } from '../../schemas/plan.ts';
import { planFile, ROOT } from './plan-fixture.ts';

const cluster = loadProfile('cluster', join(ROOT, 'profiles'));

async function planOf(name: string): Promise<Plan> {
  const { plan, problems } = await planFile(join(ROOT, `experiments/${name}.yaml`), { profile: cluster });
  expect(problems).toEqual([]);
  return plan as Plan;
}

const nodeOf = (plan: Plan, id: string, arm = 0): PlanNode =>
  plan.arms[arm]?.nodes.find((node) => node.id === id) as PlanNode;
const parametersOf = <K extends keyof NodeParameters>(plan: Plan, id: string, _kind: K, arm = 0): NodeParameters[K] =>
  nodeOf(plan, id, arm).parameters as unknown as NodeParameters[K];

test.each(['quickstart', 'quickstart-ablations', 'multihop', 'rl-proof', 'literesearcher', 'stage2', 'dr-venus'])(
  '%s is valid and can be planned',
  async (name) => {
    expect((await planOf(name)).arms.length).toBeGreaterThan(0);
  },
);

describe('literesearcher.yaml', () => {
  test('says what the released scripts say of its two stages', async () => {
    const plan = await planOf('literesearcher');
    expect(parametersOf(plan, 'stage1', 'rl')).toMatchObject({
      context_length: 32_768,
      agent: { max_turns: 40, max_turn_tokens: 2048 },
      rollout: { group_size: 8, prompts_per_step: 256, temperature: 0.7, top_p: 0.95 },
      optimizer: { learning_rate: 1e-6, schedule: 'constant', minibatch: 64 },
      algorithm: {
        name: 'grpo',
        clip: { low: 0.2, high: 0.4 },
        kl: null,
        loss: 'seq_mean_token_mean',
        importance: { level: 'token', truncate: 2, veto: 1e-4 },
      },
      evaluate: { benchmark: 'internal', every: 5 },
      until: { plateau: { metric: 'eval/internal/avg_at_3' } },
    });
    expect(parametersOf(plan, 'stage2', 'rl')).toMatchObject({
      context_length: 49_152,
      agent: { max_turns: 60, max_turn_tokens: 4096 },
      rollout: { group_size: 8, prompts_per_step: 128, temperature: 1, top_p: 1 },
      optimizer: { learning_rate: 1e-6, minibatch: 128 },
      keep: { min_passes: 1, max_passes: 7 },
      refresh_every: 100,
      until: { plateau: null },
    });
    expect(parametersOf(plan, 'cold_start', 'sft')).toMatchObject({
      context_length: 65_536,
      optimizer: { learning_rate: 2e-5, schedule: 'cosine', warmup: 0.1, batch: 128, epochs: 1 },
      adapter: null,
    });
  });

  test('asks for nothing that this version does not execute', async () => {
    const { unknown } = await planFile(join(ROOT, 'experiments/literesearcher.yaml'), { profile: cluster });
    expect(unknown.length).toBeGreaterThan(0); // its data is not here
    expect(unknown.filter((lack) => lack.includes('not executed by this version'))).toEqual([]);
  });

  test('a judge says what the questions of the first stage ask for: its words decide the key, its address does not', async () => {
    const plan = await planOf('literesearcher');
    const { sources, mix } = parametersOf(plan, 'tasks.stage1', 'tasks');
    expect(mix).toMatchObject({ direct_retrieval: 0.3, statistics: 0.15 });
    expect(sources['stage1']).toMatchObject({
      capability: {
        judge: {
          model: 'Qwen/Qwen3-32B',
          prompt: expect.stringMatching(/cross_verification: .*\n[\s\S]*\{question\}/),
          temperature: 0.1,
          max_tokens: 1024,
        },
      },
    });
    expect(nodeOf(plan, 'tasks.stage1').unkeyed).toMatchObject({
      judge: { url: { env: 'JUDGE_URL' }, retries: 3, on_failure: 'retry_later' },
    });
    expect(nodeOf(plan, 'tasks.stage2').unkeyed).not.toHaveProperty('judge');
  });

  test('trains each stage on its own questions, and asks each benchmark its own', async () => {
    const plan = await planOf('literesearcher');
    expect(nodeOf(plan, 'stage1').inputs).toContain('tasks.stage1');
    expect(nodeOf(plan, 'stage2').inputs).not.toContain('tasks.stage1');
    expect(nodeOf(plan, 'browsecomp.stage2').inputs).toEqual(['dataset.browsecomp', 'index', 'stage2']);
    expect(parametersOf(plan, 'browsecomp.stage2', 'benchmark')).toMatchObject({
      context_length: 65_536,
      agent: { context_management: 'summarize', max_turns: 100 },
      sampling: { temperature: 0.6, top_p: 0.95 },
    });
  });
});

describe('stage2.yaml', () => {
  test('has seven ablations with three seeds, of which the one without the stage has none to vary', async () => {
    const { arms } = await planOf('stage2');
    expect(arms.map(({ name }) => name)).toEqual([
      ...['control', 'no_filter', 'short', 'cool', 'batch_256', 'fewer'].flatMap((name) =>
        [42, 43, 44].map((seed) => `${name},seed=${seed}`),
      ),
      'one_stage',
    ]);
  });

  test('takes the first stage from a run, and nothing before it is made', async () => {
    const plan = await planOf('stage2');
    const ids = plan.arms.flatMap(({ nodes }) => nodes.map(({ id }) => id));
    expect(ids).toContain('stage1');
    for (const gone of ['cold_start', 'cold_start.trajectories', 'tasks.stage1']) expect(ids).not.toContain(gone);
    expect(new Set(plan.arms.map(({ nodes }) => nodes.find(({ id }) => id === 'stage1')?.key)).size).toBe(1);
  });

  test('fewer questions for stage 2 leave everything else alone', async () => {
    const { arms } = await planOf('stage2');
    const [control, fewer] = ['control,seed=42', 'fewer,seed=42'].map(
      (name) => new Map(arms.find((arm) => arm.name === name)?.nodes.map(({ id, key }) => [id, key])),
    );
    const changed = [...(control as Map<string, string>)].filter(([id, key]) => fewer?.get(id) !== key);
    expect(changed.map(([id]) => id)).toEqual([
      'tasks.stage2',
      'stage2.profile',
      'stage2',
      ...[
        'internal',
        'gaia_text',
        'browsecomp',
        'browsecomp_zh',
        'hle',
        'frames',
        'webwalkerqa',
        'seal_0',
        'xbench_ds',
      ].map((name) => `${name}.stage2`),
      'report',
    ]);
  });
});

describe('rl-proof.yaml', () => {
  test('a seed changes the learning and not the questions, and its arms start from the same weights', async () => {
    const { arms } = await planOf('rl-proof');
    const keysOf = (id: string, pick: string) =>
      new Set(
        arms.filter(({ name }) => name.includes(pick)).map(({ nodes }) => nodes.find((node) => node.id === id)?.key),
      );
    expect(arms).toHaveLength(9);
    expect(keysOf('tasks', '').size).toBe(1);
    for (const seed of ['seed=17', 'seed=18', 'seed=19']) expect(keysOf('cold_start', seed).size).toBe(1);
    expect(keysOf('cold_start', '').size).toBe(3);
    expect(keysOf('stage1', 'grpo').size).toBe(3);
    expect(keysOf('stage1', 'sft')).toEqual(new Set([undefined]));
  });
});

describe('dr-venus.yaml', () => {
  test('says what the released scripts say', async () => {
    const plan = await planOf('dr-venus');
    expect(parametersOf(plan, 'igpo', 'rl')).toMatchObject({
      context_length: 261_000,
      agent: { max_turns: 200, max_turn_tokens: 8192 },
      algorithm: {
        name: 'igpo',
        clip: { low: 0.2, high: 0.2, dual: 3 },
        kl: { coefficient: 0.001, estimator: 'k3', reference: null },
        loss: 'token_mean',
        igpo: { gamma: 0.95, measure: 'log_prob', scope: ['visit'], every: 1, normalize: 'scaled_separate', weight: 1 },
      },
      rollout: { group_size: 8, prompts_per_step: 16, temperature: 1, top_p: 0.95, cutoff: 0.9 },
      optimizer: { learning_rate: 1e-6, minibatch: 16 },
    });
    expect(parametersOf(plan, 'cold_start.trajectories', 'trajectories').resample?.bands).toEqual([
      { up_to: 50, weight: 1 },
      { up_to: 100, weight: 2 },
      { up_to: null, weight: 5 },
    ]);
  });

  test('the ablation with GRPO keeps clip, KL and loss, and has nothing of IGPO', async () => {
    const plan = await planOf('dr-venus');
    const arm = plan.arms.findIndex(({ name }) => name === 'grpo');
    const { igpo, ...algorithm } = parametersOf(plan, 'igpo', 'rl', arm).algorithm;
    const { igpo: before, ...control } = parametersOf(plan, 'igpo', 'rl').algorithm;
    expect([igpo, before?.normalize]).toEqual([null, 'scaled_separate']);
    expect(algorithm).toEqual({ ...control, name: 'grpo' });
  });

  test('beyond 8,192 tokens the trainer measures beliefs, and the preset of the paper is one line away', async () => {
    const plan = await planOf('dr-venus');
    expect(nodeOf(plan, 'igpo').unkeyed).toMatchObject({ beliefs: 'trainer' });
    const arm = plan.arms.findIndex(({ name }) => name === 'igpo_paper');
    expect(parametersOf(plan, 'igpo', 'rl', arm).algorithm.igpo).toEqual({
      measure: 'prob',
      scope: null,
      every: 1,
      normalize: 'joint',
      gamma: 1,
      weight: 1,
    });
  });

  test('a list of turn limits is a benchmark each', async () => {
    const plan = await planOf('dr-venus');
    expect(
      [50, 100, 200].map((turns) => parametersOf(plan, `browsecomp_turns_${turns}.igpo`, 'benchmark').agent.max_turns),
    ).toEqual([50, 100, 200]);
  });
});
