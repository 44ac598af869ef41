import { describe, expect, test } from 'vitest';
import {
  type Attempt,
  attemptOf,
  type GradedRow,
  isInformative,
  type LearningRule,
  stepAdvantages,
  tokenAdvantages,
} from '../../activities/step-advantages.ts';
import { overlongPenalty } from '../../environments/deep-research/advantages.ts';
import { ALGORITHM_DEFAULTS, type AlgorithmName, IGPO_PRESETS } from '../../schemas/algorithms.ts';
import type { AlgorithmParameters } from '../../schemas/node-parameters.ts';
import type { Span } from '../../schemas/trajectory.ts';

function rule(name: AlgorithmName, own: Partial<AlgorithmParameters> = {}): LearningRule {
  const { clip, ...defaults } = ALGORITHM_DEFAULTS[name];
  const igpo = name === 'igpo' ? { ...IGPO_PRESETS.dr_venus, scope: null } : null;
  const algorithm: AlgorithmParameters = {
    ...{ name, clip: { ...clip, dual: null }, kl: null, entropy: 0, importance: null, overlong: null, igpo },
    ...defaults,
    ...own,
  };
  return { algorithm, reward: { format_penalty: 1 }, context_length: 100 };
}

interface Made {
  id: string;
  outcome: number;
  /** Tool, tokens of the action, tokens of what follows. */
  turns: [tool: string | null, action: number, observation: number][];
  beliefs?: (number | null)[];
  branch?: number;
}

function row({ id, outcome, turns, beliefs, branch = 0 }: Made): GradedRow {
  const spans: Span[] = [];
  const push = (kind: Span['kind'], turn: number, tokens: number, tool: string | null) => {
    const start = spans.at(-1)?.end ?? 0;
    const status = kind === 'action' && tool === null ? 'malformed' : 'ok';
    const rest = { latency_ms: 0, cached: false, denied: 0, weight_version: '' };
    spans.push({ kind, turn, start, end: start + tokens, tool, status, ...rest });
  };
  push('prompt', 0, 10, 'prompt');
  for (const [turn, [tool, action, observation]] of turns.entries()) {
    push('action', turn, action, tool);
    if (observation > 0) push('observation', turn, observation, tool);
  }
  return {
    trajectory_id: id,
    group_id: 'g',
    sample: 0,
    branch,
    reward: { outcome, turns: turns.map(() => null) },
    judge: null,
    score: { exact_match: outcome, f1: outcome, format_valid: true, answer_in_observation: false },
    termination: 'answer',
    spans,
    ...(beliefs && { beliefs }),
  };
}

const attempt = (...rows: Made[]): Attempt => attemptOf(rows.map(row));
const short = (id: string, outcome: number, tokens = 5): Attempt =>
  attempt({ id, outcome, turns: [['answer', tokens, 0]] });
const advantagesOf = (group: Attempt[], by: LearningRule): number[] => {
  const { byTrajectory } = stepAdvantages([group], by);
  return group.map(({ id }) => byTrajectory.get(id)?.advantages[0] as number);
};

describe('advantages by algorithm, by hand', () => {
  const group = [short('a', 1), short('b', 0), short('c', 0), short('d', 0)];

  // Mean 1/4, population deviation √(3/16).
  test.each(['grpo', 'dapo', 'gspo', 'cispo'] as const)('%s: less the mean, over the deviation', (name) => {
    const deviation = Math.sqrt(3 / 16) + 1e-6;
    expect(advantagesOf(group, rule(name))).toEqual(
      [0.75, -0.25, -0.25, -0.25].map((value) => expect.closeTo(value / deviation, 12)),
    );
  });

  test('dr_grpo: less the mean', () => {
    expect(advantagesOf(group, rule('dr_grpo'))).toEqual([0.75, -0.25, -0.25, -0.25]);
  });

  test('dapo: a long trajectory loses reward over the buffer at the end of its context', () => {
    expect([79, 80, 90, 100, 120].map((tokens) => overlongPenalty(tokens, 100, { buffer: 20, penalty: 2 }))).toEqual([
      0, 0, 1, 2, 2,
    ]);
    // 10 of prompt and 80 of answer: 10 into the buffer of 20, so 1 - 0.5. Mean 0.25, no deviation.
    const shaped = rule('dapo', { overlong: { buffer: 20, penalty: 1 }, normalize_std: false });
    const long = [short('a', 1, 80), short('b', 0)];
    expect(advantagesOf(long, shaped)).toEqual([0.25, -0.25]);
    expect(isInformative([short('a', 1, 80), short('b', 1)], shaped)).toBe(false); // shaping is no answer of its own
  });

  test('igpo: gains and outcome are normalised apart, discounted, and counted in the metrics', () => {
    const made = (id: string, outcome: number, beliefs: number[]) =>
      attempt({
        id,
        outcome,
        turns: [
          ['visit', 4, 6],
          ['answer', 5, 0],
        ],
        beliefs,
      });
    const pair = [made('a', 1, [-2, -1]), made('b', 0, [-2, -2])];
    const { byTrajectory, metrics } = stepAdvantages([pair], rule('igpo'));
    // z of outcomes and of gains are ±1 but for the epsilons, so the scale is 1: 1 + 0.95 · 1.
    expect(byTrajectory.get('a')?.advantages).toEqual([expect.closeTo(1.95, 4), expect.closeTo(1, 4)]);
    expect(byTrajectory.get('b')?.advantages).toEqual([expect.closeTo(-1.95, 4), expect.closeTo(-1, 4)]);
    expect(byTrajectory.get('a')?.rewards).toEqual([1, 1]);
    expect(metrics).toEqual({
      'igpo/ig_active_ratio': 1,
      'igpo/raw_ig_mean': 0.5,
      'igpo/raw_ig_std': 0.5,
      'igpo/raw_ig_positive_ratio': 0.5,
      'igpo/ig_scale': expect.closeTo(1, 4),
      'igpo/all_same_outcome_ratio': 0,
      'igpo/effective_gamma': 0.95,
      'igpo/adv_ig_positions_mean': expect.closeTo(0, 9),
    });
  });
});

describe('where advantages lie', () => {
  test('on every sampled token of a turn, and nowhere else', () => {
    const one = attempt({
      id: 'a',
      outcome: 1,
      turns: [
        ['search', 2, 3],
        ['answer', 2, 0],
      ],
    });
    expect(tokenAdvantages({ advantages: [5, 7] }, one.turns, 0, 17)).toEqual([
      ...new Array<number>(10).fill(0),
      ...[5, 5, 0, 0, 0, 7, 7],
    ]);
  });

  test('by token where the mode has one for each token', () => {
    const one = attempt({
      id: 'a',
      outcome: 1,
      turns: [
        ['search', 2, 3],
        ['answer', 2, 0],
      ],
    });
    const steps = [
      [0, 1],
      [1, 2],
      [4, 3],
      [6, 4],
    ] as const;
    expect(tokenAdvantages({ advantages: [0, 0], steps: [...steps] }, one.turns, 0, 17).slice(10)).toEqual([
      1, 2, 0, 0, 0, 3, 4,
    ]);
  });

  test('branches are samples of one trajectory: it counts once, and each token has the advantage of its own turn', () => {
    const branched = attempt(
      { id: 'a', outcome: 1, turns: [['search', 2, 3]], branch: 0 },
      { id: 'a', outcome: 1, turns: [['answer', 3, 0]], branch: 1 },
    );
    const { byTrajectory } = stepAdvantages([[branched, short('b', 0)]], rule('dr_grpo'));
    expect(byTrajectory.get('a')?.advantages).toEqual([0.5, 0.5]);
    expect(tokenAdvantages({ advantages: [5, 7] }, branched.turns, 1, 13).slice(10)).toEqual([7, 7, 7]);
    expect(tokenAdvantages({ advantages: [5, 7] }, branched.turns, 0, 15).slice(10)).toEqual([5, 5, 0, 0, 0]);
  });
});

describe('igpo', () => {
  const turns: Made['turns'] = [
    ['visit', 4, 6],
    ['answer', 5, 0],
  ];

  test('a group whose outcomes agree is informative when its gains differ, and not otherwise', () => {
    const group = (second: number) => [
      attempt({ id: 'a', outcome: 0, turns, beliefs: [-2, -1] }),
      attempt({ id: 'b', outcome: 0, turns, beliefs: [-2, second] }),
    ];
    expect(isInformative(group(-1.5), rule('igpo'))).toBe(true);
    expect(isInformative(group(-1), rule('igpo'))).toBe(false);
    expect(isInformative(group(-1.5), rule('grpo'))).toBe(false);
  });

  test('a belief that was not measured fails, and is not taken for grpo', () => {
    const unmeasured = attempt({ id: 'a', outcome: 1, turns });
    expect(() => stepAdvantages([[unmeasured]], rule('igpo'))).toThrow('a: BELIEFS: there is no belief before turn 0');
  });

  test('a malformed turn is penalised whether or not it was evaluated', () => {
    const one = attempt({
      id: 'a',
      outcome: 1,
      turns: [
        [null, 4, 6],
        ['answer', 5, 0],
      ],
      beliefs: [-2, null],
    });
    const visits = rule('igpo', { igpo: IGPO_PRESETS.dr_venus });
    expect(stepAdvantages([[one]], visits).byTrajectory.get('a')?.rewards).toEqual([-1, 1]);
  });
});
