import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { scoreQuestions } from '../../environments/deep-research/benchmarks/score-benchmark.ts';
import { metricNames } from '../../plan/gates.ts';
import type { Benchmark } from '../../schemas/experiment.ts';
import type { PlanArm } from '../../schemas/plan.ts';
import { folderWith, keysOf, nodesOf, planFile, recipe } from './plan-fixture.ts';

const METRIC = 'eval/held_out/avg_at_2';
const STAGE2 = '+curriculum.stage2={ like: stage1, from: "${stages.stage1.checkpoint}", gate: !unset }';

/** The recipe with a further stage, whose arms have these gates. */
async function gatesOf(...overrides: string[]): Promise<PlanArm['gates']> {
  const { plan, problems } = await planFile(recipe, { overrides: [STAGE2, ...overrides] });
  expect(problems).toEqual([]);
  return plan?.arms[0]?.gates;
}

test('a gate names the node that measures it, and holds back what starts from its stage', async () => {
  expect(await gatesOf(`+curriculum.stage1.gate={ metric: ${METRIC}, at_least: 0.3, on_fail: ask }`)).toEqual([
    {
      name: 'stage1',
      metric: { name: METRIC, benchmark: 'held_out.stage1', at_least: 0.3, at_most: null },
      on_fail: 'ask',
      approve: false,
      // Its benchmark is not held back: it measures what the gate asks about.
      blocks: ['stage2.profile', 'stage2'],
    },
  ]);
});

test('a gate that only asks a person has no metric', async () => {
  const [gate] = (await gatesOf('+curriculum.cold_start.gate={ approve: true }')) ?? [];
  expect(gate).toMatchObject({ name: 'cold_start', metric: null, approve: true, blocks: ['stage1.profile', 'stage1'] });
});

test('a gate moves no key, and a plan without gates does not mention them', async () => {
  const plain = await nodesOf(recipe);
  const gated = await nodesOf(recipe, { overrides: ['+curriculum.cold_start.gate={ approve: true }'] });
  expect(keysOf(gated)).toEqual(keysOf(plain));
  expect((await planFile(recipe)).plan?.arms[0]).not.toHaveProperty('gates');
});

test('an arm may have another bar than its neighbour', async () => {
  const bar = (at_least: number) => `{ curriculum.stage1.gate: { metric: ${METRIC}, at_least: ${at_least} } }`;
  const spec = `${readFileSync(recipe, 'utf8')}\nablations: { low: ${bar(0.1)}, high: ${bar(0.5)}, none: {} }\n`;
  const { plan } = await planFile(join(folderWith({ 'spec.yaml': spec }), 'spec.yaml'));
  const bars = plan?.arms.map(({ name, gates }) => [name, gates?.[0]?.metric?.at_least]);
  expect(bars).toEqual([
    ['low', 0.1],
    ['high', 0.5],
    ['none', undefined],
  ]);
});

test('the names a gate may use are those that a benchmark gives', () => {
  const options = { samples: 4, metrics: ['avg@k', 'pass@k'] as const };
  const { results } = scoreQuestions([], { benchmark: 'check', ...options, metrics: [...options.metrics] });
  const names = metricNames('check', { ...options, metrics: [...options.metrics] } as unknown as Benchmark);
  expect(Object.keys(results)).toEqual(['avg_at_4', 'pass_at_4']);
  expect(names).toEqual(expect.arrayContaining(Object.keys(results).map((name) => `eval/check/${name}`)));
});
