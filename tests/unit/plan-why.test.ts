import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { changedLeaves, changeText, keyChanges } from '../../plan/diff.ts';
import { decideActions } from '../../plan/reuse.ts';
import { type EarlierPlan, nearestEarlier, nearestText } from '../../plan/why.ts';
import type { PlanArm, PlanNode } from '../../schemas/plan.ts';
import { folderWith, nodesOf, recipe } from './plan-fixture.ts';

const armOf = (nodes: PlanNode[], name = 'main'): PlanArm => ({ name, seed: 17, changes: {}, nodes });
const earlier = (run: string, ...arms: PlanArm[]): EarlierPlan => ({ run, plan: { arms } });
const find = (nodes: readonly PlanNode[], id: string): PlanNode => nodes.find((node) => node.id === id) as PlanNode;

const changesOf = (before: PlanNode[], after: PlanNode[], id: string): string[] =>
  keyChanges({ node: find(before, id), nodes: before }, { node: find(after, id), nodes: after }).map(changeText);

describe('what makes one key another', () => {
  test('a leaf of the spec is named with both values at the node it belongs to, and as a changed input below', async () => {
    const before = await nodesOf(recipe);
    const after = await nodesOf(recipe, { overrides: ['curriculum.stage1.rollout.temperature=0.7'] });
    expect(changesOf(before, after, 'stage1')).toEqual([
      'rollout.temperature: 1 → 0.7',
      'input stage1.profile changed',
    ]);
    expect(changesOf(before, after, 'stage1.profile')).toEqual(['sampling.temperature: 1 → 0.7']);
    expect(changesOf(before, after, 'held_out.stage1')).toEqual(['input stage1 changed']);
    expect(changesOf(before, after, 'cold_start')).toEqual([]);
  });

  test('a seed, and a file by its digest', async () => {
    const before = await nodesOf(recipe);
    expect(
      changesOf(before, await nodesOf(recipe, { overrides: ['+curriculum.cold_start.seed=5'] }), 'cold_start'),
    ).toEqual([expect.stringMatching(/^seed: \d+ → 5$/), 'input cold_start.trajectories changed']);

    const sources = 'corpus.sources={ docs: { kind: jsonl, path: pages.jsonl, licence: CC0-1.0, provenance: here } }';
    const folder = folderWith({ 'pages.jsonl': '{"url":"https://a.example/","title":"A","text":"a"}\n' });
    writeFileSync(join(folder, 'spec.yaml'), `api_version: exp/v1\nextends: [recipe.yaml]\n`);
    writeFileSync(join(folder, 'recipe.yaml'), readFileSync(recipe));
    const one = await nodesOf(join(folder, 'spec.yaml'), { overrides: [sources] });
    writeFileSync(join(folder, 'pages.jsonl'), '{"url":"https://a.example/","title":"A","text":"another text"}\n');
    const other = await nodesOf(join(folder, 'spec.yaml'), { overrides: [sources] });
    expect(changesOf(one, other, 'corpus')).toEqual([
      expect.stringMatching(/^file pages\.jsonl: [0-9a-f]{12} → [0-9a-f]{12}$/),
    ]);
  });

  test('another version of what a kind does, and an input that came or went', async () => {
    const before = await nodesOf(recipe);
    const raised = before.map((node) =>
      node.id === 'corpus' ? { ...node, kind_version: node.kind_version + 1, key: 'f'.repeat(64) } : node,
    );
    expect(changesOf(before, raised, 'corpus')).toEqual(['what it does changed: version 1 → 2']);
    expect(changesOf(before, raised, 'index')).toEqual([]); // its own key says the same here

    const direct = await nodesOf(recipe, { overrides: ['~curriculum.stage1.difficulty'] });
    expect(changesOf(before, direct, 'stage1')).toContain('input stage1.profile is gone');
  });

  test('leaves that came, went or changed; lists are whole', () => {
    expect(changedLeaves({ a: { b: 1, c: [1, 2] }, d: {} }, { a: { b: 2, c: [1, 3] }, e: null })).toEqual([
      { path: 'a.b', before: 1, after: 2 },
      { path: 'a.c', before: [1, 2], after: [1, 3] },
      { path: 'd', before: {}, after: undefined },
      { path: 'e', before: undefined, after: null },
    ]);
  });
});

describe('the nearest earlier node', () => {
  test('is the one with the fewest changes, of several the newest', async () => {
    const now = await nodesOf(recipe, { overrides: ['agent.max_turns=3', 'agent.max_turn_tokens=100'] });
    const near = await nodesOf(recipe, { overrides: ['agent.max_turns=3'] });
    const far = await nodesOf(recipe);
    const plans = [earlier('newest', armOf(far)), earlier('near', armOf(near)), earlier('older', armOf(near))];
    const found = nearestEarlier(find(now, 'held_out.base'), armOf(now), plans);
    expect(found).toMatchObject({ run: 'near', changes: [{ name: 'agent.max_turn_tokens', after: 100 }] });
  });

  test('is of the same arm where the earlier plan has it, else of any', async () => {
    const [control, cool] = [await nodesOf(recipe), await nodesOf(recipe, { overrides: ['agent.max_turns=3'] })];
    const plan = earlier('r', armOf(control, 'control'), armOf(cool, 'cool'));
    const node = find(cool, 'held_out.base');
    expect(nearestEarlier(node, armOf(cool, 'control'), [plan])?.changes).toHaveLength(1);
    expect(nearestEarlier(node, armOf(cool, 'brand_new'), [plan])).toEqual({ run: 'r', arm: 'cool', changes: [] });
  });

  test('is none where no earlier plan has a node of this id', async () => {
    const nodes = await nodesOf(recipe);
    expect(nearestEarlier(find(nodes, 'stage1'), armOf(nodes), [earlier('r', armOf(nodes.slice(0, 3)))])).toBeNull();
  });

  test('gives the plan its reason', async () => {
    const before = await nodesOf(recipe);
    const after = await nodesOf(recipe, { overrides: ['agent.max_turns=3', 'agent.max_turn_tokens=100'] });
    const actions = await decideActions([armOf(after)], async () => new Map(), [earlier('recipe-1', armOf(before))]);
    const reasons = Object.fromEntries(actions.map(({ id, reason }) => [id, reason]));
    expect(reasons['corpus']).toBe('recipe-1 asked for it too, and its artifact is not there');
    expect(reasons['held_out.base']).toBe('agent.max_turn_tokens: 160 → 100, and 1 more, since recipe-1');
    expect(nearestText({ run: 'r', arm: 'main', changes: [] })).toContain('r asked for it too');
  });
});
