import { expect, test } from 'vitest';
import { differenceColumns } from '../../cli/comparison-columns.ts';

const shown = (...rows: Record<string, string>[]) =>
  differenceColumns(rows.map((differs) => ({ differs }))).map(({ title, path, cells }) => [title, path, ...cells]);

test('a section that one arm lacks is one column', () => {
  const filtered = {
    'curriculum.stage1.difficulty.keep.max_passes': '3',
    'curriculum.stage1.difficulty.tasks': '16',
    'curriculum.stage1.rollout.temperature': '1',
  };
  const absent = {
    'curriculum.stage1.difficulty.keep.max_passes': '–',
    'curriculum.stage1.difficulty.tasks': '–',
    'curriculum.stage1.rollout.temperature': '0.7',
  };
  expect(shown(filtered, absent)).toEqual([
    ['difficulty', 'curriculum.stage1.difficulty', 'set', '–'],
    ['temperature', 'curriculum.stage1.rollout.temperature', '1', '0.7'],
  ]);
});

test('a leaf whose value differs keeps its values, also where others of its section come and go', () => {
  expect(
    shown(
      { 'agent.faults.search.empty': '0.1', 'agent.max_turns': '4' },
      { 'agent.faults.search.empty': '–', 'agent.max_turns': '6' },
    ),
  ).toEqual([
    ['empty', 'agent.faults.search.empty', '0.1', '–'],
    ['max_turns', 'agent.max_turns', '4', '6'],
  ]);
});

test('columns with the same last step are told apart by what stands before it', () => {
  const rows = [
    { 'curriculum.stage1.seed': '1', 'curriculum.stage2.seed': '1' },
    { 'curriculum.stage1.seed': '2', 'curriculum.stage2.seed': '3' },
  ] as const;
  expect(shown(...rows).map(([title]) => title)).toEqual(['stage1.seed', 'stage2.seed']);
});
