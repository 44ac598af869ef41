/** A report of a run that never was, of any size: seeded, so that the same size gives the same file. */

import {
  OUTCOMES,
  type Outcome,
  type ReportedNode,
  type RunReport,
  type ShownTrajectory,
  type ShownTurn,
  type TrajectoryIndex,
} from '../../cli/report/document.ts';
import { seededRandom } from '../../environments/deep-research/tasks/seeded.ts';

const ARMS = ['control', 'no_filter', 'cool'];
const CAPABILITIES = ['direct_retrieval', 'aggregation', 'enumeration', 'cross_verification', 'statistics'];
const TERMINATIONS = ['answer', 'max_turns', 'context', 'failed'];
const FAILURES = ['tool', 'engine'];
const BEGAN = Date.UTC(2026, 0, 5, 9, 0, 0);
const CONTEXT_LENGTH = 32_768;

/** Text that would do harm if it were ever taken for markup. */
export const HOSTILE = '</script><img src=x onerror="document.title=\'taken\'"><b>bold</b> <!-- ${x}';

export interface MadeReport {
  report: RunReport;
  trajectories(): AsyncGenerator<ShownTrajectory>;
}

export function madeReport(size: number): MadeReport {
  const shown = Array.from({ length: size }, (_, at) => () => madeTrajectory(at));
  return {
    report: { ...madeRun(), trajectories: indexOf(shown, 3 * size) },
    async *trajectories() {
      for (const make of shown) yield make();
    },
  };
}

const SOURCES = ['stage1.profile', 'control/stage1', 'no_filter/stage1', 'cool/stage1', 'control/gaia.stage1'];

/** Words as a page has them, so that compression has about as much to do as with real text. */
const SYLLABLES = 'ka lo mi ren tus var pel dor ish an em or ta quin ber sol ge ru nal fi wex om pra'.split(' ');
function wordsOf(random: () => number, count: number): string {
  const word = (): string =>
    Array.from({ length: 1 + Math.floor(3 * random()) }, () => SYLLABLES[Math.floor(SYLLABLES.length * random())]).join(
      '',
    );
  return Array.from({ length: count }, word).join(' ');
}

function madeTrajectory(at: number): ShownTrajectory & { source: number; step: number } {
  const random = seededRandom(`trajectory/${at}`);
  const pick = <T>(items: readonly T[]): T => items[Math.floor(items.length * random())] as T;
  const source = at % SOURCES.length;
  const outcome: Outcome = at === 0 ? 'right' : pick(['right', 'right', 'wrong', 'wrong', 'unfinished', 'broken']);
  const task = at % 997;
  const question = at === 0 ? `What is ${HOSTILE}?` : `Which ${wordsOf(random, 12)} is number ${task}?`;
  const turns = 2 + Math.floor(6 * random());
  const answer = outcome === 'right' || outcome === 'wrong' ? wordsOf(random, 3) : null;
  const isTrained = source >= 1 && source <= 3;
  const step = isTrained ? 1 + (at % 40) : 0;
  return {
    id: `${(source + 1).toString(16).repeat(12)}/${step}/q${task}/${at}`,
    source,
    step,
    task_id: `q${task}`,
    question,
    reference: outcome === 'right' ? answer : wordsOf(random, 3),
    aliases: [],
    capability: CAPABILITIES[task % CAPABILITIES.length] as string,
    evidence: [`https://example.org/${task}`],
    answer,
    outcome,
    reward: { right: 1, wrong: 0, unfinished: -1, broken: 0 }[outcome],
    score: {
      exact_match: outcome === 'right' ? 1 : 0,
      f1: outcome === 'right' ? 1 : 0.25,
      format_valid: true,
      answer_in_observation: outcome === 'right',
    },
    termination: { right: 'answer', wrong: 'answer', unfinished: pick(['max_turns', 'context']), broken: 'failed' }[
      outcome
    ],
    failure_class: outcome === 'broken' ? pick(FAILURES) : null,
    checkpoint: 'c'.repeat(64),
    temperature: 1,
    top_p: 0.95,
    seed: at,
    prompt_tokens: 180,
    turns: Array.from({ length: turns }, (_, turn) =>
      madeTurn(random, { turn, turns, answer, isTrained, hostile: at === 0 }),
    ),
  };
}

function madeTurn(
  random: () => number,
  {
    turn,
    turns,
    answer,
    isTrained,
    hostile,
  }: { turn: number; turns: number; answer: string | null; isTrained: boolean; hostile: boolean },
): ShownTurn {
  const isLast = turn === turns - 1;
  const tool = isLast ? (answer === null ? null : 'answer') : turn % 2 === 0 ? 'search' : 'visit';
  const thought = `<think>${wordsOf(random, 40)}</think>\n`;
  const call = (name: string, given: object): string =>
    `<tool_call>${JSON.stringify({ name, arguments: given })}</tool_call>`;
  const actions = {
    search: () => call('search', { query: [hostile ? HOSTILE : wordsOf(random, 6), wordsOf(random, 5)] }),
    visit: () => call('visit', { url: [`https://example.org/${wordsOf(random, 1)}`], goal: wordsOf(random, 8) }),
    answer: () => `<answer>${answer}</answer>`,
  };
  const result = (rank: number): string =>
    `${rank}. ${hostile ? HOSTILE : wordsOf(random, 5)}\nhttps://example.org/${wordsOf(random, 1)}\n${wordsOf(random, 50)}`;
  const text = tool === 'search' ? [1, 2, 3, 4, 5].map(result).join('\n') : wordsOf(random, 400);
  return {
    turn,
    action: thought + (tool === null ? wordsOf(random, 10) : actions[tool as keyof typeof actions]()),
    action_tokens: 60 + Math.floor(120 * random()),
    tool,
    status: tool === null ? 'malformed' : 'ok',
    latency_ms: 800 + 3000 * random(),
    reward: isLast ? null : Math.round(100 * random()) / 100,
    advantage: isTrained ? Math.round(1000 * (random() - 0.5)) / 500 : null,
    observation: isLast
      ? null
      : {
          text,
          tokens: 600 + Math.floor(900 * random()),
          status: 'ok',
          latency_ms: 40 + 100 * random(),
          cached: false,
          denied: 0,
        },
  };
}

const CHUNK = 100;

function indexOf(shown: readonly (() => ReturnType<typeof madeTrajectory>)[], total: number): TrajectoryIndex {
  const columns: TrajectoryIndex['columns'] = {
    id: [],
    source: [],
    task: [],
    outcome: [],
    termination: [],
    failure: [],
    step: [],
    turns: [],
    tokens: [],
    reward: [],
  };
  const tasks = new Map<string, TrajectoryIndex['tasks'][number]>();
  for (const make of shown) {
    const one = make();
    if (!tasks.has(one.task_id))
      tasks.set(one.task_id, { id: one.task_id, question: one.question, capability: one.capability });
    columns.id.push(one.id);
    columns.source.push(one.source);
    columns.task.push([...tasks.keys()].indexOf(one.task_id));
    columns.outcome.push(OUTCOMES.indexOf(one.outcome));
    columns.termination.push(TERMINATIONS.indexOf(one.termination));
    columns.failure.push(one.failure_class === null ? -1 : FAILURES.indexOf(one.failure_class));
    columns.step.push(one.step);
    columns.turns.push(one.turns.length);
    columns.tokens.push(
      one.turns.reduce((sum, turn) => sum + turn.action_tokens + (turn.observation?.tokens ?? 0), 180),
    );
    columns.reward.push(one.reward);
  }
  return {
    total,
    embedded: shown.length,
    chunk_size: CHUNK,
    sources: SOURCES,
    tasks: [...tasks.values()],
    terminations: TERMINATIONS,
    failures: FAILURES,
    columns,
  };
}

function madeRun(): Omit<RunReport, 'trajectories'> {
  const random = seededRandom('run');
  const stages = ARMS.map((arm) => `${arm}/stage1`);
  const benchmarks = ARMS.map((arm) => `${arm}/gaia.stage1`);
  const node = (
    name: string,
    kind: string,
    minutes: [number, number],
    more: Partial<ReportedNode> = {},
  ): ReportedNode => ({
    name,
    kind,
    kind_version: 2,
    key: (name.length % 10).toString().repeat(64),
    seed: 17,
    status: 'done',
    arms: ARMS,
    inputs: [],
    attempts: 1,
    started_ms: BEGAN + 60_000 * minutes[0],
    ended_ms: BEGAN + 60_000 * minutes[1],
    detail: '',
    error: null,
    artifact: { digest: 'd'.repeat(64), generation: 1, bytes: 1000, made_with: { node: '20.20.2', commit: 'a1b2c3d' } },
    ...more,
  });
  const value = (at: number): { value: number; low: number; high: number } => ({
    value: at,
    low: at - 0.06,
    high: at + 0.07,
  });
  const usageOf = (name: string): RunReport['usage'][number] => ({
    node: name,
    context_length: CONTEXT_LENGTH,
    outcomes: { right: 400, wrong: 500, unfinished: 80, broken: 20 },
    context: Object.fromEntries(
      OUTCOMES.map((outcome, shift) => [
        outcome,
        Array.from({ length: 20 }, (_, bin) =>
          Math.max(0, Math.round(60 - 4 * Math.abs(bin - 6 - 3 * shift) + 8 * random())),
        ),
      ]),
    ) as Record<Outcome, number[]>,
    actions: {
      right: { search: 900, visit: 1400, answer: 400 },
      wrong: { search: 2100, visit: 700, answer: 490, malformed: 160 },
      unfinished: { search: 700, malformed: 300 },
      broken: {},
    },
    terminations: { answer: 890, max_turns: 60, context: 30, failed: 20 },
  });
  const rowOf = (at: number, arm: string): RunReport['benchmarks'][number]['rows'][number] => ({
    node: `${arm}/gaia.stage1`,
    arms: [arm],
    body: {
      benchmark: 'gaia',
      after: 'stage1',
      questions: 103,
      samples: 3,
      results: { avg_at_3: value(at), pass_at_3: value(at + 0.1) },
      baselines: { closed_book: value(0.08), most_frequent_answer: value(0.03) },
      answer_in_observation: at + 0.12,
      groups: {
        'capability/direct_retrieval': { questions: 60, ...value(at + 0.05) },
        'template/unseen': { questions: 20, ...value(at - 0.1) },
      },
      unfinished: 12,
      masked: 1,
      tool_use: { turns: 5.5 },
    },
  });
  const nodes = [
    node('corpus', 'corpus', [0, 0], { status: 'reused', started_ms: null, ended_ms: null }),
    node('index', 'index', [0.1, 4], { inputs: ['corpus'], attempts: 2 }),
    node('tasks', 'tasks', [0.1, 1], { inputs: ['corpus'] }),
    node('cold_start', 'sft', [4, 16], { inputs: ['tasks'] }),
    node('stage1.profile', 'profile', [16, 24], { inputs: ['cold_start', 'index'] }),
    ...stages.map((name, at) =>
      node(name, 'rl', [24 + 15 * at, 38 + 15 * at], {
        inputs: ['cold_start', 'stage1.profile'],
        arms: [ARMS[at] as string],
        attempts: at === 1 ? 3 : 1,
      }),
    ),
    ...benchmarks.map((name, at) =>
      node(name, 'benchmark', [38 + 15 * at, 44 + 15 * at], {
        inputs: [stages[at] as string],
        arms: [ARMS[at] as string],
      }),
    ),
  ];
  const curve = (from: number, to: number): [number, number][] =>
    Array.from({ length: 40 }, (_, step) => [step + 1, from + ((to - from) * step) / 40 + 0.04 * (random() - 0.5)]);
  return {
    run: {
      id: 'made-20260105-090000',
      name: 'made',
      description: 'A run that never was.',
      status: 'done',
      profile: 'local',
      run_key: 'f'.repeat(64),
      spec_path: 'experiments/made.yaml',
      spec: 'api_version: exp/v1\nname: made\nseed: 17\n',
      created_ms: BEGAN,
      ended_ms: BEGAN + 75 * 60_000,
      mlflow_url: 'http://127.0.0.1:5000/#/experiments/1/runs/2',
    },
    arms: ARMS.map((name) => ({
      name,
      seed: 17,
      status: 'done',
      changes: name === 'control' ? {} : { [`curriculum.stage1.${name}`]: 'unset' },
    })),
    nodes,
    licences: [
      { used_as: 'corpus source web', name: 'web', licence: 'CC-BY-4.0', provenance: 'example.org' },
      { used_as: 'policy', name: 'toy-135m', licence: 'Apache-2.0', provenance: 'registry of the profile local' },
    ],
    corpora: [
      {
        node: 'corpus',
        body: {
          pages: 12_000,
          bytes: 9e7,
          dropped: { exact_duplicates: 31, near_duplicates: 12, repeated_urls: 0, over_limit: 0, bad_rows: 2 },
        },
      },
    ],
    tasks: [
      {
        node: 'tasks',
        body: {
          tasks: 1000,
          splits: { train: 700, held_out: 300 },
          mix: Object.fromEntries(
            CAPABILITIES.map((name, at) => [name, { asked: 300 - 50 * at, realised: 290 - 45 * at }]),
          ),
          dropped: { ambiguous: 40 },
        },
      },
    ],
    demonstrations: [],
    curves: [
      {
        node: 'cold_start',
        kind: 'sft',
        metrics: {
          'train/loss': curve(2.1, 0.6),
          'train/grad_norm': curve(1.4, 0.4),
          'train/learning_rate': curve(0.001, 0.0001),
        },
      },
      ...stages.map((name, at) => ({
        node: name,
        kind: 'rl',
        metrics: {
          'rollout/pass_rate': curve(0.3, 0.5 + 0.05 * at),
          'rollout/reward': curve(0.1, 0.5),
          'train/loss': curve(0.2, 0.1),
          'rollout/f1': curve(0.4, 0.6),
        },
      })),
    ],
    profiles: [
      {
        node: 'stage1.profile',
        body: {
          tasks: 700,
          rollouts: 5600,
          never: 210,
          sometimes: 380,
          always: 110,
          kept: 380,
          saved: 0,
          checkpoint: 'c'.repeat(64),
          mix: { direct_retrieval: { before: 1, after: 1 } },
        },
        rollouts: 8,
        before: [210, 80, 60, 50, 50, 45, 45, 50, 110],
        after: [0, 80, 60, 50, 50, 45, 45, 50, 0],
      },
    ],
    usage: ['stage1.profile', ...stages].map(usageOf),
    cost: stages.map((name) => ({
      node: name,
      trajectories: 1000,
      tokens: 8_000_000,
      action_tokens: 700_000,
      tool_calls: 5700,
      seconds: 840,
      gpus: 8,
      price: 3.75,
    })),
    currency: 'USD',
    benchmarks: [
      {
        name: 'gaia',
        metrics: ['avg_at_3', 'pass_at_3'],
        questions: 103,
        samples: 3,
        rows: ARMS.map((arm, at) => rowOf(0.45 + 0.04 * at, arm)),
        protocol: { samples: 3, world: 'w'.repeat(64) },
        references: [{ name: 'literesearcher_4b', protocol: 'world web', value: 0.713 }],
      },
    ],
    comparisons: [
      {
        benchmark: 'gaia',
        metric: 'avg_at_3',
        control: 'control',
        refused: [],
        missing: [],
        rows: ARMS.map((name, at) => ({
          name,
          differs: { 'curriculum.stage1.temperature': at === 2 ? '0.7' : '1' },
          seeds: 1,
          after: 'stage1',
          value: value(0.45 + 0.04 * at),
          paired:
            at === 0
              ? null
              : {
                  difference: { value: 0.09 - 0.07 * at, low: 0.01 - 0.07 * at, high: 0.16 - 0.06 * at },
                  p_value: 0.04 * at,
                  questions: 103,
                  wins: 20,
                  losses: 10,
                  ties: 73,
                },
        })),
      },
    ],
    events: [
      {
        where: 'index',
        at_ms: BEGAN + 2 * 60_000,
        mark: 'retry',
        text: 'buildIndex done in 40 s, attempt 2 after: UNAVAILABLE: the service is away',
      },
      {
        where: 'no_filter/stage1 rollouts 3',
        at_ms: BEGAN + 45 * 60_000,
        mark: 'crash',
        text: 'rolloutBatch done in 2:10, attempt 2 after: activity Heartbeat timeout',
      },
      { where: 'run', at_ms: BEGAN + 50 * 60_000, mark: 'failure', text: HOSTILE },
    ],
    notes: [],
  };
}
