import path from 'node:path';
import { afterEach, beforeAll, expect, test } from 'vitest';
import { type Completion, runTrajectory, type TrajectoryInput } from '../../environments/deep-research/agent-loop.ts';
import { loadTokenizer, renderAction, type Tokenizer } from '../../environments/deep-research/prompt.ts';
import { type Reply, trajectoryRoutes } from '../../environments/deep-research/serve-trajectories.ts';
import type { World } from '../../environments/environment.ts';
import { type JsonServer, serveJson } from '../../environments/world/json-server.ts';
import { worldRoutes } from '../../environments/world/serve-world.ts';
import type { Task } from '../../schemas/task.ts';
import { modelsDir } from '../../services/home.ts';

let t: Tokenizer;
beforeAll(async () => {
  t = await loadTokenizer(path.join(modelsDir(), 'smollm2-135m-instruct'));
});

const task: Task = {
  task_id: 'task/1 ä',
  question: 'What licence has zod?',
  answer: 'MIT',
  aliases: [],
  capability: 'direct_retrieval',
  split: 'train',
  source: 'made',
  evidence: ['npm:zod'],
  deny_urls: [],
};
const search = '<think>a</think>\n<tool_call>{"name": "search", "arguments": {"query": ["zod"]}}</tool_call>';
const answer = '<think>c</think>\n<answer>MIT</answer>';

const onePage = (): World => ({
  search: async () => ({ results: [{ url: 'npm:zod', title: 'zod', snippet: 'schemas', score: 1 }], denied: 0 }),
  visit: async (urls) =>
    urls.map((url) => ({ url, status: 'ok' as const, title: 'zod', text: 'Licence: MIT', truncated: false })),
  close: async () => {},
});

const stage = (world = onePage()) => ({
  world,
  tokenizer: t,
  tools: ['search', 'visit'] as const,
  limits: { maxTurns: 4, maxTurnTokens: 80, observationTokens: 96, searchResults: 3, contextLength: 1200 },
  reward: { outcome: 'exact_match' as const, format_penalty: 1 },
  checkpoint: 'weights',
});

const servers: JsonServer[] = [];
afterEach(async () => {
  await Promise.all(servers.splice(0).map((server) => server.close()));
});

/** A tool server, and how a sampler asks it. */
async function serve(world?: World) {
  const given = stage(world);
  const routes = {
    ...trajectoryRoutes(given, (id) => (id === task.task_id ? task : undefined)),
    ...worldRoutes({ world: given.world, countTokens: (text) => text.length, searchResults: 3, visitTokens: 100 }),
  };
  const server = await serveJson(routes, { host: '127.0.0.1', port: 0 });
  servers.push(server);
  return async (route: string, body: object): Promise<{ status: number; reply: Reply & Record<string, unknown> }> => {
    const response = await fetch(`http://127.0.0.1:${server.port}/${route}`, {
      method: 'POST',
      body: JSON.stringify(body),
    });
    return { status: response.status, reply: (await response.json()) as Reply & Record<string, unknown> };
  };
}

const begin = { trajectory_id: 'tr-1', task_id: task.task_id, sample: 0, temperature: 1, top_p: 1, turns: [] };

function completion(action: string): Completion {
  const token_ids = renderAction(t, action);
  return { token_ids, logprobs: token_ids.map((_, index) => -0.5 - index), weight_version: '3' };
}

test('a sampler that appends what it is told holds the ids of a trajectory that ran here', async () => {
  const actions = [search, search, search, search, answer].map(completion);
  const ask = await serve();

  let { reply } = await ask('trajectories', begin);
  const ids: number[] = [];
  for (const [turn, sampled] of actions.entries()) {
    expect(reply).toMatchObject({ max_tokens: 80, stop_token_ids: t.stopIds });
    ids.push(...(reply as { append: number[] }).append, ...sampled.token_ids);
    ({ reply } = await ask('trajectories/tr-1', { turn, ...sampled }));
  }

  let next = 0;
  const sample: TrajectoryInput['sample'] = async () => actions[next++] as Completion;
  const sampling = { temperature: 1, top_p: 1, seed: 0 };
  const whole = { contextManagement: 'none', faults: null } as const;
  const here = { ...stage(), ...whole, trajectory_id: 'tr-1', group_id: '', sample_index: 0, task, sampling, sample };
  const [{ token_ids, reward, score, termination }] = await runTrajectory(here);
  expect(ids).toEqual(token_ids);
  expect(reply).toMatchObject({ end: { reward, score, termination: 'max_turns' } });
  expect(termination).toBe('max_turns');
});

test('a completion whose answer was lost is answered again and not taken twice', async () => {
  const ask = await serve();
  await ask('trajectories', begin);
  const first = await ask('trajectories/tr-1', { turn: 0, ...completion(search) });
  const again = await ask('trajectories/tr-1', { turn: 0, ...completion(search) });
  expect(again).toEqual(first);
  expect(await ask('trajectories/tr-1', { turn: 2, ...completion(answer) })).toMatchObject({ status: 400 });
  expect((await ask('trajectories/tr-1', { turn: 1, ...completion(answer) })).reply).toMatchObject({
    end: { reward: { outcome: 1 } },
  });
});

test('a new server goes on after the turns that the sampler still has', async () => {
  const [old, other] = [await serve(), await serve()];
  await old('trajectories', begin);
  const { reply } = await old('trajectories/tr-1', { turn: 0, ...completion(search) });
  const answered = { turn: 1, ...completion(answer) };

  expect((await other('trajectories/tr-1', answered)).status).toBe(404);
  await other('trajectories', { ...begin, turns: [reply.record] });

  const there = await other('trajectories/tr-1', answered);
  expect({ ...there.reply, record: null }).toEqual({
    ...(await old('trajectories/tr-1', answered)).reply,
    record: null,
  });
});

test('a tool that is out of order is told as a failure, never as a reward', async () => {
  const broken = { ...onePage(), search: () => Promise.reject(new Error('no index')) };
  const ask = await serve(broken);
  await ask('trajectories', begin);
  const { reply } = await ask('trajectories/tr-1', { turn: 0, ...completion(search) });
  expect(reply).toEqual({ record: null, failed: { failure_class: 'tool', message: 'tr-1: no index' } });
});

test('search and visit answer in the published shapes, and bad requests say what is wrong', async () => {
  const ask = await serve();
  expect((await ask('search', { query: ['zod', 'yup'] })).reply).toEqual({
    result: Array.from({ length: 2 }, () => [
      { document: { title: 'zod', url: 'npm:zod', contents: 'zod\nschemas' }, score: 1 },
    ]),
  });
  expect((await ask('visit', { url: 'npm:zod', goal: 'licence' })).reply).toMatchObject({
    result: [{ url: 'npm:zod', status: 'ok', text: 'Licence: MIT' }],
  });
  expect(await ask('search', { query: 7 })).toEqual({
    status: 400,
    reply: { error: '`query` must be a list of texts' },
  });
  expect(await ask('trajectories', { ...begin, task_id: 'x' })).toMatchObject({ status: 400 });
  expect(await ask('constructor', {})).toMatchObject({ status: 404 });
});
