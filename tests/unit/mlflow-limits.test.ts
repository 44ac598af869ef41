import { expect, test } from 'vitest';
import { finiteMetrics, normalKey, paramsOf, redact, splitBatches } from '../../activities/adapters/mlflow-limits.ts';

test('every batch keeps within all limits of a call, and nothing is lost or reordered', () => {
  const metrics = Array.from({ length: 2300 }, (_, step) => ({ name: 'm', step, value: step, timestamp_ms: step }));
  const params = Array.from({ length: 250 }, (_, i) => ({ key: `p${i}`, value: 'x'.repeat(5900) }));
  const tags = [{ key: 't', value: 'v' }];

  const batches = splitBatches({ metrics, params, tags });

  for (const batch of batches) {
    expect(batch.params.length).toBeLessThanOrEqual(100);
    expect(batch.metrics.length + batch.params.length + batch.tags.length).toBeLessThanOrEqual(1000);
    expect(JSON.stringify(batch).length).toBeLessThan(1_000_000);
  }
  expect(batches.flatMap((batch) => batch.metrics)).toEqual(metrics);
  expect(batches.flatMap((batch) => batch.params)).toEqual(params);
  expect(batches.flatMap((batch) => batch.tags)).toEqual(tags);
});

test('nothing to say is no call', () => {
  expect(splitBatches({ metrics: [], params: [], tags: [] })).toEqual([]);
});

test('a value that is no number is counted, not drawn', () => {
  const point = { name: 'train/loss', step: 4, timestamp_ms: 9 };
  expect(
    finiteMetrics([
      { ...point, value: Number.NaN },
      { ...point, value: 2 },
    ]),
  ).toEqual([
    { ...point, name: 'train/loss_nan_count', value: 1 },
    { ...point, value: 2 },
  ]);
});

test('a good key stays as it is; a changed one cannot meet another', () => {
  expect(normalKey('eval/held_out/pass_at_2')).toBe('eval/held_out/pass_at_2');
  const changed = ['a/../b', 'a/./b', 'a//b', '/a', 'a@b', 'a\nb', 'k'.repeat(251), ''].map(normalKey);
  expect(new Set(changed).size).toBe(8);
  for (const key of changed) expect(key).toMatch(/^(?!\/)(?!.*\/\/)(?!.*\.\.)[/\w.\- :]{1,250}$/);
});

test('a name of environment variables is shown, a secret is not, wherever it stands', () => {
  const document = {
    api_key: { env: 'JUDGE_API_KEY' },
    password: 'correct horse',
    stop_token: '<|im_end|>',
    headers: ['Authorization: Bearer abcdefghijklmnop'],
    digest: 'a'.repeat(64),
    note: 'key sk-abcdefghijklmnopqrst in a sentence',
  };
  expect(redact(document)).toEqual({
    ...document,
    password: '[redacted]',
    headers: ['Authorization: [redacted]'],
    note: 'key [redacted] in a sentence',
  });
});

test('leaves become params: nested by dots, plain lists whole, lists of objects by position', () => {
  const document = {
    until: { steps: 3 },
    tools: ['search', 'visit'],
    bands: [{ up_to: 2, weight: 1 }, { weight: 2 }],
    kl: null,
  };
  expect(paramsOf(document)).toEqual([
    { key: 'until.steps', value: '3' },
    { key: 'tools', value: '["search","visit"]' },
    { key: 'bands.0.up_to', value: '2' },
    { key: 'bands.0.weight', value: '1' },
    { key: 'bands.1.weight', value: '2' },
    { key: 'kl', value: 'null' },
  ]);
});
