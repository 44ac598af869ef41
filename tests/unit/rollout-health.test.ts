import { expect, test } from 'vitest';
import { RolloutHealth, type WatchedTrajectory } from '../../environments/deep-research/rollout-health.ts';
import { HEALTH_METRICS } from '../../schemas/health-metrics.ts';
import type { Span } from '../../schemas/trajectory.ts';

const span = (kind: Span['kind'], tool: string | null, tokens: number, status: Span['status'] = 'ok'): Span => ({
  turn: 0,
  kind,
  start: 100,
  end: 100 + tokens,
  tool,
  status,
  latency_ms: 0,
  cached: false,
  denied: 0,
  weight_version: '',
});
const call = (tool: string, args: object) => ({
  role: 'assistant',
  content: `<think>look</think>\n<tool_call>${JSON.stringify({ name: tool, arguments: args })}</tool_call>`,
});
const trajectory = (id: string, change: Partial<WatchedTrajectory> = {}): WatchedTrajectory => ({
  trajectory_id: id,
  group_id: id.slice(0, 1),
  branch: 0,
  spans: [],
  messages: [],
  reward: { outcome: 0, turns: [] },
  termination: 'answer',
  ...change,
});
const measured = (...trajectories: WatchedTrajectory[]) => {
  const health = new RolloutHealth();
  for (const one of trajectories) health.add(one);
  return health.metrics();
};

test('a call repeats when the same tool was called with the same arguments before, whatever was thought', () => {
  const again = {
    ...call('search', { query: ['a'] }),
    content: call('search', { query: ['a'] }).content.replace('look', 'hm'),
  };
  const messages = [
    call('search', { query: ['a'] }),
    call('visit', { url: ['a'] }),
    again,
    call('search', { query: ['b'] }),
  ];
  expect(measured(trajectory('a1', { messages }))['rollout/repeat_rate']).toBe(1 / 4);
  // In another trajectory it is new.
  expect(
    measured(trajectory('a1', { messages: [again] }), trajectory('a2', { messages: [again] }))['rollout/repeat_rate'],
  ).toBe(0);
});

test('a policy whose thought is opened by the prompt is read as one that opens it', () => {
  const opened = { role: 'assistant', content: call('search', { query: ['a'] }).content.replace('<think>', '') };
  expect(measured(trajectory('a1', { messages: [opened, opened] }))['rollout/repeat_rate']).toBe(1 / 2);
});

test('answers are as long as the turns that gave them, and tools fail by their observations', () => {
  const spans = [
    span('action', 'search', 50),
    span('observation', 'search', 10, 'tool_error'),
    span('action', 'search', 40),
    span('observation', 'search', 10),
    span('observation', null, 10, 'forced'),
    span('action', 'answer', 30),
  ];
  expect(measured(trajectory('a1', { spans }), trajectory('a2'))).toMatchObject({
    'rollout/answer_tokens': 30,
    'rollout/tool_error_rate': 1 / 2,
  });
});

test('a group is all the same when its outcomes are; what broke is no outcome, and branches have one', () => {
  const outcome = (value: number) => ({ reward: { outcome: value, turns: [] } });
  expect(
    measured(
      trajectory('a1', outcome(1)),
      trajectory('a2', outcome(1)),
      trajectory('a3', { ...outcome(0), termination: 'failed' }),
      trajectory('b1', outcome(1)),
      trajectory('b2', outcome(0)),
      trajectory('b2', { ...outcome(0), branch: 1 }),
    ),
  ).toMatchObject({ 'rollout/groups_same_share': 1 / 2, 'rollout/failed_share': 1 / 5 });
});

test('every one of them may have limits', () => {
  expect(HEALTH_METRICS).toEqual(expect.arrayContaining(Object.keys(measured())));
});
