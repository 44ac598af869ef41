import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { withNonce } from '../../plan/rerun.ts';
import { parseStoredPlan, staleReasons } from '../../plan/stored-plan.ts';
import type { Plan, PlanNode } from '../../schemas/plan.ts';
import { folderWith, planFile, recipe } from './plan-fixture.ts';

async function planOf(path: string, overrides: string[] = []): Promise<Plan> {
  return (await planFile(path, { overrides })).plan as Plan;
}

const find = ({ arms }: Plan, id: string, arm = 0): PlanNode =>
  arms[arm]?.nodes.find((node) => node.id === id) as PlanNode;

describe('a stored plan', () => {
  test('comes back as it was written', async () => {
    const plan = await planOf(recipe);
    expect(parseStoredPlan(JSON.stringify(plan), 'plan.json')).toEqual(plan);
    expect(staleReasons(plan, await planOf(recipe))).toEqual([]);
  });

  test('that somebody edited is refused', async () => {
    const plan = await planOf(recipe);
    (find(plan, 'stage1').parameters['rollout'] as { temperature: number }).temperature = 0.7;
    expect(() => parseStoredPlan(JSON.stringify(plan), 'plan.json')).toThrow(/plan\.json: PLAN: the key of stage1/);
  });

  test('with a stage that was taken from a run comes back too', async () => {
    const plan = await planOf(recipe);
    const arm = plan.arms[0] as Plan['arms'][number];
    const taken = { ...find(plan, 'cold_start'), inputs: [], unkeyed: { reused_from: 'recipe-1' } };
    const nodes = arm.nodes.map((node) => (node.id === 'cold_start' ? taken : node));
    const written = { ...plan, arms: [{ ...arm, nodes }] };
    expect(parseStoredPlan(JSON.stringify(written), 'plan.json')).toEqual(written);
  });

  test.each([
    ['no JSON', '{', /is no JSON/],
    ['another document', '{"api_version":"exp/v1"}', /is no plan: it must have required property/],
    ['a field that plans do not have', null, /must NOT have additional properties/],
  ])('%s is refused', async (_, text, message) => {
    const written = text ?? JSON.stringify({ ...(await planOf(recipe)), extra: 1 });
    expect(() => parseStoredPlan(written, 'plan.json')).toThrow(message);
  });

  test('is stale when the spec says something else, and only the node it belongs to is named', async () => {
    const stored = await planOf(recipe);
    const now = await planOf(recipe, ['curriculum.stage1.rollout.temperature=0.7']);
    expect(staleReasons(stored, now)).toEqual([
      'stage1.profile: sampling.temperature: 1 → 0.7',
      'stage1: rollout.temperature: 1 → 0.7',
    ]);
  });

  test('is stale when a file has another content, which is named, and when it moved', async () => {
    const page = (text: string): string => `{"url":"https://a.example/","title":"A","text":"${text}"}\n`;
    const folder = folderWith({ 'pages.jsonl': page('one'), 'copy.jsonl': page('one') });
    const spec = join(folder, 'spec.yaml');
    writeFileSync(spec, readFileSync(recipe, 'utf8'));
    const from = (path: string): string[] => [
      `corpus.sources={ docs: { kind: jsonl, path: ${path}, licence: CC0-1.0, provenance: here } }`,
    ];
    const stored = await planOf(spec, from('pages.jsonl'));
    expect(staleReasons(stored, await planOf(spec, from('copy.jsonl')))).toEqual([
      `corpus: the files of docs are now at ${join(folder, 'copy.jsonl')}`,
    ]);
    writeFileSync(join(folder, 'pages.jsonl'), page('two'));
    expect(staleReasons(stored, await planOf(spec, from('pages.jsonl')))).toEqual([
      expect.stringMatching(/^corpus: file pages\.jsonl: [0-9a-f]{12} → [0-9a-f]{12}$/),
    ]);
  });

  test('is stale when nodes or arms came or went', async () => {
    const stored = await planOf(recipe);
    const without = await planOf(recipe, ['~curriculum.stage1.difficulty']);
    expect(staleReasons(stored, without)).toContain('stage1.profile: no longer a node');
    expect(staleReasons(without, stored)).toContain('stage1.profile: a new node');
    const arms = await planOf(recipe, ['+ablations={ a: {}, b: { agent.max_turns: 3 } }']);
    expect(staleReasons(stored, arms)).toEqual(['its arms were main, now they are a, b']);
  });
});

describe('a rerun', () => {
  test('gives new keys to the node and all below it, and keeps every other', async () => {
    const plan = await planOf(recipe);
    const again = withNonce(plan, (_, id) => id === 'cold_start', 'n1');
    const changed = plan.arms[0]?.nodes.filter((node) => find(again, node.id).key !== node.key).map(({ id }) => id);
    expect(changed?.sort()).toEqual(
      ['cold_start', 'stage1.profile', 'stage1', 'held_out.cold_start', 'held_out.stage1', 'report'].sort(),
    );
    expect(find(again, 'cold_start').nonce).toBe('n1');
    expect(find(again, 'stage1').nonce).toBeUndefined();
    expect(again.run_key).not.toBe(plan.run_key);
    expect(parseStoredPlan(JSON.stringify(again), 'plan.json')).toEqual(again);
  });

  test('twice is two keys; with one nonce it is one, shared by the arms that shared it', async () => {
    const plan = await planOf(recipe, ['+ablations={ a: {}, b: { benchmarks.held_out.samples: 3 } }']);
    const rerun = (nonce: string): Plan => withNonce(plan, (_, id) => id === 'stage1', nonce);
    expect(find(rerun('x'), 'stage1', 0).key).toBe(find(rerun('x'), 'stage1', 1).key);
    expect(find(rerun('x'), 'stage1').key).not.toBe(find(rerun('y'), 'stage1').key);
  });

  test('of one arm leaves the same node of another as it is', async () => {
    const plan = await planOf(recipe, ['+ablations={ a: {}, b: { benchmarks.held_out.samples: 3 } }']);
    const again = withNonce(plan, (arm, id) => arm === 'b' && id === 'stage1', 'n');
    expect(find(again, 'stage1', 0).key).toBe(find(plan, 'stage1', 0).key);
    expect(find(again, 'stage1', 1).key).not.toBe(find(plan, 'stage1', 1).key);
  });
});
