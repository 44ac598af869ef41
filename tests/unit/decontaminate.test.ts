import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { BenchmarkQuestions } from '../../schemas/overlap.ts';
import type { Profile } from '../../schemas/profile.ts';
import { folderWith, planFile, planOptions, recipe } from './plan-fixture.ts';

/** Sixteen words. */
const ASKED = 'Which of the rivers that rise in the Harz mountains flows through the town of Halberstadt today?';

describe('a training question', () => {
  const known = new BenchmarkQuestions(13);
  known.add('bench', { id: 'b1', question: ASKED, urls: ['https://example.org/harz', 'doc:7'] });
  known.add('bench', { id: 'b2', question: 'Who wrote it?', urls: [] });
  const met = (question: string, urls: string[] = []) => known.find({ question, urls });

  test('that is the same but for case and punctuation overlaps', () => {
    expect(met('who wrote IT')).toEqual({ set: 'bench', id: 'b2', by: 'question' });
  });
  test('with thirteen words in a row of a benchmark overlaps; with twelve it does not', () => {
    const words = ASKED.split(' ');
    expect(met(`Please say: ${words.slice(0, 13).join(' ')}, and why?`)).toMatchObject({ id: 'b1', by: 'ngram' });
    expect(met(`Please say: ${words.slice(0, 12).join(' ')} what?`)).toBeNull();
  });
  test('on the same page of the web overlaps; the same id in another corpus says nothing', () => {
    expect(met('What is there?', ['https://example.org/harz'])).toMatchObject({ by: 'url' });
    expect(met('What is there?', ['doc:7'])).toBeNull();
  });
});

const BENCHMARK = `{"id": "b1", "question": "${ASKED}", "answer": "Holtemme"}\n`;
const profileWith = (path: string): Profile => {
  const { profile } = planOptions();
  const datasets = { bench: { path, format: 'jsonl' as const, licence: 'none' } };
  return { ...profile, registries: { ...profile.registries, datasets } };
};
const planned = (questions: string, splits = 'splits: !unset') => {
  const folder = folderWith({
    'recipe.yaml': readFileSync(recipe, 'utf8'),
    'bench.jsonl': BENCHMARK,
    'own.jsonl': questions,
    'spec.yaml': `extends: [recipe.yaml]
decontaminate: { against: [bench] }
tasks:
  sources: { own: { kind: jsonl, path: own.jsonl } }
  ${splits}
curriculum: { cold_start: { tasks: { split: train } } }
benchmarks: !unset
`,
  });
  return planFile(join(folder, 'spec.yaml'), { profile: profileWith(join(folder, 'bench.jsonl')) });
};

describe('a spec whose imported questions overlap with a benchmark set', () => {
  const overlapping = `{"question": "Who?", "answer": "x"}\n{"question": "${ASKED}", "answer": "x"}\n`;

  test('is refused before anything runs, at the path of the source', async () => {
    const { problems } = await planned(overlapping);
    expect(problems.map(({ code, line, column, message }) => [code, `${line}:${column}`, message])).toEqual([
      [
        'CONTAMINATED',
        '4:40',
        '1 of 2 training questions overlap with benchmark sets (bench by question 1); the first is line 2 (bench b1)',
      ],
    ]);
  });

  test('is left to the tasks node where only a part is trained on, with the digest of the set in the key', async () => {
    const { plan, problems } = await planned(overlapping, 'splits: { train: 0.5, held_out: 0.5 }');
    expect(problems).toEqual([]);
    const tasks = plan?.arms[0]?.nodes.find(({ id }) => id === 'tasks');
    expect(tasks?.parameters['decontaminate']).toMatchObject({ n: 13, splits: ['train'] });
    expect(tasks?.files.map(({ path }) => path)).toContain('bench');
  });

  test('is planned when nothing overlaps', async () => {
    expect((await planned('{"question": "Who?", "answer": "x"}\n')).problems).toEqual([]);
  });
});
