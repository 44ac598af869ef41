import { expect, test } from 'vitest';
import { type PoolTask, promptsFrom, refillFrom, stratified } from '../../environments/deep-research/draw-tasks.ts';
import type { Task } from '../../schemas/task.ts';

const task = (task_id: string, capability: Task['capability'] = 'direct_retrieval'): Task => ({
  task_id,
  question: `question ${task_id}`,
  answer: 'answer',
  aliases: [],
  capability,
  split: 'train',
  source: 'made',
  evidence: [],
  deny_urls: [],
});
const poolOf = (weights: Record<string, number>): PoolTask[] =>
  Object.entries(weights).map(([id, weight]) => ({ task: task(id), weight }));
const even = (size: number) => poolOf(Object.fromEntries(Array.from({ length: size }, (_, i) => [`t${i}`, 1])));
const five = even(5);
const ids = (tasks: Task[]) => tasks.map(({ task_id }) => task_id);

test('an epoch visits every task once before any comes again', () => {
  const drawn = [0, 2, 4].flatMap((start) => ids(promptsFrom(five, { start, count: 2 }, '7')));
  expect(new Set(drawn.slice(0, 5)).size).toBe(5);
});

test('the same step draws the same prompts, another seed others', () => {
  const many = even(50);
  const block = { start: 8, count: 4 };
  expect(promptsFrom(many, block, '7')).toEqual(promptsFrom(many, block, '7'));
  expect(ids(promptsFrom(many, block, '8'))).not.toEqual(ids(promptsFrom(many, block, '7')));
});

test('no task comes twice in a step, wherever an epoch ends and whatever the weights', () => {
  for (const pool of [five, poolOf({ a: 5, b: 1, c: 1, d: 1 })]) {
    for (let start = 0; start < 40; start += 3) {
      const drawn = ids(promptsFrom(pool, { start, count: 3 }, '1'));
      expect(drawn).toHaveLength(3);
      expect(new Set(drawn).size).toBe(3);
    }
  }
});

test('tasks come as often as their weights say, and those of weight 0 never', () => {
  const pool = poolOf({ a: 4, b: 2, c: 1, d: 1, e: 0 });
  const counts = new Map<string, number>();
  // One at a time, so that nothing gives way; 800 draws are 200 epochs of 4.
  for (let start = 0; start < 800; start += 1) {
    for (const id of ids(promptsFrom(pool, { start, count: 1 }, '3'))) counts.set(id, (counts.get(id) ?? 0) + 1);
  }
  expect(counts.get('e')).toBeUndefined();
  for (const [id, expected] of Object.entries({ a: 400, b: 200, c: 100, d: 100 })) {
    expect(Math.abs((counts.get(id) ?? 0) - expected)).toBeLessThan(10);
  }
});

test('a refill takes prompts that the step has not asked, none twice, until there are no more', () => {
  const pool = even(10);
  const block = { start: 4, count: 4 };
  const at = { seed: '7', step: 2 };
  const drawn = [
    ...promptsFrom(pool, block, at.seed),
    ...refillFrom(pool, block, { start: 0, count: 3 }, at),
    ...refillFrom(pool, block, { start: 3, count: 5 }, at),
  ];
  expect(new Set(ids(drawn)).size).toBe(10);
  expect(drawn).toHaveLength(10);
  expect(refillFrom(pool, block, { start: 8, count: 1 }, at)).toEqual([]);
});

test('a subset keeps the shares of the capabilities, and every smaller one lies inside every larger one', () => {
  const mixed = [
    ...Array.from({ length: 40 }, (_, i) => task(`d${i}`, 'direct_retrieval')),
    ...Array.from({ length: 20 }, (_, i) => task(`a${i}`, 'aggregation')),
    ...Array.from({ length: 20 }, (_, i) => task(`e${i}`, 'enumeration')),
  ];
  const subset = stratified(mixed, 16, 3);
  const share = (capability: string) => subset.filter((one) => one.capability === capability).length;
  expect([share('direct_retrieval'), share('aggregation'), share('enumeration')]).toEqual([8, 4, 4]);
  for (let size = 1; size <= mixed.length; size += 1) {
    expect(ids(stratified(mixed, size, 3))).toEqual(expect.arrayContaining(ids(stratified(mixed, size - 1, 3))));
  }
});
