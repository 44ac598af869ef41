import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { compareRuns } from '../../cli/comparison.ts';
import type { Stack } from '../../cli/open-stack.ts';
import type { Plan } from '../../schemas/plan.ts';
import { connectStore, startPostgres, type TestService } from './toy-services.ts';

/** A real store; its benchmark artifacts are written by hand. */
let postgres: TestService;
let stack: Stack;
let folder: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'exp-compare-'));
  postgres = await startPostgres();
  stack = await connectStore(postgres.address, folder);
});

afterAll(async () => {
  await stack?.close();
  await postgres?.stop();
  await rm(folder, { recursive: true, force: true });
});

let published = 0;

/** Publish a benchmark whose questions have so many right answers of two; its key. */
async function publish(correct: readonly number[], { after = 'stage1', max_turns = 3 } = {}): Promise<string> {
  published += 1;
  const key = published.toString(16).padStart(64, '0');
  const file = join(folder, `${key}.jsonl`);
  const lines = correct.map((right, at) => JSON.stringify({ task_id: `q${at}`, samples: 2, correct: right }));
  await writeFile(file, `${lines.join('\n')}\n`);
  const body = {
    benchmark: 'held_out',
    after,
    protocol: { samples: 2, agent: { max_turns } },
    results: { avg_at_2: { value: 0, low: 0, high: 0 }, pass_at_2: { value: 0, low: 0, high: 0 } },
  };
  await stack.store.publish({
    key,
    kind: 'benchmark',
    inputs: [],
    files: { 'results.jsonl': file },
    body,
    metrics: [],
  });
  return key;
}

type Arms = Record<string, { changes?: Record<string, unknown>; seed?: number; keys: Record<string, string> }>;

function runOf(id: string, arms: Arms, spec: Record<string, unknown> = {}) {
  const plan = {
    spec: { curriculum: { stage1: { rollout: { temperature: 1 }, difficulty: { rollouts: 4 } } }, ...spec },
    arms: Object.entries(arms).map(([name, { changes = {}, seed = 17, keys }]) => ({
      name,
      seed,
      changes,
      nodes: Object.entries(keys).map(([after, key]) => ({ id: `held_out.${after}`, kind: 'benchmark', key })),
    })),
  };
  return { id, plan: plan as unknown as Plan };
}

test('arms stand beside the control with what differs; seeds are one row, paired by question', async () => {
  const run = runOf('r', {
    'control,seed=1': { changes: { 'curriculum.stage1.seed': 1 }, keys: { stage1: await publish([2, 1, 0, 0]) } },
    'control,seed=2': { changes: { 'curriculum.stage1.seed': 2 }, keys: { stage1: await publish([2, 1, 0, 2]) } },
    'hot,seed=1': {
      changes: { 'curriculum.stage1.rollout.temperature': 2, 'curriculum.stage1.seed': 1 },
      keys: { stage1: await publish([2, 2, 1, 0]) },
    },
    'no_filter,seed=1': {
      changes: { 'curriculum.stage1.difficulty': null, 'curriculum.stage1.seed': 1 },
      keys: { stage1: 'f'.repeat(64) },
    },
  });
  const [comparison, ...others] = await compareRuns(stack.store, [run], { at: 'last' });
  expect(others).toEqual([]);
  expect(comparison).toMatchObject({
    metric: 'avg_at_2',
    control: 'control',
    refused: [],
    missing: ['no_filter,seed=1'],
  });
  const [control, hot] = comparison?.rows ?? [];
  // By question, over seeds: 1, 0.5, 0, 0.5.
  expect(control).toMatchObject({ name: 'control', value: { value: 0.5 }, paired: null });
  expect(control?.seeds.map(({ seed, value }) => [seed, value.value])).toEqual([
    ['seed=1', 0.375],
    ['seed=2', 0.625],
  ]);
  expect(hot).toMatchObject({ name: 'hot', differs: { 'curriculum.stage1.rollout.temperature': '2' } });
  // 1, 1, 0.5, 0 against those: 0, +0.5, +0.5, −0.5.
  expect(hot?.paired).toMatchObject({ questions: 4, wins: 2, losses: 1, ties: 1, difference: { value: 0.125 } });
});

test('what was measured by another protocol shares no column with the control, and the reason is said', async () => {
  const run = runOf('r', {
    control: { keys: { stage1: await publish([2, 0]) } },
    patient: { changes: { 'agent.max_turns': 9 }, keys: { stage1: await publish([2, 2], { max_turns: 9 }) } },
  });
  const [comparison] = await compareRuns(stack.store, [run], { at: 'last' });
  expect(comparison?.rows.map(({ name }) => name)).toEqual(['control']);
  expect(comparison?.refused).toEqual([{ name: 'patient', reason: 'agent.max_turns is 9, not 3' }]);
});

test('seeds that were asked other questions than the control are left out one by one, the control stays', async () => {
  const run = runOf('r', {
    'control,seed=1': { keys: { stage1: await publish([2, 0]) } },
    'control,seed=2': { keys: { stage1: await publish([2, 2], { max_turns: 9 }) } },
    'hot,seed=1': { keys: { stage1: await publish([2, 1]) } },
  });
  const [comparison] = await compareRuns(stack.store, [run], { at: 'last' });
  expect(comparison?.rows.map(({ name, seeds }) => [name, seeds.map(({ seed }) => seed)])).toEqual([
    ['control', ['seed=1']],
    ['hot', ['seed=1']],
  ]);
  expect(comparison?.refused.map(({ name }) => name)).toEqual(['control,seed=2']);
});

test('several runs are told apart by the leaves of their specs; --at chooses the checkpoint', async () => {
  const base = await publish([0, 0], { after: 'base' });
  const runs = [
    runOf('first', { main: { keys: { base, stage1: await publish([2, 0]) } } }),
    runOf(
      'second',
      { main: { keys: { base, stage1: await publish([2, 1]) } } },
      { description: 'x', corpus: { limit: 9 } },
    ),
  ];
  const [last] = await compareRuns(stack.store, runs, { at: 'last', metric: 'eval/held_out/pass_at_2' });
  expect(last?.rows.map(({ name, differs, value }) => [name, differs, value.value])).toEqual([
    ['first/main', { 'corpus.limit': '–' }, 0.5],
    ['second/main', { 'corpus.limit': '9' }, 1],
  ]);
  const [before] = await compareRuns(stack.store, runs, { at: 'base' });
  expect(before?.rows.map(({ after, value }) => [after, value.value])).toEqual([
    ['base', 0],
    ['base', 0],
  ]);
});

test('the spec says what is compared, unless the caller does; published numbers stand beside and are never paired', async () => {
  const spec = {
    compare: { metric: 'eval/held_out/pass_at_2', at: 'base', control: 'b' },
    references: { theirs: { world: 'web', protocol: 'LLM judge', held_out: 71.3, elsewhere: 1 } },
  };
  const keysOf = async (correct: number[]) => ({
    base: await publish(correct, { after: 'base' }),
    stage1: await publish([2]),
  });
  const run = runOf('r', { a: { keys: await keysOf([2, 0]) }, b: { keys: await keysOf([1, 1]) } }, spec);
  const [declared] = await compareRuns(stack.store, [run], {});
  expect(declared).toMatchObject({ metric: 'pass_at_2', control: 'b' });
  expect(declared?.rows.map(({ after }) => after)).toEqual(['base', 'base']);
  expect(declared?.references).toEqual([{ name: 'theirs', value: 0.713, protocol: 'world web; LLM judge' }]);
  const [asked] = await compareRuns(stack.store, [run], { at: 'last', control: 'a', metric: 'eval/held_out/avg_at_2' });
  expect([asked?.control, asked?.metric, asked?.rows[0]?.after]).toEqual(['a', 'avg_at_2', 'stage1']);
});

test('an unknown control, metric or benchmark is said with what there is', async () => {
  const run = runOf('r', { control: { keys: { stage1: await publish([1]) } } });
  const compare = (options: { metric?: string; control?: string }) =>
    compareRuns(stack.store, [run], { at: 'last', ...options });
  await expect(compare({ control: 'other' })).rejects.toThrow('CONTROL_UNKNOWN');
  await expect(compare({ metric: 'eval/held_out/avg_at_9' })).rejects.toThrow('there are avg_at_2, pass_at_2');
  await expect(compare({ metric: 'eval/nothing/avg_at_2' })).rejects.toThrow('NO_RESULT');
  await expect(compare({ metric: 'avg_at_2' })).rejects.toThrow('USAGE');
});
