import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { batchColumns, readParquet, trajectoryColumns, writeParquet } from '../../activities/adapters/parquet.ts';
import type { Trajectory } from '../../schemas/trajectory.ts';

const folders: string[] = [];
/** With an apostrophe, as a home directory may have one. */
async function folder(): Promise<string> {
  const made = await mkdtemp(path.join(tmpdir(), "exp-parquet-it's-"));
  folders.push(made);
  return made;
}
afterAll(() => Promise.all(folders.map((made) => rm(made, { recursive: true, force: true }))));

const trajectory = (index: number): Trajectory => ({
  trajectory_id: `tr-${index}`,
  task_id: 't',
  group_id: 'g',
  sample: index,
  branch: 0,
  checkpoint: 'c',
  sampling: { temperature: 0.7, top_p: 0.95, seed: 2 ** 40 + index },
  token_ids: [1, 49151, 2],
  mask: [0, 1, 1],
  logprobs: [0, Math.fround(-0.123456789), -12.5],
  spans: [
    {
      turn: 0,
      kind: 'prompt',
      start: 0,
      end: 1,
      tool: null,
      status: 'ok',
      latency_ms: 0,
      cached: false,
      denied: 0,
      weight_version: '',
    },
    {
      turn: 0,
      kind: 'action',
      start: 1,
      end: 3,
      tool: 'answer',
      status: 'ok',
      latency_ms: 12.5,
      cached: false,
      denied: 3,
      weight_version: 'c',
    },
  ],
  reward: { outcome: -1, turns: [null, -1] },
  score: { exact_match: 0, f1: 0.5, format_valid: true, answer_in_observation: false },
  judge: { correct: true, reply: 'correct: yes' },
  advantages: [],
  beliefs: [],
  termination: 'answer',
  failure_class: null,
  answer: 'Ünïcode "quoted"\n, MIT',
  messages: [
    { role: 'user', content: 'q' },
    { role: 'assistant', content: '\uFFFD 你好' },
  ],
});

test('trajectories come back as they were written, in order', async () => {
  const file = path.join(await folder(), 'shard.parquet');
  const rows = Array.from({ length: 3000 }, (_, index) => trajectory(index));
  expect(await writeParquet(file, rows, trajectoryColumns)).toEqual({ rows: 3000 });
  const read: Trajectory[] = [];
  for await (const row of readParquet<Trajectory>(file)) read.push(row);
  expect(read).toEqual(rows);
}, 120_000);

test('selected columns only, from an async source', async () => {
  const file = path.join(await folder(), 'batch.parquet');
  async function* source() {
    yield {
      sequence_id: 'a',
      token_ids: [1],
      mask: [1],
      behavior_logprobs: [-1],
      advantages: [0.5],
      temperature: 1,
      weight: 1,
    };
  }
  await writeParquet(file, source(), batchColumns);
  const rows: object[] = [];
  for await (const row of readParquet<object>(file, ['sequence_id', 'advantages'])) rows.push(row);
  expect(rows).toEqual([{ sequence_id: 'a', advantages: [0.5] }]);
});

test('a file without rows keeps its columns', async () => {
  const file = path.join(await folder(), 'empty.parquet');
  await writeParquet(file, [], batchColumns);
  for await (const row of readParquet(file, ['sequence_id'])) expect(row).toBeUndefined();
});

test('the same rows give the same bytes', async () => {
  const dir = await folder();
  const [a, b] = [path.join(dir, 'a.parquet'), path.join(dir, 'b.parquet')];
  const rows = Array.from({ length: 50 }, (_, index) => trajectory(index));
  await writeParquet(a, rows, trajectoryColumns);
  await writeParquet(b, rows, trajectoryColumns);
  expect((await readFile(a)).equals(await readFile(b))).toBe(true);
});

test('a trajectory of 260,000 tokens fits', async () => {
  const file = path.join(await folder(), 'long.parquet');
  const tokens = 260_000;
  const long = {
    ...trajectory(0),
    token_ids: Array(tokens).fill(49151),
    mask: Array(tokens).fill(1),
    logprobs: Array(tokens).fill(-0.123456789),
  };
  await writeParquet(file, [long], trajectoryColumns);
  for await (const row of readParquet<Trajectory>(file, ['token_ids'])) expect(row.token_ids).toHaveLength(tokens);
}, 120_000);

test('a source that fails leaves no file behind', async () => {
  const dir = await folder();
  async function* source() {
    yield trajectory(0);
    throw new Error('lost');
  }
  await expect(writeParquet(path.join(dir, 'x.parquet'), source(), trajectoryColumns)).rejects.toThrow('lost');
  expect(await readdir(dir)).toEqual([]);
});

test('what is no Parquet is refused by name', async () => {
  const file = path.join(await folder(), 'x.parquet');
  await writeFile(file, 'hello');
  await expect(readParquet(file).next()).rejects.toMatchObject({ code: 'PARQUET', at: file });
});
