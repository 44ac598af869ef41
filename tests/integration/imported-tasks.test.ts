// Questions from files, chosen by capability; a judge behind a real server of the wire says what it is.
import { writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { MockActivityEnvironment } from '@temporalio/testing';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { writeParquet } from '../../activities/adapters/parquet.ts';
import { Judges } from '../../activities/judges.ts';
import { createTaskActivities } from '../../activities/make-tasks.ts';
import { PlanReader } from '../../activities/plan-reader.ts';
import type { Stack } from '../../cli/open-stack.ts';
import type { ArtifactRef, TasksBody } from '../../schemas/artifact.ts';
import { contentKey } from '../../schemas/canonical.ts';
import type { TaskSource, TasksParameters, Unkeyed } from '../../schemas/node-parameters.ts';
import type { Plan, PlanNode } from '../../schemas/plan.ts';
import type { Task } from '../../schemas/task.ts';
import { TASK_COLUMNS } from '../../schemas/task-columns.ts';
import { temporaryFolder } from '../temporary-folder.ts';
import { connectStore, startPostgres, type TestService } from './toy-services.ts';

const folder = temporaryFolder('exp-imported-tasks-');
const judge = {
  model: 'Qwen/Qwen3-32B',
  sha256: 'b'.repeat(64),
  prompt: 'What does this ask for? {question}',
  temperature: 0.1,
  max_tokens: 64,
};

/** What a judge replies to a prompt; null: it answers 503. */
type Replies = (prompt: string) => string | null;
let replies: Replies;
let asked: { prompt: string; body: Record<string, unknown> }[];

let postgres: TestService;
let stack: Stack;
let url: string;
const server = createServer((request, response) => {
  const parts: Buffer[] = [];
  request.on('data', (part: Buffer) => parts.push(part));
  request.on('end', () => {
    const body = JSON.parse(Buffer.concat(parts).toString()) as { messages: { content: string }[] };
    const prompt = body.messages[0]?.content ?? '';
    asked.push({ prompt, body: { ...body, path: request.url } });
    const content = replies(prompt);
    response.writeHead(content === null ? 503 : 200, { 'content-type': 'application/json' });
    response.end(
      JSON.stringify({
        id: 'chatcmpl-1',
        object: 'chat.completion',
        choices: [{ index: 0, message: { role: 'assistant', content }, finish_reason: 'stop' }],
      }),
    );
  });
});

beforeAll(async () => {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`;
  postgres = await startPostgres();
  stack = await connectStore(postgres.address, folder);
});

afterAll(async () => {
  server.close();
  await stack?.close();
  await postgres?.stop();
});

beforeEach(async () => {
  asked = [];
  await stack.pool.query('truncate artifacts, judge_replies');
});

const KINDS = ['direct_retrieval', 'aggregation', 'enumeration', 'cross_verification', 'statistics'] as const;
type Kind = (typeof KINDS)[number];
const mix = { direct_retrieval: 0.3, aggregation: 0.2, enumeration: 0.2, cross_verification: 0.15, statistics: 0.15 };

/** Questions of each kind, which say themselves what they are. */
const questionsOf = (counts: Partial<Record<Kind | 'unclear', number>>) =>
  Object.entries(counts).flatMap(([kind, count]) =>
    Array.from({ length: count }, (_, index) => ({ question: `${kind} ${index}?`, answer: 'a' })),
  );
const kindIn = (text: string): string => text.match(/(\w+) \d+\?/)?.[1] ?? '';
const honest: Replies = (prompt) => `reasoning: it says so\ncapability: ${kindIn(prompt)}`;

interface Asked {
  rows: readonly object[];
  capability?: Exclude<TaskSource, { kind: 'generated' }>['capability'];
  mix?: Record<string, number> | null;
  limit?: number | null;
  all?: number | null;
  seed?: number;
  format?: 'jsonl' | 'parquet';
}

async function run({ rows, capability = { judge }, limit = null, all = null, seed = 3, ...rest }: Asked) {
  const kind = rest.format ?? 'jsonl';
  const path = join(folder, `stage1.${kind}`);
  if (kind === 'jsonl') writeFileSync(path, rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
  else await writeParquet(path, rows, { question: 'VARCHAR', answer: 'VARCHAR', capability: 'VARCHAR' });
  const source: TaskSource = {
    kind,
    format: 'columns',
    fields: TASK_COLUMNS,
    limit,
    seed,
    capability,
    licence: 'CC0-1.0',
    provenance: 'written for this test',
  };
  const parameters: TasksParameters = {
    sources: { stage1: source },
    mix: rest.mix === undefined ? mix : rest.mix,
    splits: { train: 1 },
    limit: all,
    decontaminate: null,
  };
  const unkeyed: Unkeyed = {
    paths: { stage1: path },
    judge: { url: { env: 'JUDGE_URL' }, retries: 0, on_failure: 'retry_later' },
  };
  const keyed = { kind: 'tasks' as const, kind_version: 1, inputs: [], files: [], seed: 17 };
  const node: PlanNode = {
    ...keyed,
    id: 'tasks.stage1',
    key: contentKey({ ...keyed, parameters }),
    parameters: { ...parameters } as PlanNode['parameters'],
    unkeyed: { ...unkeyed } as PlanNode['unkeyed'],
  };
  const plan = await stack.store.putJson({ arms: [{ name: 'main', nodes: [node] }] } as unknown as Plan);
  const plans = new PlanReader(stack.store);
  const { tasks } = createTaskActivities({
    plans,
    store: stack.store,
    pool: stack.pool,
    judges: new Judges({ plans, secret: () => url }),
    progress: async () => {},
    work: join(folder, 'work'),
  });
  const { id, key } = node;
  const artifact: ArtifactRef = await new MockActivityEnvironment().run(tasks, {
    plan,
    arm: 'main',
    id,
    kind: 'tasks' as const,
    key,
  });
  const manifest = await stack.store.manifest(artifact);
  const read = async (name: string) => readFile(await stack.store.openFile(manifest, name), 'utf8');
  return {
    digest: artifact.digest,
    body: manifest.body as unknown as TasksBody,
    tasks: (await read('tasks.jsonl'))
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as Task),
    report: JSON.parse(await read('report.json')) as { sources: Record<string, { mix: unknown }> },
  };
}

const eachOf = (...counts: number[]) => Object.fromEntries(KINDS.map((kind, index) => [kind, counts[index] as number]));

test('the judge names the capability of each question, and the mix is as asked', async () => {
  replies = honest;
  const rows = questionsOf(eachOf(12, 8, 8, 6, 6));
  const { body, tasks } = await run({ rows, limit: 20 });
  // 20 of 30, 20, 20, 15 and 15 % are 6, 4, 4, 3 and 3.
  expect(body.mix).toEqual(
    Object.fromEntries(Object.entries(eachOf(6, 4, 4, 3, 3)).map(([kind, n]) => [kind, { asked: n, realised: n }])),
  );
  expect(tasks.every(({ capability, question }) => capability === kindIn(question))).toBe(true);
  expect(asked).toHaveLength(40);
  expect(asked.find(({ prompt }) => prompt.endsWith(' statistics 0?'))?.body).toEqual({
    path: '/v1/chat/completions',
    model: 'Qwen/Qwen3-32B',
    temperature: 0.1,
    max_tokens: 64,
    messages: [{ role: 'user', content: 'What does this ask for? statistics 0?' }],
  });
});

test('what is scarce decides how many questions there are, and the report says what was there', async () => {
  replies = honest;
  const { body, report } = await run({ rows: questionsOf(eachOf(20, 20, 20, 20, 3)), limit: 40 });
  // The fourth of statistics would come at a claim of 0.15 / 7: before it 7, 5, 5 and 4 of the others.
  expect(body.mix).toEqual({
    direct_retrieval: { asked: 12, realised: 7 },
    aggregation: { asked: 8, realised: 5 },
    enumeration: { asked: 8, realised: 5 },
    cross_verification: { asked: 6, realised: 4 },
    statistics: { asked: 6, realised: 3 },
  });
  expect(body.dropped).toEqual({ outside_mix: 16 });
  expect(report.sources['stage1']?.mix).toMatchObject({ available: eachOf(20, 20, 20, 20, 3) });
});

test('a crash in the middle pays for no reply twice, and the tasks are the same', async () => {
  const rows = questionsOf(eachOf(12, 8, 8, 6, 6));
  replies = honest;
  const undisturbed = await run({ rows });
  await stack.pool.query('truncate artifacts, judge_replies');
  asked = [];

  replies = (prompt) => (asked.length > 25 ? null : honest(prompt));
  await expect(run({ rows })).rejects.toMatchObject({ code: 'JUDGE_UNAVAILABLE' });
  const kept = await stack.pool.query('select asked from judge_replies');
  expect(kept.rowCount).toBe(25);
  asked = [];
  replies = honest;
  const again = await run({ rows });
  expect(asked).toHaveLength(40 - 25);
  expect(again.digest).toBe(undisturbed.digest);
});

test('another mix, and so another node, asks nobody again', async () => {
  replies = honest;
  const rows = questionsOf(eachOf(6, 4, 4, 3, 3));
  await run({ rows });
  asked = [];
  replies = () => null;
  const { body } = await run({ rows, mix: { direct_retrieval: 0.5, statistics: 0.5 } });
  expect(body.mix).toEqual({
    direct_retrieval: { asked: 4, realised: 4 },
    statistics: { asked: 3, realised: 3 },
  });
  expect(asked).toEqual([]);
});

test('without a mix, only as many are asked about as the limit takes', async () => {
  replies = honest;
  const rows = questionsOf({ direct_retrieval: 150, aggregation: 150, enumeration: 150, statistics: 150 });
  const { tasks } = await run({ rows, mix: null, limit: 40 });
  expect(tasks).toHaveLength(40);
  expect(asked).toHaveLength(256); // as many as are asked about before they are counted
});

test('a question of which the judge says nothing is in no mix, and more than a few of them end the node', async () => {
  const named = eachOf(60, 40, 40, 30, 30);
  replies = honest;
  const { body, tasks } = await run({ rows: questionsOf({ ...named, unclear: 2 }) });
  expect(tasks).toHaveLength(200);
  expect(body.dropped).toEqual({ outside_mix: 2 });
  await expect(run({ rows: questionsOf({ ...named, unclear: 3 }) })).rejects.toMatchObject({
    code: 'NO_CAPABILITY',
    at: 'tasks.sources.stage1',
    message: expect.stringContaining('named no capability for 3 of 203 questions'),
  });
});

test.each(['jsonl', 'parquet'] as const)('columns of %s name the capability, too', async (format) => {
  const rows = KINDS.flatMap((capability) =>
    questionsOf({ [capability]: 10 }).map((question) => ({ ...question, capability })),
  );
  const { body, tasks } = await run({ rows, capability: null, limit: 20, format });
  expect(KINDS.map((kind) => body.mix[kind]?.realised)).toEqual([6, 4, 4, 3, 3]);
  const smaller = await run({ rows, capability: null, limit: 11, format });
  expect(tasks.map(({ task_id }) => task_id)).toEqual(
    expect.arrayContaining(smaller.tasks.map(({ task_id }) => task_id)),
  );
  const another = await run({ rows, capability: null, limit: 20, format, seed: 4 });
  expect(another.tasks.map(({ task_id }) => task_id)).not.toEqual(tasks.map(({ task_id }) => task_id));
  expect(asked).toEqual([]);
});

test('a limit over all sources keeps the mix', async () => {
  const rows = KINDS.flatMap((capability) =>
    questionsOf({ [capability]: 30 }).map((question) => ({ ...question, capability })),
  );
  const { body } = await run({ rows, capability: null, limit: 100, all: 20 });
  expect(KINDS.map((kind) => body.mix[kind])).toEqual(
    [6, 4, 4, 3, 3].map((realised, index) => ({ asked: [30, 20, 20, 15, 15][index], realised })),
  );
});

test('a question without a capability is named by file and line, with what to do', async () => {
  const rows = [
    { question: 'a?', answer: 'b', capability: 'statistics' },
    { question: 'c?', answer: 'd', capability: 'guessing' },
  ];
  await expect(run({ rows, capability: null })).rejects.toMatchObject({
    code: 'NO_CAPABILITY',
    at: 'stage1.jsonl:2',
    message: expect.stringMatching(
      /none in its column capability; say in `tasks.sources.stage1.capability`.*judge: true/,
    ),
  });
  expect((await run({ rows, capability: null, mix: null })).body.mix['unknown']).toEqual({ asked: 0, realised: 1 });
});

test('a mix that asks for what the file has not says what it has', async () => {
  const rows = [{ question: 'a?', answer: 'b', capability: 'statistics' }];
  await expect(run({ rows, capability: null })).rejects.toMatchObject({
    code: 'NO_CAPABILITY',
    message: expect.stringMatching(/asks for .*direct_retrieval.*none of its 1 questions.*\(statistics 1\)/),
  });
});
