import { stripVTControlCharacters } from 'node:util';
import { expect, test } from 'vitest';
import { NOTHING } from '../../activities/budget.ts';
import { renderChanges, renderFrame, renderProgress } from '../../cli/live-view.ts';
import { type BenchmarkResult, renderResults } from '../../cli/run-results.ts';
import { exitCodeOf, type NodeState, type RunState } from '../../cli/run-state.ts';
import { detectTerminal, oneLine, progressBar, type Terminal, textWidth, truncate } from '../../cli/terminal.ts';

const START = new Date('2026-03-01T10:00:00Z');
const NOW = new Date('2026-03-01T10:04:12Z');

function node(id: string, change: Partial<NodeState> = {}): NodeState {
  return {
    id,
    kind: 'corpus',
    key: id.padEnd(64, '0'),
    status: 'waiting',
    shared: false,
    error: null,
    attempts: 0,
    done: 0,
    total: 0,
    detail: '',
    started_at: null,
    ended_at: null,
    ...change,
  };
}

function state(nodes: NodeState[], change: Partial<RunState> = {}): RunState {
  return {
    run: 'quickstart-260301-3fa2c1',
    name: 'quickstart',
    status: 'running',
    created_at: START,
    ended_at: null,
    mlflow_url: 'http://127.0.0.1:5000/#/experiments/1/runs/0123456789abcdef',
    paused: null,
    spend: { spent: NOTHING, reserved: NOTHING, bounds: {}, money: null },
    eta_seconds: 372,
    trouble: null,
    arms: [{ arm: 'control', status: 'running', nodes, gates: [] }],
    ...change,
  };
}

const NODES = [
  node('corpus', { status: 'reused' }),
  node('index', {
    kind: 'index',
    status: 'done',
    done: 2971,
    total: 2971,
    started_at: START,
    ended_at: new Date(START.getTime() + 58_000),
  }),
  node('cold_start', {
    kind: 'sft',
    status: 'running',
    done: 3,
    total: 6,
    attempts: 2,
    started_at: new Date(NOW.getTime() - 62_000),
    detail:
      'step 3/6 · loss 1.23 · 1,204 tok/s · and more words than any terminal of ordinary width would want to show in one line',
  }),
  node('held_out.base', {
    kind: 'benchmark',
    status: 'failed',
    started_at: START,
    ended_at: NOW,
    error: 'ENGINE_UNAVAILABLE: no answer from the engine at http://127.0.0.1:8000 within 30 s',
  }),
  node('held_out.stage1', { kind: 'benchmark' }),
];

const terminal = (change: Partial<Terminal> = {}): Terminal => ({
  columns: 100,
  rows: 40,
  unicode: true,
  colour: false,
  ...change,
});
const frame = { now: NOW, tick: 1, hint: 'Ctrl-C detaches, the run goes on · exp watch quickstart-260301-3fa2c1' };

test.each([40, 60, 100, 160])(
  'at %i columns no line is wider than the terminal, and every node has its line',
  (columns) => {
    const lines = renderFrame(state(NODES), terminal({ columns }), frame);

    for (const line of lines) expect(textWidth(line)).toBeLessThanOrEqual(columns);
    for (const { status } of NODES) expect(lines.some((line) => line.includes(status))).toBe(true);
    expect(lines.join('\n')).toContain('ENGINE_UNAVAILABLE');
  },
);

test('a wide terminal shows kind, counts and details; a narrow one keeps name, state and time', () => {
  const wide = renderFrame(state(NODES), terminal({ columns: 160 }), frame).join('\n');
  expect(wide).toContain('sft');
  expect(wide).toContain('2,971/2,971');
  expect(wide).toContain('attempt 2 · step 3/6 · loss 1.23');

  const narrow = renderFrame(state(NODES), terminal({ columns: 60 }), frame);
  expect(narrow.find((line) => line.includes('cold_start'))).toMatch(/cold_start +running +.*1:02$/);
});

test('the header says elapsed time, what is left, and how many nodes have ended', () => {
  const [header, link] = renderFrame(state(NODES), terminal(), frame);
  expect(header).toBe('quickstart-260301-3fa2c1  running  4:12  ≈6:12 left  3/5 nodes');
  expect(link).toContain('http://127.0.0.1:5000/#/experiments/1/runs/0123456789abcdef');
});

test('no symbol is an emoji, which some terminals draw two columns wide', () => {
  const statuses = ['waiting', 'running', 'done', 'reused', 'failed', 'gate_failed', 'cancelled', 'skipped'] as const;
  const lines = renderFrame(
    state(
      statuses.map((status) => node(status, { status })),
      { trouble: 'away' },
    ),
    terminal(),
    frame,
  );
  expect(lines.join('')).not.toMatch(/\ufe0f|\p{Extended_Pictographic}/u);
});

test('half of the steps fill half of the bar', () => {
  expect(progressBar(terminal(), 3, 6, 10)).toBe('█████░░░░░');
  expect(progressBar(terminal(), 1, 16, 10)).toBe('▋░░░░░░░░░');
  expect(progressBar(terminal({ unicode: false }), 3, 6, 10)).toBe('[####....]');
  expect(progressBar(terminal(), 9, 6, 4)).toBe('████');
});

test('a terminal without Unicode gets ASCII only', () => {
  const lines = renderFrame(state(NODES), terminal({ unicode: false }), frame).join('\n');
  expect(lines).toMatch(/^\p{ASCII}*$/u);
});

test('colours take no width and are absent unless asked for', () => {
  const plain = renderFrame(state(NODES), terminal(), frame);
  const coloured = renderFrame(state(NODES), terminal({ colour: true }), frame);
  expect(plain.join('')).not.toContain('\u001b');
  expect(coloured.join('')).toContain('\u001b[');
  expect(coloured.map((line) => stripVTControlCharacters(line).trimEnd())).toEqual(plain);
});

test('more nodes than rows: finished ones are folded, running and failed ones stay', () => {
  const many = [...Array.from({ length: 30 }, (_, at) => node(`done${at}`, { status: 'done' })), ...NODES];
  const lines = renderFrame(state(many), terminal({ rows: 20 }), frame);

  expect(lines.length).toBeLessThanOrEqual(19);
  const text = lines.join('\n');
  expect(text).toMatch(/\d+ nodes +done/);
  expect(text).toContain('cold_start');
  expect(text).toContain('ENGINE_UNAVAILABLE');
  expect(text).toContain('Ctrl-C detaches');
});

const stage = (id: string, key: string, change: Partial<NodeState> = {}): NodeState =>
  node(id, { kind: 'rl', key: key.padEnd(64, '0'), ...change });

/** Two arms share everything before the stage; the second has not asked for it yet. */
const ARMS = state([], {
  arms: [
    { arm: 'control', status: 'running', nodes: [...NODES, stage('stage', 'a', { status: 'done' })], gates: [] },
    {
      arm: 'no_filter',
      status: 'waiting',
      nodes: [...NODES.map((one) => ({ ...one, status: 'waiting' as const, error: null })), stage('stage', 'b')],
      gates: [],
    },
  ],
});

test('arms are listed with their status; a node they share stands once, below all who need it', () => {
  const lines = renderFrame(ARMS, terminal(), frame);
  expect(lines[0]).toContain('4/7 nodes');
  expect(lines).toContain('control running 4/6  no_filter waiting 0/6');
  const titles = ['all arms', 'control', 'no_filter'].map((title) => lines.indexOf(title));
  expect(titles.every((at, index) => at > (titles[index - 1] ?? 0))).toBe(true);
  expect(lines.filter((line) => line.includes('cold_start'))).toHaveLength(1);
  expect(lines.find((line) => line.includes('cold_start'))).toContain('running');
  expect(lines.filter((line) => /^\S stage /.test(line))).toHaveLength(2);
  expect(renderFrame(state(NODES), terminal(), frame).join('\n')).not.toContain('control');
});

test('many arms take a few lines: the rest is counted', () => {
  const many = Array.from({ length: 60 }, (_, at) => ({ ...ARMS.arms[1]!, arm: `arm_number_${at}` }));
  const lines = renderFrame(state([], { arms: many }), terminal(), frame);
  expect(lines.filter((line) => line.includes('arm_number'))).toHaveLength(4);
  expect(lines.find((line) => line.startsWith('and '))).toMatch(/^and \d+ more: \d+ waiting$/);
});

test('lines of a pipe tell a shared node once, one of a single arm with its name, and how arms go on', () => {
  const after = {
    ...ARMS,
    arms: ARMS.arms.map((one) => ({
      ...one,
      status: one.arm === 'control' ? ('done' as const) : one.status,
      nodes: one.nodes.map((each) => (each.id === 'cold_start' ? { ...each, status: 'done' as const } : each)),
    })),
  };
  expect(renderChanges(ARMS, after, NOW).map((line) => line.slice(21).replace(/ {2}.*/, ''))).toEqual([
    'cold_start done',
    'arm control done',
  ]);
  expect(renderChanges(null, ARMS, NOW).map((line) => line.slice(21))).toContain('control/stage done');
});

test('a node that another run asked for first is marked as shared', () => {
  const shared = node('index', { status: 'running', shared: true, detail: 'chunk 12' });
  expect(renderFrame(state([shared]), terminal(), frame).join('\n')).toContain('shared with another run · chunk 12');
});

test('text from outside cannot move the cursor or reverse the line', () => {
  expect(oneLine('\u001b[2Jboom\u202e evil\nsecond')).toBe('boom  evil');
  expect(truncate('検索エンジン', 7)).toBe('検索エ…');
});

test('lines of a pipe: one per change of state, in order, and nothing when nothing changed', () => {
  const before = state([node('corpus', { status: 'running', started_at: START }), node('index')]);
  const after = state([
    node('corpus', { status: 'done', started_at: START, ended_at: NOW, done: 10, total: 10 }),
    node('index', { status: 'running', started_at: NOW }),
  ]);

  expect(renderChanges(null, before, START)).toEqual([
    '2026-03-01T10:00:00Z run quickstart-260301-3fa2c1 running',
    '2026-03-01T10:00:00Z corpus running  0:00',
  ]);
  expect(renderChanges(before, after, NOW)).toEqual([
    '2026-03-01T10:04:12Z corpus done  10/10  4:12',
    '2026-03-01T10:04:12Z index running  0:00',
  ]);
  expect(renderChanges(after, after, NOW)).toEqual([]);
});

test('the last lines of a pipe tell the first error and how the run ended', () => {
  const before = state([node('corpus', { status: 'running', started_at: START })]);
  const failed = node('corpus', { status: 'failed', started_at: START, ended_at: NOW, error: 'DATA: no such file' });
  const lines = renderChanges(before, state([failed], { status: 'failed', ended_at: NOW }), NOW);
  expect(lines).toEqual([
    '2026-03-01T10:04:12Z corpus failed  DATA: no such file  4:12',
    '2026-03-01T10:04:12Z run quickstart-260301-3fa2c1 failed after 4:12',
  ]);
});

test('progress lines name every node that runs and reports', () => {
  expect(renderProgress(state(NODES), NOW)).toHaveLength(1);
  expect(renderProgress(state(NODES), NOW)[0]).toMatch(/^2026-03-01T10:04:12Z cold_start running {2}3\/6 {2}step 3\/6/);
});

test('exit codes follow the final status', () => {
  expect((['done', 'failed', 'cancelled', 'gate_failed'] as const).map(exitCodeOf)).toEqual([0, 1, 1, 3]);
});

const interval = (value: number) => ({ value, low: value - 0.1, high: value + 0.1 });

function benchmark(after: string, value: number, closedBook = 0.125): BenchmarkResult {
  return {
    arm: 'control',
    node: `held_out.${after}`,
    body: {
      benchmark: 'held_out',
      after,
      questions: 32,
      samples: 2,
      protocol: {},
      answer_in_observation: 0.75,
      groups: {},
      unfinished: 3,
      masked: 0,
      tool_use: {},
      results: { avg_at_2: interval(value), pass_at_2: interval(value + 0.1) },
      baselines: { closed_book: interval(closedBook), most_frequent: interval(0.2) },
    },
  };
}

test('the final table has a row per checkpoint, then each baseline once if it is the same for all', () => {
  const lines = renderResults(
    [benchmark('base', 0.1), benchmark('cold_start', 0.4), benchmark('stage1', 0.45)],
    terminal(),
  );
  const firstWords = lines.slice(4).map((line) => line.trim().split(/ {2,}/));

  expect(lines[1]).toContain('32 questions × 2');
  expect(lines[2]).toMatch(/after +avg@2 +pass@2 +answer seen +unfinished/);
  expect(firstWords[1]).toEqual(['cold_start', '40.0 [30.0, 50.0]', '50.0 [40.0, 60.0]', '75.0', '3']);
  expect(firstWords.map(([first]) => first)).toEqual(['base', 'cold_start', 'stage1', 'closed book', 'most frequent']);
});

test('a baseline that differs between checkpoints says whose it is', () => {
  const lines = renderResults([benchmark('base', 0.1, 0.1), benchmark('stage1', 0.4, 0.2)], terminal()).join('\n');
  expect(lines).toContain('closed book (base)');
  expect(lines).toContain('closed book (stage1)');
});

test('NO_COLOR, a pipe and a dumb terminal mean no colours; FORCE_COLOR means colours', () => {
  const colour = (isTTY: boolean, env: NodeJS.ProcessEnv): boolean => detectTerminal({ isTTY, env }).colour;
  expect(colour(true, {})).toBe(true);
  expect(colour(true, { NO_COLOR: '1' })).toBe(false);
  expect(colour(true, { TERM: 'dumb' })).toBe(false);
  expect(colour(false, {})).toBe(false);
  expect(colour(false, { FORCE_COLOR: '1' })).toBe(true);
});
