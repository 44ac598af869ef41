import { expect, test } from 'vitest';
import { splitTasks, type TaskShape, taskOfRow } from '../../environments/deep-research/tasks/import-tasks.ts';
import { TASK_COLUMNS } from '../../schemas/task.ts';

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
    (_, index) => read({ id: String(index), question: `${index}?`, answer: 'x' }) as never,
  );
  const options = { splits: { train: 0.6, held_out: 0.4 }, seed: 5, limit: null };
  const split = splitTasks(tasks, options);
  expect(split.filter((task) => task.split === 'train')).toHaveLength(30);
  expect(splitTasks(tasks, options)).toEqual(split);
  const ids = (limit: number | null) => splitTasks(tasks, { ...options, limit }).map(({ task_id }) => task_id);
  expect(ids(null)).toEqual(expect.arrayContaining(ids(10)));
  expect(ids(10)).toHaveLength(10);
});
