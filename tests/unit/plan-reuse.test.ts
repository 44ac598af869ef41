import { describe, expect, test } from 'vitest';
import { estimateNode, priceOf } from '../../plan/estimate.ts';
import { decideActions, type FoundArtifact } from '../../plan/reuse.ts';
import type { PlanNode } from '../../schemas/plan.ts';
import { multihop, nodesOf, planOptions, recipe } from './plan-fixture.ts';

/** A store in which the named nodes have artifacts, made from each other. */
function storeOf(nodes: readonly PlanNode[], present: readonly string[]): Map<string, FoundArtifact> {
  const digest = (id: string): string => `digest of ${id}`;
  const keyOf = (id: string): string => nodes.find((node) => node.id === id)?.key ?? '';
  return new Map(
    nodes
      .filter(({ id }) => present.includes(id))
      .map(({ id, key, inputs }) => [
        key,
        {
          generation: 1,
          digest: digest(id),
          made_with: { torch: '2.13.0' },
          created_at: '2026-11-21T08:09:10Z',
          inputs: inputs.map((input) => ({ key: keyOf(input), digest: digest(input) })),
          is_live: true,
        },
      ]),
  );
}

const actionsOf = async (nodes: readonly PlanNode[], store: Map<string, FoundArtifact>) =>
  Object.fromEntries(
    (await decideActions([{ name: 'main', seed: 0, changes: {}, nodes: [...nodes] }], async () => store)).map(
      ({ id, action, reason }) => [id, { action, reason }],
    ),
  );

describe('reuse', () => {
  test('a node with a current artifact is reused, and says what made it', async () => {
    const nodes = await nodesOf(recipe);
    const actions = await actionsOf(nodes, storeOf(nodes, ['corpus', 'index']));
    expect(actions['index']).toEqual({ action: 'reuse', reason: 'made 2026-11-21 08:09 with torch 2.13.0' });
    expect(actions['tasks']).toEqual({ action: 'run', reason: 'no artifact has this key' });
  });

  test('an artifact whose input runs again may not be counted on', async () => {
    const nodes = await nodesOf(recipe);
    const actions = await actionsOf(nodes, storeOf(nodes, ['index', 'tasks']));
    expect(actions['index']).toEqual({ action: 'run', reason: 'corpus runs; reused only if that comes out as before' });
  });

  test('an artifact whose input has been made anew is not reused', async () => {
    const nodes = await nodesOf(recipe);
    const store = storeOf(nodes, ['corpus', 'index']);
    const corpus = nodes[0]?.key as string;
    store.set(corpus, { ...(store.get(corpus) as FoundArtifact), digest: 'another' });
    expect((await actionsOf(nodes, store))['index']).toEqual({
      action: 'run',
      reason: 'corpus has been made anew since',
    });
  });

  test('an artifact whose pages are gone is not reused', async () => {
    const nodes = await nodesOf(recipe);
    const store = storeOf(nodes, ['corpus', 'index']);
    const corpus = nodes[0]?.key as string;
    store.set(corpus, { ...(store.get(corpus) as FoundArtifact), is_live: false });
    const actions = await actionsOf(nodes, store);
    expect(actions['corpus']).toEqual({ action: 'run', reason: 'what it describes is no longer in the services' });
    expect(actions['index']?.action).toBe('run');
  });

  test('a node whose key is unknown runs, and says what is not known', async () => {
    const nodes = await nodesOf(multihop);
    const { corpus } = await actionsOf(nodes, storeOf(nodes, ['corpus']));
    expect(corpus).toMatchObject({
      action: 'run',
      reason: expect.stringContaining('${env:DATA_DIR}/qa_hotpotqa_dev500/corpus.jsonl not known'),
    });
  });

  test('without a stack nothing is known of artifacts', async () => {
    const actions = await decideActions([{ name: 'main', seed: 0, changes: {}, nodes: await nodesOf(recipe) }], null);
    expect(new Set(actions.map(({ action, reason }) => `${action}: ${reason}`))).toEqual(
      new Set(['run: stack is down: reuse unknown']),
    );
  });
});

describe('estimates', () => {
  test('count rollouts, and bound tokens and calls', async () => {
    const nodes = await nodesOf(recipe, {
      overrides: [
        'curriculum.stage1.difficulty={ tasks: 10, rollouts: 4, keep: { min_passes: 1, max_passes: 3 } }',
        'agent.max_turns=4',
        'curriculum.stage1.context_length=1000',
        'curriculum.stage1.until={ steps: 3 }',
        'curriculum.stage1.rollout={ group_size: 4, prompts_per_step: 5 }',
      ],
    });
    const estimate = (id: string) => estimateNode(nodes.find((node) => node.id === id) as PlanNode, nodes);
    expect(estimate('stage1.profile')).toEqual({
      rollouts: 40,
      tokens_at_most: 40_000,
      trained_tokens_at_most: 0,
      tool_calls_at_most: 160,
    });
    // 3 steps of 5 groups of 4, each refilled twice; what is refilled is trained on in the place of what was dropped.
    expect(estimate('stage1')).toEqual({
      rollouts: 180,
      tokens_at_most: 180_000,
      trained_tokens_at_most: 60_000,
      tool_calls_at_most: 720,
    });
  });

  test('count what a stage measures of itself: its benchmark every so many steps, and pass rates anew', async () => {
    const nodes = await nodesOf(recipe, {
      overrides: [
        'curriculum.stage1.difficulty={ tasks: 10, rollouts: 4, keep: { min_passes: 1, max_passes: 3 }, refresh_every: 5 }',
        'curriculum.stage1.context_length=1000',
        'curriculum.stage1.until={ steps: 10 }',
        'curriculum.stage1.rollout={ group_size: 4, prompts_per_step: 5, refills: 0 }',
        '+curriculum.stage1.evaluate={ benchmark: held_out, every: 4 }',
        'benchmarks.held_out.samples=3',
        'benchmarks.held_out.dataset.limit=7',
        '+benchmarks.held_out.context_length=2000',
      ],
    });
    const stage = nodes.find(({ id }) => id === 'stage1') as PlanNode;
    // 10 × 20 of steps; after steps 4 and 8, 7 questions × 3; after step 5, 10 tasks × 4 (nothing draws after step 10).
    expect(estimateNode(stage, nodes)).toMatchObject({
      rollouts: 200 + 42 + 40,
      tokens_at_most: 200_000 + 84_000 + 40_000,
      trained_tokens_at_most: 200_000,
    });
  });

  test('cost GPU-hours by the stated throughput, and money by the prices; without throughput neither is known', () => {
    const estimate = {
      rollouts: 1,
      tokens_at_most: 7_200_000,
      trained_tokens_at_most: 3_600_000,
      tool_calls_at_most: 5000,
    };
    const { profile } = planOptions();
    const priced = {
      ...profile,
      capabilities: { ...profile.capabilities, gpus: 8 },
      prices: { currency: 'USD', gpu_hour: 2, cpu_hour: 9, million_tokens: 0.5, thousand_tool_calls: 3 },
    };
    // 7.2 M tokens at 1,000 a second are two hours, 3.6 M at 500 two more; 4 × 2 + 7.2 × 0.5 + 5 × 3.
    const throughput = { sampled_tokens_per_gpu_second: 1000, trained_tokens_per_gpu_second: 500 };
    const { gpu_hours_at_most, cost_at_most } = priceOf(estimate, { ...priced, throughput });
    expect(gpu_hours_at_most).toBeCloseTo(4);
    expect(cost_at_most).toBeCloseTo(26.6);
    expect(priceOf(estimate, priced)).toEqual({ gpu_hours_at_most: null, cost_at_most: null });
    expect(priceOf(estimate, profile)).toEqual({ gpu_hours_at_most: 0, cost_at_most: 0 });
  });

  test('are unknown where the spec does not say how many tasks there are', async () => {
    const all = ['~curriculum.difficulty_of_base.difficulty.tasks'];
    const estimate = async (overrides: string[]) => {
      const nodes = await nodesOf(multihop, { overrides });
      return estimateNode(nodes.find(({ kind }) => kind === 'profile') as PlanNode, nodes);
    };
    expect(await estimate([...all, '~tasks.sources.questions.expect'])).toBeNull();
    expect(await estimate(all)).toMatchObject({ rollouts: 250 * 4 });
  });
});
