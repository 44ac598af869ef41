/** Files of trajectories, from their rows to instances and counts. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { gzipSync } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { readParquet, writeParquet } from '../../activities/adapters/parquet.ts';
import { TrajectoryImport, type TrajectoryImportOptions } from '../../activities/import-trajectories.ts';
import { writeTrajectories } from '../../activities/write-trajectories.ts';
import { loadTokenizer, type Tokenizer } from '../../environments/deep-research/prompt.ts';
import type { Trajectory } from '../../schemas/trajectory.ts';
import { modelsDir } from '../../services/home.ts';
import { sharedData } from '../absent-parts.ts';

let tokenizer: Tokenizer;
let folder: string;
beforeAll(async () => {
  tokenizer = await loadTokenizer(path.join(modelsDir(), 'smollm2-135m-instruct'));
  folder = await mkdtemp(path.join(tmpdir(), 'exp-import-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

const call = (query: string) =>
  `<think>I look.</think><tool_call>{"name": "search", "arguments": {"query": ["${query}"]}}</tool_call>`;

/** A conversation of so many turns, the last of which says `said`. */
function row(turns: number, said = 'MIT') {
  const messages = Array.from({ length: turns - 1 }, (_, turn) => [
    { role: 'assistant', content: call(`query ${turn}`) },
    { role: 'user', content: `<tool_response>\nnothing ${turn}\n</tool_response>` },
  ]).flat();
  return {
    question: `What licence has package ${turns}?`,
    gt: 'MIT',
    messages: [
      { role: 'system', content: 'x' },
      { role: 'user', content: 'x' },
      ...messages,
      { role: 'assistant', content: `<think>I know.</think><answer>${said}</answer>` },
    ],
  };
}

type Parameters = TrajectoryImportOptions['parameters'];
const clean = {
  tools: ['search', 'visit'],
  drop_repeated_calls: true,
  require_valid_format: true,
  require_correct: true,
  verdict: null,
};

async function importOf(source: string, parameters: Partial<Parameters> = {}, expected?: number) {
  const imported = new TrajectoryImport({
    path: source,
    source: 'warm.trajectories',
    parameters: {
      format: null,
      clean,
      resample: null,
      count: null,
      context_length: 4096,
      licence: 'CC BY 4.0',
      provenance: 'made by hand',
      agent: { tools: ['search', 'visit'] },
      ...parameters,
    },
    seed: 1,
    tokenizer,
    ...(expected !== undefined && { expect: expected }),
    moved() {},
  });
  const instances: Trajectory[] = [];
  for await (const trajectory of imported.trajectories('key')) instances.push(trajectory);
  return { instances, tally: imported.tally, report: imported.report() };
}

async function file(name: string, ...lines: (object | string)[]): Promise<string> {
  const target = path.join(folder, name);
  const text = lines.map((line) => `${typeof line === 'string' ? line : JSON.stringify(line)}\n`).join('');
  await writeFile(target, name.endsWith('.gz') ? gzipSync(text) : text);
  return target;
}

test('the same records give the same trajectories from JSONL, packed JSONL, a JSON list and Parquet', async () => {
  const records = [row(1), row(3)];
  const parquet = path.join(folder, 'same.parquet');
  await writeParquet(parquet, records, {
    question: 'VARCHAR',
    gt: 'VARCHAR',
    messages: 'STRUCT("role" VARCHAR, "content" VARCHAR)[]',
  });
  const sources = [
    await file('same.jsonl', ...records),
    await file('same.jsonl.gz', ...records),
    await file('same.json', JSON.stringify({ made: 'by hand', cases: records }, null, 2)),
    parquet,
  ];
  const [first, ...others] = await Promise.all(
    sources.map(async (source) =>
      (await importOf(source)).instances.map(({ token_ids, mask }) => ({ token_ids, mask })),
    ),
  );
  expect(first).toHaveLength(2);
  for (const other of others) expect(other).toEqual(first);
});

describe('resampling', () => {
  test('gives each trajectory the copies of the first band its turns after cleaning fall into', async () => {
    const long = row(4);
    long.messages.splice(4, 0, ...long.messages.slice(2, 4)); // repeats its first call: 5 turns, 4 when cleaned
    const bands = [
      { up_to: 2, weight: 1 },
      { up_to: 4, weight: 2 },
      { up_to: null, weight: 5 },
    ];
    const source = await file('bands.jsonl', row(2), row(3), long, row(5));
    const { instances, tally } = await importOf(source, { resample: { by: 'turns', bands } });
    const turns = instances.map(({ spans }) => spans.filter(({ kind }) => kind === 'action').length);
    expect(turns).toEqual([2, 3, 3, 4, 4, 5, 5, 5, 5, 5]);
    expect(new Set(instances.map(({ trajectory_id }) => trajectory_id)).size).toBe(10);
    expect(tally.body()).toMatchObject({ trajectories: 4, instances: 10 });
    expect(tally.report().removed_turns.repeated_calls).toBe(1);
  });

  test('by default every trajectory counts once', async () => {
    expect((await importOf(await file('once.jsonl', row(1), row(9)))).instances).toHaveLength(2);
  });
});

test('counts: each record is kept or dropped under one reason, and the sums are those of the instances', async () => {
  const source = await file(
    'counts.jsonl',
    row(2),
    row(2, 'Apache-2.0'),
    row(1, 'BSD'),
    { ...row(3), gt: null },
    row(1),
  );
  const { instances, tally, report } = await importOf(source, {
    resample: {
      by: 'turns',
      bands: [
        { up_to: 1, weight: 3 },
        { up_to: null, weight: 1 },
      ],
    },
  });
  const tokens = instances.reduce((sum, { token_ids }) => sum + token_ids.length, 0);
  const trained = instances.reduce((sum, { mask }) => sum + mask.filter((bit) => bit === 1).length, 0);
  expect(report).toMatchObject({
    records: 5,
    trajectories: 2,
    instances: 4,
    dropped: { correctness_unknown: 1, wrong_answer: 2 },
    tokens,
    masked_share: 1 - trained / tokens,
    format: 'redsearcher',
    licence: 'CC BY 4.0',
    provenance: 'made by hand',
  });
  const histogram = (buckets: { from: number; count: number }[]) =>
    Object.fromEntries(buckets.filter(({ count }) => count > 0).map(({ from, count }) => [from, count]));
  const { turns } = tally.report();
  expect(histogram(turns.before)).toEqual({ 0: 2, 2: 2, 3: 1 });
  expect(histogram(turns.after)).toEqual({ 0: 1, 2: 1 });
  expect(histogram(turns.instances)).toEqual({ 0: 3, 2: 1 });
  const metrics = Object.fromEntries(tally.metrics(7).map(({ name, step, value }) => [`${name} ${step}`, value]));
  expect(metrics).toMatchObject({
    'trajectories/records 0': 5,
    'trajectories/instances 0': 4,
    'trajectories/dropped/wrong_answer 0': 2,
    'trajectories/by_turns/instances 2': 1,
  });
  expect(tally.inWords()).toMatch(
    /^2 of 5 records kept as 4 instances; dropped: correctness unknown 1, wrong answer 2; \d+\.\d % of [\d,]+ tokens masked$/,
  );
});

describe('records that are none', () => {
  test('are counted and named by file and line while they are few', async () => {
    const good = Array.from({ length: 199 }, () => row(1));
    const { report } = await importOf(await file('few.jsonl', ...good, '{"messages": ['), { format: 'redsearcher' });
    expect(report).toMatchObject({ records: 200, trajectories: 199, dropped: { bad_row: 1 } });
    expect(report).toMatchObject({ bad_rows: [expect.stringMatching(/^few\.jsonl:200: not JSON/)] });
  });

  test('stop the import when they are many, or when nothing is known of their shape', async () => {
    await expect(importOf(await file('many.jsonl', row(1), { question: 'x' }))).rejects.toThrow(
      /BAD_ROWS.*1 of 2 rows are bad.*many\.jsonl:2: no messages/,
    );
    await expect(importOf(await file('none.jsonl', { a: 1 }))).rejects.toThrow(
      /BAD_ROWS.*none\.jsonl:1: no shape of trajectories that is known; name its `format`/,
    );
  });
});

test('a source that has not the records it should have is refused, and so is one of which nothing is left', async () => {
  const source = await file('expect.jsonl', row(1), row(2, 'BSD'));
  await expect(importOf(source, {}, 3)).rejects.toThrow(/EXPECT_RECORDS.*expected 3 records, found 2/);
  expect((await importOf(source, {}, 2)).instances).toHaveLength(1);
  const wrong = await file('wrong.jsonl', row(1, 'BSD'));
  await expect(importOf(wrong)).rejects.toThrow(/NO_TRAJECTORIES.*dropped: wrong answer 1.*`clean.verdict`/);
});

test('`count` chooses by the seed among those that are kept, and a larger count contains a smaller one', async () => {
  const source = await file(
    'count.jsonl',
    ...Array.from({ length: 20 }, (_, index) => row(index + 1, index % 4 ? 'MIT' : 'BSD')),
  );
  const chosen = async (count: number) => {
    const { instances, tally } = await importOf(source, { count });
    return { ids: instances.map(({ trajectory_id }) => trajectory_id), dropped: tally.body().dropped };
  };
  const [four, nine] = [await chosen(4), await chosen(9)];
  expect(four.ids).toHaveLength(4);
  expect(four.dropped).toEqual({ wrong_answer: 5, over_count: 11 });
  expect(nine.ids).toEqual(expect.arrayContaining(four.ids));
  expect(four.ids).not.toEqual(nine.ids.slice(0, 4)); // not simply the first of the file
});

test('many trajectories are written as several files, none of which is lost or written twice', async () => {
  const { instances } = await importOf(await file('shards.jsonl', row(1), row(2), row(3), row(4)));
  async function* stream() {
    yield* instances;
  }
  const [first, second] = instances.map(({ token_ids }) => token_ids.length) as [number, number];
  const target = await mkdtemp(path.join(folder, 'shards-'));
  const files = await writeTrajectories(target, stream(), first + second);
  expect(Object.keys(files)).toEqual(['trajectories.parquet', 'trajectories-2.parquet']);
  const read: string[] = [];
  for (const name of Object.values(files))
    for await (const { trajectory_id } of readParquet<Trajectory>(name)) read.push(trajectory_id);
  expect(read).toEqual(instances.map(({ trajectory_id }) => trajectory_id));
});

const shared = sharedData();
const peer = (name: string) => path.join(shared ?? '', 'peer', name);

test.skipIf(shared === null)(
  'published trajectories, with shared data: WebDancer in full, LiteResearcher by its judge',
  async () => {
    const lenient = { ...clean, require_correct: false };
    const resample = {
      by: 'turns' as const,
      bands: [
        { up_to: 2, weight: 1 },
        { up_to: null, weight: 3 },
      ],
    };
    const webdancer = await importOf(
      peer('webdancer_traj_0_99.jsonl'),
      { clean: lenient, resample, context_length: 8600 },
      100,
    );
    expect(webdancer.report).toMatchObject({
      format: 'webdancer',
      records: 100,
      trajectories: 100,
      instances: 96 + 3 * (3 + 1), // 96 records of two turns, 3 of three and 1 of four
      dropped: {},
      rewritten_turns: 0,
      removed_turns: { other_tools: {}, repeated_calls: 0, unreadable: 0 },
      longest_tokens: 8525,
    });
    // Counted by Hugging Face's own tokenizers over the assistants' texts, with one stop token each.
    const trained = webdancer.instances.reduce((sum, { mask }) => sum + mask.filter((bit) => bit === 1).length, 0);
    expect(trained).toBe(126_762);
    expect(webdancer.tally.body().masked_share).toBeCloseTo(1 - 126_762 / 457_809, 12);
    // Its answers are sentences and its references are names: none matches exactly.
    await expect(importOf(peer('webdancer_traj_0_99.jsonl'))).rejects.toThrow(/NO_TRAJECTORIES.*wrong answer 100/);
    expect(webdancer.instances[0]?.messages[0]?.content).toMatch(/^In a prestigious British equestrian event/);

    const cases = await importOf(peer('literesearcher_case_Frame.json'), {
      clean: { ...clean, verdict: 'judge_correct' },
      context_length: 100_000,
    });
    expect(cases.report).toMatchObject({ format: 'literesearcher', trajectories: 2, dropped: {} });
  },
  120_000,
);
