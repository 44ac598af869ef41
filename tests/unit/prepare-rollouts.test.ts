import { expect, test } from 'vitest';
import { promptsFrom, stepsOf, stratified } from '../../activities/prepare-rollouts.ts';
import type { NodeOf } from '../../schemas/node-parameters.ts';
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
const pool = ['a', 'b', 'c', 'd', 'e'].map((id) => task(id));
const ids = (tasks: Task[]) => tasks.map(({ task_id }) => task_id);

test('an epoch visits every task once before any comes again', () => {
  const drawn = [0, 2, 4].flatMap((start) => ids(promptsFrom(pool, start, 2, 7)));
  expect(new Set(drawn.slice(0, 5)).size).toBe(5);
});

test('the same step draws the same prompts, another seed others', () => {
  const many = Array.from({ length: 50 }, (_, index) => task(String(index)));
  expect(promptsFrom(many, 8, 4, 7)).toEqual(promptsFrom(many, 8, 4, 7));
  expect(ids(promptsFrom(many, 8, 4, 8))).not.toEqual(ids(promptsFrom(many, 8, 4, 7)));
});

test('a subset keeps the shares of the capabilities, and a smaller one lies inside a larger one', () => {
  const mixed = [
    ...Array.from({ length: 40 }, (_, i) => task(`d${i}`, 'direct_retrieval')),
    ...Array.from({ length: 20 }, (_, i) => task(`a${i}`, 'aggregation')),
    ...Array.from({ length: 20 }, (_, i) => task(`e${i}`, 'enumeration')),
  ];
  const subset = stratified(mixed, 16, 3);
  const share = (capability: string) => subset.filter((one) => one.capability === capability).length;
  expect([share('direct_retrieval'), share('aggregation'), share('enumeration')]).toEqual([8, 4, 4]);
  expect(ids(subset)).toEqual(expect.arrayContaining(ids(stratified(mixed, 8, 3))));
});

test('epochs become steps by the size of the training pool', () => {
  const node = (until: object) =>
    ({ parameters: { until, rollout: { prompts_per_step: 16 } } }) as unknown as NodeOf<'rl'>;
  expect(stepsOf(node({ steps: null, epochs: 1 }), 1000)).toBe(63); // ceil(1000 / 16)
  expect(stepsOf(node({ steps: 5, epochs: null }), 1000)).toBe(5);
});
