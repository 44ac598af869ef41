import { expect, test } from 'vitest';
import { guessFromPage, mostFrequentAnswers } from '../../environments/deep-research/benchmarks/baselines.ts';
import {
  resultOf,
  type Sample,
  scoreQuestions,
  ToolUse,
} from '../../environments/deep-research/benchmarks/score-benchmark.ts';
import type { Task } from '../../schemas/task.ts';

const task = (task_id: string, answer = 'MIT', template?: string): Task => ({
  task_id,
  question: 'Which?',
  answer,
  aliases: [],
  capability: 'direct_retrieval',
  split: 'held_out',
  source: 'made',
  evidence: [],
  deny_urls: [],
  ...(template !== undefined && { template }),
});

const sample = (exact_match: number, options: Partial<Sample> = {}): Sample => ({
  score: { exact_match, f1: exact_match, format_valid: true, answer_in_observation: exact_match === 1 },
  judge: null,
  spans: [],
  termination: 'answer',
  answer: exact_match === 1 ? 'MIT' : 'ISC',
  sample: 0,
  ...options,
});
const unfinished = sample(0, { termination: 'max_turns', answer: null });
const broken = sample(0, { termination: 'failed', answer: null });

const result = (one: Task, samples: Sample[], closedBook: Sample[] = []) =>
  resultOf(one, {
    samples,
    closedBook,
    rules: { answer_from_first_result: 'MIT', most_frequent_answer: 'ISC' },
    seenTemplates: new Set(['seen']),
  });

test('a sample without an answer is wrong, one that something broke is neither', () => {
  const questions = [result(task('a'), [sample(1), unfinished]), result(task('b'), [sample(1), broken])];
  const scores = scoreQuestions(questions, { benchmark: 'held_out', samples: 2, metrics: ['avg@k'] });
  expect(scores.results['avg_at_2']?.value).toBeCloseTo(0.75);
  expect(scores).toMatchObject({ unfinished: 1, masked: 1 });
});

test('pass@k leaves out a question with fewer than k samples; avg@k keeps it', () => {
  const questions = [result(task('a'), [sample(1), sample(0)]), result(task('b'), [sample(0), broken])];
  const { results } = scoreQuestions(questions, {
    benchmark: 'held_out',
    samples: 2,
    metrics: ['avg@k', 'pass@k', 'pass@1'],
  });
  expect(results['avg_at_2']?.value).toBeCloseTo(0.25);
  expect(results['pass_at_2']?.value).toBe(1);
  expect(results['pass_at_1']?.value).toBeCloseTo(0.25);
});

test('baselines are scored on the same questions, and one that could not be asked is left out', () => {
  const questions = [
    result(task('a', 'MIT'), [sample(1)], [sample(0)]),
    result(task('b', 'ISC'), [sample(1)], [broken]),
  ];
  const { baselines } = scoreQuestions(questions, { benchmark: 'held_out', samples: 1, metrics: ['avg@k'] });
  expect(baselines).toMatchObject({
    closed_book: { value: 0 },
    answer_from_first_result: { value: 0.5 },
    most_frequent_answer: { value: 0.5 },
  });
});

test('wordings that training showed are told from those it did not', () => {
  const questions = [
    result(task('a', 'MIT', 'seen'), [sample(1)]),
    result(task('b', 'MIT', 'new'), [sample(0)]),
    result(task('c', 'MIT', 'new'), [sample(1)]),
  ];
  const { groups } = scoreQuestions(questions, { benchmark: 'held_out', samples: 1, metrics: ['avg@k'] });
  expect(groups['template/seen']).toMatchObject({ questions: 1, value: 1 });
  expect(groups['template/unseen']).toMatchObject({ questions: 2, value: 0.5 });
  expect(groups['capability/direct_retrieval']?.questions).toBe(3);
});

test('tool use counts calls by sample and malformed actions by action, without what broke', () => {
  const span = { turn: 0, start: 0, end: 0, latency_ms: 0, cached: false, denied: 0, weight_version: '' };
  const use = new ToolUse();
  use.add(
    sample(1, {
      spans: [
        { ...span, kind: 'prompt', tool: null, status: 'ok', end: 10 },
        { ...span, kind: 'action', tool: 'search', status: 'ok', start: 10, end: 15 },
        { ...span, kind: 'observation', tool: 'search', status: 'tool_error', start: 15, end: 20, denied: 2 },
        { ...span, kind: 'action', tool: 'answer', status: 'ok', start: 20, end: 24 },
      ],
    }),
  );
  use.add(
    sample(0, {
      termination: 'max_turns',
      spans: [{ ...span, kind: 'action', tool: null, status: 'malformed', end: 4 }],
    }),
  );
  use.add(broken);
  expect(use.means()).toEqual({
    'termination/answer': 0.5,
    'termination/max_turns': 0.5,
    turns: 1.5,
    tokens: 14,
    action_tokens: 6.5,
    'calls/search': 0.5,
    tool_errors: 0.5,
    denied_pages: 1,
    malformed: 1 / 3,
  });
});

test('the most frequent answer is that of the capability, and spelling does not split it', () => {
  const of = (answer: string, capability: Task['capability']) => ({ answer, capability });
  const guess = mostFrequentAnswers([
    of('MIT', 'direct_retrieval'),
    of('mit', 'direct_retrieval'),
    of('ISC', 'direct_retrieval'),
    of('3', 'statistics'),
    of('3', 'statistics'),
    of('3', 'statistics'),
  ]);
  expect(guess({ capability: 'direct_retrieval' })).toBe('MIT');
  expect(guess({ capability: 'statistics' })).toBe('3');
  expect(guess({ capability: 'enumeration' })).toBe('3');
});

test('the fixed rule answers with the line whose label fits the question, else with the title', () => {
  const page = '# chalk (npm)\n\nVersion: 5.3.0\n\nLicense: MIT\n\nDependencies (2): a, b';
  expect(guessFromPage('Under which license is chalk released?', 'chalk', page)).toBe('MIT');
  expect(guessFromPage('How many dependencies does chalk have?', 'chalk', page)).toBe('2');
  expect(guessFromPage('Who wrote it?', 'chalk', page)).toBe('chalk');
});
