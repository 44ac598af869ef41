/** Whoever reads rows of a shard counts a trajectory of several branches once. */
import { expect, test } from 'vitest';
import { tokensOf, wholeTrajectories } from '../../activities/read-shards.ts';
import { Tally } from '../../cli/report/tally.ts';
import { ToolUse } from '../../environments/deep-research/benchmarks/score-benchmark.ts';
import type { Span, Trajectory } from '../../schemas/trajectory.ts';

const span = (kind: Span['kind'], start: number, end: number, more: Partial<Span> = {}): Span => ({
  turn: 0,
  kind,
  start,
  end,
  tool: null,
  status: 'ok',
  latency_ms: 0,
  cached: false,
  denied: 0,
  weight_version: '',
  ...more,
});

const row = (trajectory_id: string, branch: number, spans: Span[], turns: (number | null)[]) =>
  ({
    trajectory_id,
    task_id: 't',
    group_id: 'g',
    sample: 0,
    branch,
    spans,
    reward: { outcome: 1, turns },
    score: { exact_match: 1, f1: 1, format_valid: true, answer_in_observation: true },
    termination: 'answer',
    failure_class: null,
    answer: 'MIT',
    messages: [
      { role: 'user', content: 'q' },
      ...turns.map((_, turn) => ({ role: 'assistant', content: `${branch}.${turn}` })),
    ],
  }) as unknown as Trajectory;

/** 100 of prompt, a search, a summary; then 130 repeated, what was found (by a fault: nothing), the answer. */
const managed = [
  row(
    'a',
    0,
    [
      span('prompt', 0, 100),
      span('action', 100, 120, { tool: 'search' }),
      span('observation', 120, 150, { status: 'summary' }),
      span('action', 150, 180, { turn: 1, tool: 'summary' }),
    ],
    [null, -1],
  ),
  row(
    'a',
    1,
    [
      span('prompt', 0, 130, { turn: 2 }),
      span('observation', 130, 150, { turn: 1, tool: 'search', status: 'fault_empty' }),
      span('action', 150, 160, { turn: 2, tool: 'answer' }),
    ],
    [null],
  ),
];
const plain = row('b', 0, [span('prompt', 0, 100), span('action', 100, 110, { tool: 'answer' })], [null]);

async function* shard() {
  yield* [...managed, plain];
}

async function whole() {
  const found: Trajectory[] = [];
  for await (const one of wholeTrajectories(shard())) found.push(one);
  return found;
}

test('branches are read as one trajectory, whose repeated prompt counts once', async () => {
  const [a, b, ...others] = await whole();
  expect(others).toEqual([]);
  expect(a?.reward).toEqual({ outcome: 1, turns: [null, -1, null] });
  expect(a?.messages.map(({ content }) => content)).toEqual(['q', '0.0', '0.1', '1.0']);
  expect(tokensOf(a as Trajectory)).toBe(180 + 30);
  expect(tokensOf(b as Trajectory)).toBe(110);
});

test('a benchmark counts samples, summaries and faults, and a summary is no call', async () => {
  const use = new ToolUse();
  for (const one of await whole()) use.add(one);
  expect(use.means()).toMatchObject({
    turns: 2,
    tokens: (210 + 110) / 2,
    'calls/search': 0.5,
    summaries: 0.5,
    'faults/empty': 0.5,
    malformed: 0,
    'termination/answer': 1,
  });
});

test('a report counts outcomes by trajectory, tokens and calls by branch', () => {
  const tally = new Tally('stage1', 1000);
  for (const one of [...managed, plain]) tally.add(one, { hadTools: true });
  expect(tally.totals).toEqual({ trajectories: 2, tokens: 320, action_tokens: 70, tool_calls: 1 });
  expect(tally.usage.outcomes.right).toBe(2);
  expect(tally.usage.terminations).toEqual({ answer: 2 });
});
