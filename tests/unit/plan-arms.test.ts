import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { decideActions } from '../../plan/reuse.ts';
import type { PlanArm } from '../../schemas/plan.ts';
import { folderWith, found, keysOf, planFile, ROOT, recipe } from './plan-fixture.ts';

const BASE = readFileSync(recipe, 'utf8');

const planned = (text: string) => {
  const folder = folderWith({ 'recipe.yaml': BASE, 'spec.yaml': `extends: [recipe.yaml]\n${text}` });
  return planFile(join(folder, 'spec.yaml'));
};

async function armsOf(text: string): Promise<Record<string, PlanArm>> {
  const { plan, problems } = await planned(text);
  expect(problems).toEqual([]);
  return Object.fromEntries((plan?.arms ?? []).map((arm) => [arm.name, arm]));
}

const keys = (arm: PlanArm | undefined): Record<string, string> => keysOf(arm?.nodes ?? []);

describe('ablations', () => {
  test('each changes what it names, and shares every node that does not depend on it', async () => {
    const arms = await armsOf(`ablations:
  control: {}
  hot: { curriculum.stage1.rollout.temperature: 0.5 }
  more: { curriculum.cold_start.trajectories.count: 9 }
`);
    expect(Object.keys(arms)).toEqual(['control', 'hot', 'more']);
    const { control, hot, more } = { control: keys(arms['control']), hot: keys(arms['hot']), more: keys(arms['more']) };
    const changed = (arm: Record<string, string>) => Object.keys(arm).filter((id) => arm[id] !== control[id]);
    expect(changed(hot)).toContain('stage1');
    expect(changed(hot)).not.toContain('cold_start');
    expect(changed(more)).toEqual(expect.arrayContaining(['cold_start.trajectories', 'cold_start', 'stage1']));
    for (const shared of ['corpus', 'index', 'tasks', 'held_out.base']) {
      expect([hot[shared], more[shared]]).toEqual([control[shared], control[shared]]);
    }
  });

  test('the empty one is the spec itself', async () => {
    const { plan } = await planFile(recipe);
    const arms = await armsOf('ablations: { control: {} }\n');
    expect(keys(arms['control'])).toEqual(keys(plan?.arms[0]));
  });

  test('cannot change what is of the whole run', async () => {
    expect(found(await planned('ablations: { poor: { budget.tokens: 5 } }\n'))).toEqual(['VALUE 2:22']);
    expect(found(await planned('sweep: { matrix: { tracking.mlflow_experiment: [a, b] } }\n'))).toEqual(['VALUE 2:20']);
  });

  test('what is wrong in arms is found in all of them: with the seed, and beside a seed that is wrong', async () => {
    const text = `ablations:
  control: {}
  strange: { agent.tools: [serch] }
sweep: { matrix: { seed: [1, two, -3] } }
`;
    expect(found(await planned(text))).toEqual(['REF 4:28', 'TYPE 5:30', 'RANGE 5:35']);
  });

  test('!unset takes a section away, and with it the node it made', async () => {
    const arms = await armsOf('ablations: { control: {}, no_filter: { curriculum.stage1.difficulty: !unset } }\n');
    expect(keys(arms['control'])).toHaveProperty(['stage1.profile']);
    expect(keys(arms['no_filter'])).not.toHaveProperty(['stage1.profile']);
  });

  test('what changes a stage reaches a stage that is like it, unless that one says otherwise', async () => {
    const arms = await armsOf(`curriculum:
  stage2: { like: stage1, from: "\${stages.stage1.checkpoint}", rollout: { group_size: 2 } }
ablations:
  hot: { curriculum.stage1.rollout: { temperature: 0.5, group_size: 8 } }
`);
    const stages = Object.fromEntries((arms['hot']?.nodes ?? []).map(({ id, parameters }) => [id, parameters]));
    expect(stages['stage1']).toMatchObject({ rollout: { group_size: 8, temperature: 0.5 } });
    expect(stages['stage2']).toMatchObject({ rollout: { group_size: 2, temperature: 0.5 } });
  });

  test.each([
    ['{ curriculum.stage1.rollout.temprature: 0.5 }', 'UNKNOWN_FIELD 3:10'],
    ['{ curriculum.stage1.rollout.group_size: many }', 'TYPE 3:48'],
    ['{ curriculum.stage9: !unset }', 'UNKNOWN_FIELD 3:10'],
    ['{ "a b": 1 }', 'NAME 3:10'],
  ])('%s is %s, at the line of the arm', async (change, expected) => {
    const loaded = await planned(`ablations:\n  bad: ${change}\n`);
    expect(found(loaded)).toEqual([expected]);
  });
});

describe('a sweep', () => {
  test('has every combination, of every ablation; an arm is named by its values', async () => {
    const arms = await armsOf(`ablations: { control: {}, hot: { curriculum.stage1.rollout.temperature: 0.5 } }
sweep: { matrix: { curriculum.stage1.seed: [1, 2], agent.max_turns: [3, 4] } }
`);
    expect(Object.keys(arms)).toEqual(
      ['control', 'hot'].flatMap((arm) =>
        ['seed=1,max_turns=3', 'seed=1,max_turns=4', 'seed=2,max_turns=3', 'seed=2,max_turns=4'].map(
          (point) => `${arm},${point}`,
        ),
      ),
    );
  });

  test('leaves out what has all values of an exclusion, and adds what is included', async () => {
    const arms = await armsOf(`sweep:
  matrix: { curriculum.stage1.seed: [1, 2], curriculum.cold_start.seed: [1, 2] }
  exclude: [{ curriculum.stage1.seed: 2, curriculum.cold_start.seed: 1 }]
  include: [{ curriculum.stage1.seed: 7 }]
`);
    expect(Object.keys(arms)).toEqual([
      'curriculum.stage1.seed=1,curriculum.cold_start.seed=1',
      'curriculum.stage1.seed=1,curriculum.cold_start.seed=2',
      'curriculum.stage1.seed=2,curriculum.cold_start.seed=2',
      'curriculum.stage1.seed=7',
    ]);
  });

  test('of a root seed shares corpus and index', async () => {
    const arms = await armsOf('sweep: { matrix: { seed: [1, 2] } }\n');
    const [one, two] = [keys(arms['seed=1']), keys(arms['seed=2'])];
    expect(Object.keys(one).filter((id) => one[id] === two[id])).toEqual(['corpus', 'index']);
    expect([arms['seed=1']?.seed, arms['seed=2']?.seed]).toEqual([1, 2]);
  });

  test('that is too large is refused by its size, before an arm is made', async () => {
    const values = JSON.stringify(Array.from({ length: 100 }, (_, index) => index));
    const loaded = await planned(
      `sweep: { matrix: { seed: ${values}, agent.max_turns: ${values}, curriculum.stage1.seed: ${values} } }\n`,
    );
    expect(found(loaded)).toEqual(['SWEEP_SIZE 2:8']);
    expect(loaded.problems[0]?.message).toContain('1000000 arms');
  });
});

test.each([
  ['matrix: { seed: [1, 2] }\n  exclude: [{ seed: 1 }, { seed: 2 }]', 'EMPTY 3:3'],
  ['matrix: { seed: [1, 2] }\n  include: [{ seed: 1 }]', 'DUP_KEY 3:3'],
])('a sweep of %j is refused: %s', async (sweep, expected) => {
  expect(found(await planned(`sweep:\n  ${sweep}\n`))).toEqual([expected]);
});

test('values stand in names as far as they can', async () => {
  const arms = await armsOf('sweep: { matrix: { agent.tools: [[search], [search, visit]] } }\n');
  expect(Object.keys(arms)).toEqual(['tools=_search_', 'tools=_search_visit_']);
});

test('two specs that differ only in what an arm unsets are two runs', async () => {
  const run = async (change: string) =>
    (await planned(`ablations: { control: {}, other: ${change} }\n`)).plan?.run_key as string;
  expect(await run('{ curriculum.stage1.difficulty: !unset }')).not.toBe(await run('{}'));
});

test('the plan says for which arm a shared node is made', async () => {
  const { plan } = await planned('ablations: { control: {}, hot: { curriculum.stage1.rollout.temperature: 0.5 } }\n');
  const actions = await decideActions(plan?.arms ?? [], async () => new Map());
  const of = (arm: string, id: string) => actions.find((action) => action.arm === arm && action.id === id);
  expect(of('control', 'corpus')).toMatchObject({ action: 'run', reason: 'no artifact has this key' });
  expect(of('hot', 'corpus')).toMatchObject({ action: 'reuse', reason: 'made once, for control' });
  expect(of('hot', 'stage1')).toMatchObject({ action: 'run', reason: 'no artifact has this key' });
});

test('quickstart-ablations: three arms of two seeds, and how much they share', async () => {
  const { plan, problems } = await planFile(join(ROOT, 'experiments/quickstart-ablations.yaml'));
  expect(problems).toEqual([]);
  const nodes = plan?.arms.flatMap((arm) => arm.nodes.map(({ key }) => key)) ?? [];
  expect(plan?.arms).toHaveLength(6);
  // 11 nodes an arm, without the filter 10. The 7 before the stage are made once; the stage, its benchmark and the report
  // are of one arm each, and so is the filter of 4: a stage's seed is its filter's too.
  expect([nodes.length, new Set(nodes).size]).toEqual([4 * 11 + 2 * 10, 7 + 6 * 3 + 4]);
});
