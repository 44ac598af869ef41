import { expect, test } from 'vitest';
import { documentOf, type Result, tableOf } from '../../bench/results.ts';

test('rows with the same columns are one table, and others begin a new one', () => {
  const rows = [
    { what: 'a | b', seconds: 1.5 },
    { what: 'c', seconds: 2 },
    { ratio: 3, same: true },
  ];
  expect(tableOf(rows)).toEqual([
    '| what | seconds |',
    '| --- | ---: |',
    '| a \\| b | 1.5 |',
    '| c | 2 |',
    '',
    '| ratio | same |',
    '| ---: | --- |',
    '| 3 | true |',
  ]);
});

test('a result says what was measured, on what, when, and with which arguments', () => {
  const result: Result = {
    name: 'plan',
    compares: 'this, beside that',
    args: ['--rounds', '3'],
    machine: { cpu: 'A CPU', cores: 2, memory_gib: 24 },
    versions: { node: '20.20.0', python: '3.11.2' },
    load_before: 0.1,
    date: '2026-11-22',
    commit: 'abc1234',
    rows: [{ seconds: 1 }],
  };
  expect(documentOf([result])).toBe(
    [
      '# Results of the benchmarks',
      '',
      'Made by `npm run bench` from `bench/results/`. Absolute figures of one small machine are hints; ratios are the result.',
      '',
      '## plan',
      '',
      'Measured: this, beside that; arguments `--rounds 3`.',
      '',
      '2026-11-22, commit abc1234; A CPU, 2 cores, 24 GiB, load before 0.1; Node 20.20.0, Python 3.11.2.',
      '',
      '| seconds |',
      '| ---: |',
      '| 1 |',
      '',
    ].join('\n'),
  );
});
