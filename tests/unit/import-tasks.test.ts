import { describe, expect, test } from 'vitest';
import {
  chooseTasks,
  type ImportedTask,
  inSeededOrder,
  splitTasks,
  type TaskShape,
  taskOfRow,
} from '../../environments/deep-research/tasks/import-tasks.ts';
import { countsInMix } from '../../environments/deep-research/tasks/in-mix.ts';
import { TASK_COLUMNS } from '../../schemas/task-columns.ts';

const shape: TaskShape = { format: 'columns', fields: TASK_COLUMNS, capability: null };
const read = (row: unknown) => taskOfRow(row, shape, 'hotpot');

test('a row becomes a task; ids of gold documents become their URLs', () => {
  expect(
    read({
      id: '5a8b',
      question: 'Who?',
      answer: 'yes',
      gold_doc_ids: ['42c', 'https://example.org/x'],
      capability: 'aggregation',
      type: 'bridge',
    }),
  ).toEqual({
    task_id: 'hotpot-5a8b',
    question: 'Who?',
    answer: 'yes',
    aliases: [],
    capability: 'aggregation',
    source: 'hotpot',
    evidence: ['doc:42c', 'https://example.org/x'],
    deny_urls: [],
  });
});

test('the layout of LiteResearcher is read, and its families are capabilities by a map', () => {
  const published: TaskShape = {
    format: 'literesearcher',
    fields: TASK_COLUMNS,
    capability: { column: 'data_source', map: { mqa: 'cross_verification' } },
  };
  const row = {
    data_source: 'mqa',
    prompt: [{ role: 'user', content: ' Question: Who?' }],
    reward_model: { ground_truth: { target: ['Ada', 'Ada Lovelace'] }, style: 'llm' },
    extra_info: { index: 12, question: 'Who?', mask_url: ['https://example.org/a'], split: 'train' },
  };
  expect(taskOfRow(row, published, 'stage2')).toEqual({
    task_id: 'stage2-12',
    question: 'Who?',
    answer: 'Ada',
    aliases: ['Ada Lovelace'],
    capability: 'cross_verification',
    source: 'stage2',
    evidence: [],
    deny_urls: ['https://example.org/a'],
  });
  expect(taskOfRow({ ...row, data_source: 'other' }, published, 'stage2')).toMatchObject({ capability: 'unknown' });
});

test('a list of answers is one answer and its aliases; a number is its text; an unknown capability is unknown', () => {
  expect(
    read({ question: 'How many?', answer: [3, 'three', '3'], aliases: ['3.0'], capability: 'guessing' }),
  ).toMatchObject({ answer: '3', aliases: ['three', '3.0'], capability: 'unknown' });
});

test('a row without an id is named by its content', () => {
  const [first, second] = [read({ question: 'a?', answer: 'b' }), read({ question: 'a?', answer: 'c' })] as {
    task_id: string;
  }[];
  expect(first?.task_id).toMatch(/^hotpot-[0-9a-f]{16}$/);
  expect(first?.task_id).not.toBe(second?.task_id);
});

test.each([
  [['a list'], 'not a JSON object'],
  [{ answer: 'b' }, 'no question'],
  [{ question: '  ', answer: 'b' }, 'no question'],
  [{ question: 'a?' }, 'no answer'],
  [{ question: 'a?', answer: [] }, 'no answer'],
  [{ question: 'a?', answer: { text: 'b' } }, 'no answer'],
  [{ question: 'a?', answer: 'b', gold_doc_ids: [{}] }, 'gold_doc_ids is not a list of ids'],
  [{ question: 'a?', answer: 'x'.repeat(5000) }, 'question or answer is too long'],
])('%j is refused: %s', (row, reason) => {
  expect(read(row)).toBe(reason);
});

test('splits are exact, seeded, and a limited set lies inside the whole one', () => {
  const tasks = Array.from(
    { length: 50 },
    (_, index) => read({ id: String(index), question: `${index}?`, answer: 'x' }) as ImportedTask,
  );
  const ordered = inSeededOrder(tasks, 5);
  const split = splitTasks(ordered, { train: 0.6, held_out: 0.4 });
  expect(split.filter((task) => task.split === 'train')).toHaveLength(30);
  expect(inSeededOrder(tasks.toReversed(), 5)).toEqual(ordered);
  const ids = (limit: number | null) => chooseTasks(ordered, { mix: null, limit }).map(({ task_id }) => task_id);
  expect(ids(null)).toEqual(expect.arrayContaining(ids(10)));
  expect(ids(10)).toHaveLength(10);
});

describe('a mix', () => {
  /** Of the kinds in turn as long as each lasts, by name and number. */
  const questions = (counts: Record<string, number>): ImportedTask[] =>
    Object.entries(counts).flatMap(([capability, count]) =>
      Array.from({ length: count }, (_, index) => ({
        ...(read({ id: `${capability}-${index}`, question: 'q', answer: 'x' }) as ImportedTask),
        capability: capability as ImportedTask['capability'],
      })),
    );
  const shares = {
    aggregation: 0.2,
    cross_verification: 0.15,
    direct_retrieval: 0.3,
    enumeration: 0.2,
    statistics: 0.15,
  };
  const counted = (tasks: readonly ImportedTask[]) =>
    ['direct_retrieval', 'aggregation', 'enumeration', 'cross_verification', 'statistics'].map(
      (name) => tasks.filter(({ capability }) => capability === name).length,
    );
  const many = inSeededOrder(
    questions({ direct_retrieval: 60, aggregation: 60, enumeration: 60, cross_verification: 60, statistics: 3 }),
    7,
  );

  test('is exact where whole numbers allow, and what is scarce decides how many there are', () => {
    // 20 have 6, 4, 4, 3, 3. The fourth of statistics, and so the end, comes at a claim of 0.15 / 7 = 0.0214: before it
    // come the claims that are larger, 0.3 / (2n - 1) for n <= 7, 0.2 / (2n - 1) for n <= 5, and the fourth
    // cross-verification, which ties and has the earlier name.
    expect(counted(chooseTasks(many, { mix: shares, limit: 20 }))).toEqual([6, 4, 4, 3, 3]);
    expect(counted(chooseTasks(many, { mix: shares, limit: null }))).toEqual([7, 5, 5, 4, 3]);
    expect(counted(chooseTasks(many, { mix: shares, limit: 100 }))).toEqual([7, 5, 5, 4, 3]);
    expect(countsInMix(100, shares)).toEqual({
      direct_retrieval: 30,
      aggregation: 20,
      enumeration: 20,
      cross_verification: 15,
      statistics: 15,
    });
  });

  test('takes nothing of what it has no share for, known or unknown', () => {
    const tasks = questions({ direct_retrieval: 4, statistics: 4, unknown: 9 });
    const chosen = chooseTasks(tasks, { mix: { direct_retrieval: 1, statistics: 0 }, limit: null });
    expect(counted(chosen)).toEqual([4, 0, 0, 0, 0]);
    expect(chosen).toHaveLength(4);
  });

  test('of a smaller limit lies inside that of every larger one', () => {
    for (let limit = 1; limit <= 24; limit += 1) {
      const [smaller, larger] = [limit - 1, limit].map((one) =>
        chooseTasks(many, { mix: shares, limit: one }).map(({ task_id }) => task_id),
      );
      expect(larger).toHaveLength(limit);
      expect(larger).toEqual(expect.arrayContaining(smaller as string[]));
    }
  });

  test('is in every split, as nearly as whole numbers allow', () => {
    const tasks = inSeededOrder(questions({ direct_retrieval: 60, aggregation: 40 }), 7);
    const split = splitTasks(chooseTasks(tasks, { mix: { direct_retrieval: 0.6, aggregation: 0.4 }, limit: null }), {
      train: 0.7,
      held_out: 0.3,
    });
    const of = (name: string) => counted(split.filter((task) => task.split === name)).slice(0, 2);
    expect([of('train'), of('held_out')]).toEqual([
      [42, 28],
      [18, 12],
    ]);
  });
});
