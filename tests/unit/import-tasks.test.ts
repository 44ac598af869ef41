import { expect, test } from 'vitest';
import { splitTasks, taskOfRow } from '../../environments/deep-research/tasks/import-tasks.ts';

const columns = {
  id: 'id',
  question: 'question',
  answer: 'answer',
  aliases: 'aliases',
  gold_ids: 'gold_doc_ids',
  deny_urls: 'deny_urls',
  capability: 'capability',
};
const read = (row: unknown) => taskOfRow(row, columns, 'hotpot');

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
