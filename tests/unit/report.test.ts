import { mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { groupBenchmarks } from '../../cli/report/benchmarks.ts';
import { readAction, readResults } from '../../cli/report/page/read-turn.ts';
import { countPasses } from '../../cli/report/pass-rates.ts';
import { SeededSample } from '../../cli/report/seeded-sample.ts';
import { outcomeOf, type ShownRow, showTrajectory } from '../../cli/report/show-trajectory.ts';
import { Tally } from '../../cli/report/tally.ts';
import { refuseForeignFile } from '../../cli/report/write-page.ts';
import type { BenchmarkBody } from '../../schemas/artifact.ts';
import type { Span } from '../../schemas/trajectory.ts';

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

/** A search and an answer, written down as the agent loop writes them. */
const row: ShownRow = {
  trajectory_id: 'abcdef012345/2/q1/0',
  task_id: 'q1',
  group_id: 'q1',
  branch: 0,
  checkpoint: 'c',
  sampling: { temperature: 1, top_p: 0.9, seed: 5 },
  spans: [
    span('prompt', 0, 100),
    span('action', 100, 120, { tool: 'search' }),
    span('observation', 120, 170, { tool: 'search', latency_ms: 30, denied: 1 }),
    span('action', 170, 180, { turn: 1, tool: 'answer' }),
  ],
  reward: { outcome: 1, turns: [0.5, null] },
  score: { exact_match: 1, f1: 1, format_valid: true, answer_in_observation: true },
  termination: 'answer',
  failure_class: null,
  answer: '42',
  messages: [
    { role: 'user', content: 'How many?' },
    {
      role: 'assistant',
      content:
        '<think>Look.</think>\n<tool_call>{"name":"search","arguments":{"query":["how many"]}}</tool_call><|im_end|>',
    },
    {
      role: 'tool',
      content:
        '\n<|im_start|>user\n<tool_response>\n1. Page\nhttps://a\nsnippet\n</tool_response><|im_end|>\n<|im_start|>assistant\n',
    },
    { role: 'assistant', content: '<think>Seen.</think>\n<answer>42</answer><|im_end|>' },
  ],
};

describe('a trajectory as the reader shows it', () => {
  test('its turns have their own tokens, rewards and advantages, and no markup of the chat format', () => {
    const shown = showTrajectory(row, null, {
      advantages: [
        [0, 0],
        [100, 2],
        [110, 4],
        [120, 0],
        [170, -1],
        [180, 0],
      ],
      rewards: null,
    });
    expect(shown.prompt_tokens).toBe(100);
    expect(shown.turns).toEqual([
      {
        turn: 0,
        action: '<think>Look.</think>\n<tool_call>{"name":"search","arguments":{"query":["how many"]}}</tool_call>',
        action_tokens: 20,
        tool: 'search',
        status: 'ok',
        latency_ms: 0,
        reward: 0.5,
        advantage: 3,
        observation: {
          text: '1. Page\nhttps://a\nsnippet',
          tokens: 50,
          status: 'ok',
          latency_ms: 30,
          cached: false,
          denied: 1,
        },
      },
      {
        turn: 1,
        action: '<think>Seen.</think>\n<answer>42</answer>',
        action_tokens: 10,
        tool: 'answer',
        status: 'ok',
        latency_ms: 0,
        reward: null,
        advantage: -1,
        observation: null,
      },
    ]);
  });

  test('turns that training rewarded show that reward, in the place of what was known while sampling', () => {
    const { turns } = showTrajectory(row, null, { advantages: [[0, 1]], rewards: [0.25, null] });
    expect(turns.map(({ reward }) => reward)).toEqual([0.25, null]);
  });

  test('one that nobody trained on has no advantage, which is not an advantage of 0', () => {
    expect(showTrajectory(row, null, null).turns[0]?.advantage).toBeNull();
  });

  test.each([
    ['right', {}],
    ['right', { reward: { outcome: -1, turns: [] } }],
    ['wrong', { score: { ...row.score, exact_match: 0 }, reward: { outcome: 0, turns: [] } }],
    ['unfinished', { score: { ...row.score, exact_match: 0 }, reward: { outcome: -1, turns: [] }, answer: null }],
    ['broken', { termination: 'failed' as const, failure_class: 'engine' }],
  ])('is %s', (outcome, change) => {
    expect(outcomeOf({ ...row, ...change })).toBe(outcome);
  });
});

test('the sums over trajectories count samples without tools as cost, and not as use of tools', () => {
  const tally = new Tally('stage1', 360);
  tally.add(row, { hadTools: true });
  tally.add(row, { hadTools: false });
  expect(tally.totals).toEqual({ trajectories: 2, tokens: 360, action_tokens: 60, tool_calls: 2 });
  expect(tally.usage.outcomes.right).toBe(1);
  expect(tally.usage.actions.right).toEqual({ search: 1, answer: 1 });
  expect(tally.usage.context.right[10]).toBe(1); // 180 of 360 tokens
});

test('a seeded sample does not depend on the order, keeps it, and is as large as it may be', () => {
  const ids = Array.from({ length: 1000 }, (_, at) => `t${at}`);
  const draw = (order: readonly string[], seed = 's'): string[] => {
    const sample = new SeededSample<string>(50, seed);
    for (const id of order) sample.offer(id, id);
    expect(sample.offered).toBe(1000);
    return sample.taken();
  };
  const drawn = draw(ids);
  expect(drawn).toHaveLength(50);
  expect(drawn).toEqual(drawn.toSorted((a, b) => Number(a.slice(1)) - Number(b.slice(1))));
  expect(new Set(draw(ids.toReversed()))).toEqual(new Set(drawn));
  expect(draw(ids, 'other')).not.toEqual(drawn);
});

test('pass rates before and after filtering leave out what was never measured', () => {
  const rate = (passes: number, kept: boolean, rollouts = 4) => ({
    task_id: 't',
    rollouts,
    masked: 4 - rollouts,
    passes,
    pass_rate: 0,
    kept,
    mean_tokens: 0,
  });
  const rates = [rate(0, false), rate(1, true), rate(1, true), rate(4, false), rate(0, false, 0)];
  expect(countPasses(rates)).toEqual({ rollouts: 4, before: [1, 2, 0, 0, 1], after: [0, 2, 0, 0, 0] });
});

test('benchmarks of unequal protocols never share a table; published numbers stand beside each', () => {
  const body = (max_turns: number): BenchmarkBody => ({
    benchmark: 'gaia',
    after: 'stage1',
    questions: 1,
    samples: 1,
    protocol: { max_turns },
    results: { avg_at_1: { value: 0.5, low: 0, high: 1 } },
    baselines: {},
    answer_in_observation: 0,
    groups: {},
    unfinished: 0,
    masked: 0,
    tool_use: {},
  });
  const bodies = [
    { node: 'a', body: body(10) },
    { node: 'b', body: body(20) },
    { node: 'c', body: body(10) },
  ];
  const tables = groupBenchmarks(bodies, [], { references: { paper: { world: 'web', gaia: 71.3, frames: 80 } } });
  expect(tables.map(({ name, rows }) => [name, rows.map(({ node }) => node)])).toEqual([
    ['gaia', ['a', 'c']],
    ['gaia, protocol 2', ['b']],
  ]);
  expect(tables[0]?.references).toEqual([{ name: 'paper', protocol: 'world web', value: 0.713 }]);
});

describe('reading a turn', () => {
  test('a call gives its queries, pages and goal', () => {
    const call = { name: 'visit', arguments: { url: ['u1', 'u2'], goal: 'g' } };
    expect(readAction(`<think>t</think><tool_call>${JSON.stringify(call)}</tool_call>`)).toEqual({
      thought: 't',
      call: { name: 'visit', queries: [], urls: ['u1', 'u2'], goal: 'g' },
      answer: null,
      rest: '',
    });
  });

  test('a thought whose tag the prompt opened is a thought', () => {
    expect(readAction('hm</think>\n<answer>a</answer>')).toMatchObject({ thought: 'hm', answer: 'a', rest: '' });
  });

  test.each(['<tool_call>{"name": 5}</tool_call>', '<tool_call>{not json</tool_call>', 'no tags at all'])(
    'what fits no form is shown as it is: %s',
    (text) => {
      expect(readAction(text)).toMatchObject({ call: null, rest: text });
    },
  );

  test('results are read by their numbers, so that a snippet may have numbered lines', () => {
    expect(readResults('1. A\nu1\nfirst\n5. not a result\n2. B\nu2\n')).toEqual([
      { title: 'A', url: 'u1', snippet: 'first\n5. not a result' },
      { title: 'B', url: 'u2', snippet: '' },
    ]);
    expect(readResults('No results.')).toBeNull();
  });
});

describe('where a report may be written', () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'exp-report-'));
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  test('over a report of ours and over nothing', async () => {
    await refuseForeignFile(join(folder, 'new.html'));
    const ours = join(folder, 'ours.html');
    await writeFile(ours, '<!doctype html>\n<meta name="generator" content="exp report">');
    await refuseForeignFile(ours);
  });

  test('never over anything else', async () => {
    const theirs = join(folder, 'thesis.html');
    await writeFile(theirs, '<!doctype html><p>three years of work');
    await expect(refuseForeignFile(theirs)).rejects.toThrow('EXISTS');
    await expect(refuseForeignFile(folder)).rejects.toThrow('NOT_REGULAR');
    await symlink(theirs, join(folder, 'link.html'));
    await expect(refuseForeignFile(join(folder, 'link.html'))).rejects.toThrow('NOT_REGULAR');
    expect(await readFile(theirs, 'utf8')).toContain('three years');
  });
});
