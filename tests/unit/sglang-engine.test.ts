/**
 * SGLang's wire format as its documentation and source (v0.5) give it, spoken by a server made by hand: SGLang itself
 * needs a GPU, so nothing here says how a real one behaves.
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, describe, expect, test } from 'vitest';
import { BootChanged, EngineClient } from '../../activities/adapters/engine-client.ts';

const closing: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0)) await close();
});

interface Call {
  route: string;
  // biome-ignore lint/suspicious/noExplicitAny: whatever was sent
  body: any;
}
type Reply = { status?: number; body: unknown };

/** A server with SGLang's routes and one state: the version of its weights. */
async function sglang(overrides: Record<string, (call: Call) => Reply> = {}) {
  const state = { weight_version: 'default', model_path: '/models/base' };
  const calls: Call[] = [];
  const meta = { id: 'r', prompt_tokens: 3, cached_tokens: 0, e2e_latency: 0.01 };
  const routes: Record<string, (call: Call) => Reply> = {
    'GET /model_info': () => ({ body: { ...state, tokenizer_path: '/models/base', is_generation: true } }),
    'GET /server_info': () => ({ body: { version: '0.5.3', dtype: 'bfloat16', tp_size: 2 } }),
    'POST /generate': ({ body }) => ({
      body: {
        text: 'x',
        output_ids: [5, 6, 2],
        meta_info: {
          ...meta,
          weight_version: state.weight_version,
          finish_reason: { type: 'stop', matched: 2 },
          completion_tokens: 3,
          output_token_logprobs: [
            [-0.5, 5, null],
            [-0.25, 6, null],
            [-0.125, 2, null],
          ],
          // Of the ids from there on, the first without a logprob (scheduler_output_processor_mixin.py).
          ...(body.logprob_start_len >= 0 && {
            input_token_logprobs: body.input_ids
              .slice(body.logprob_start_len)
              .map((id: number, at: number) => [at === 0 ? null : -(body.logprob_start_len + at), id, null]),
          }),
        },
      },
    }),
    'POST /update_weights_from_disk': ({ body }) => {
      Object.assign(state, { weight_version: body.weight_version, model_path: body.model_path });
      return { body: { success: true, message: 'Succeeded to update model weights.', num_paused_requests: 0 } };
    },
    'POST /flush_cache': () => ({ body: 'Cache flushed.\nPlease check backend logs for more details.' }),
    ...overrides,
  };
  const answer = async (request: IncomingMessage, response: ServerResponse) => {
    const parts: Buffer[] = [];
    for await (const part of request) parts.push(part as Buffer);
    const text = Buffer.concat(parts).toString();
    const call = { route: `${request.method} ${request.url}`, body: text === '' ? null : JSON.parse(text) };
    calls.push(call);
    const { status = 200, body } = routes[call.route]?.(call) ?? { status: 404, body: { detail: 'Not Found' } };
    response.writeHead(status).end(typeof body === 'string' ? body : JSON.stringify(body));
  };
  const server = createServer((request, response) => void answer(request, response));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const times = { firstRetryMs: 5, lastRetryMs: 20, attempts: 3, downMs: 300, idleMs: 2_000 };
  const client = new EngineClient({ name: 'e', kind: 'sglang', url, admin: true }, times);
  closing.push(
    () => client.close(),
    () => new Promise((resolve) => void server.close(resolve)),
  );
  const request = { maxTokens: 40, temperature: 0.7, topP: 0.95, seed: 4_000_000_000 };
  const complete = (boot: string) => client.complete(boot, [7, 8, 9], [2, 0], request);
  const asked = (route: string) => calls.filter((call) => call.route === route).map(({ body }) => body);
  return { client, state, calls, complete, asked };
}

test('a completion is the sampled ids with their logprobs, the stop token the last', async () => {
  const { complete, asked } = await sglang();
  expect(await complete('default')).toEqual({ token_ids: [5, 6, 2], logprobs: [-0.5, -0.25, -0.125] });
  expect(asked('POST /generate')).toEqual([
    {
      input_ids: [7, 8, 9],
      sampling_params: {
        max_new_tokens: 40,
        temperature: 0.7,
        top_p: 0.95,
        top_k: -1,
        min_p: 0,
        frequency_penalty: 0,
        presence_penalty: 0,
        repetition_penalty: 1,
        stop_token_ids: [2, 0],
        ignore_eos: false,
        skip_special_tokens: false,
        no_stop_trim: true,
        sampling_seed: 4_000_000_000,
      },
      return_logprob: true,
      logprob_start_len: -1,
      stream: false,
    },
  ]);
});

const answering = (meta_info: object) => ({ 'POST /generate': () => ({ body: { text: '', meta_info } }) });
const sound = {
  weight_version: 'default',
  completion_tokens: 1,
  output_token_logprobs: [[-0.5, 5, null]],
};

describe('what is no completion', () => {
  test('an aborted one is asked for again', async () => {
    const { complete, asked } = await sglang(
      answering({ ...sound, finish_reason: { type: 'abort', message: 'Abort in waiting queue' } }),
    );
    await expect(complete('default')).rejects.toThrow('Abort in waiting queue');
    expect(asked('POST /generate')).toHaveLength(3);
  });
  test('one without a logprob for every id is refused', async () => {
    const { complete } = await sglang(
      answering({ ...sound, completion_tokens: 2, finish_reason: { type: 'length', length: 2 } }),
    );
    await expect(complete('default')).rejects.toThrow('2 ids came with 1 logprobs');
  });
  test('a request that is wrong is not repeated, and says why', async () => {
    const { complete, asked } = await sglang({
      'POST /generate': () => ({ status: 400, body: { error: { message: 'The input is longer than the context.' } } }),
    });
    await expect(complete('default')).rejects.toThrow('The input is longer than the context.');
    expect(asked('POST /generate')).toHaveLength(1);
  });
});

test('the probe is the logprobs of the prompt, without its first token', async () => {
  const { client, asked } = await sglang();
  const served = await client.probe('default', [7, 8, 9]);
  expect(served).toEqual({ logprobs: [-1, -2], build: 'sglang 0.5.3 bfloat16 tp2' });
  expect(asked('POST /generate')[0]).toMatchObject({ logprob_start_len: 0, sampling_params: { temperature: 1 } });
});

describe('a score of the last ids of a prompt', () => {
  test('asks for their logprobs alone, so that what comes before is taken from the prefix cache', async () => {
    const { client, asked } = await sglang();
    // Position 3 and 4 of the prompt; each logprob of this server is minus its position.
    expect(await client.score('default', [7, 8, 9, 10, 11], 3)).toEqual([-3, -4]);
    expect(asked('POST /generate')).toEqual([
      {
        input_ids: [7, 8, 9, 10, 11],
        sampling_params: { max_new_tokens: 1, temperature: 1 },
        return_logprob: true,
        logprob_start_len: 2,
        stream: false,
      },
    ]);
    expect(asked('GET /server_info')).toEqual([]);
  });

  test.each([
    [
      'too few',
      [
        [null, 9, null],
        [-1, 10, null],
      ],
    ],
    [
      'of other ids',
      [
        [null, 9, null],
        [-1, 10, null],
        [-2, 12, null],
      ],
    ],
    [
      'without a number',
      [
        [null, 9, null],
        [-1, 10, null],
        [null, 11, null],
      ],
    ],
  ])('is no score when logprobs are %s: a belief of nothing would be a gain of nothing', async (_, given) => {
    const { client } = await sglang(answering({ ...sound, input_token_logprobs: given }));
    await expect(client.score('default', [7, 8, 9, 10, 11], 3)).rejects.toThrow('no logprobs of the ids from 3 to 5');
  });

  test('of weights that are not ours is refused', async () => {
    const { client } = await sglang();
    await expect(client.score('boot-1', [7, 8], 1)).rejects.toBeInstanceOf(BootChanged);
  });
});

test('loaded weights are named, what is in flight is aborted, the cache is flushed', async () => {
  const { client, calls, state, complete } = await sglang();
  const { boot } = await client.info();
  expect(boot).toBe('default');
  const ours = client.bootAfterLoad(boot);
  await client.loadWeights(ours, '/merged/abc');
  expect(calls.slice(1).map(({ route }) => route)).toEqual(['POST /update_weights_from_disk', 'POST /flush_cache']);
  expect(calls[1]?.body).toEqual({ model_path: '/merged/abc', abort_all_requests: true, weight_version: ours });
  expect(await client.info()).toEqual({ boot: ours, root: '/merged/abc' });
  expect(client.bootAfterLoad(ours)).toBe(ours); // until it starts again
  expect((await complete(ours)).token_ids).toEqual([5, 6, 2]);

  state.weight_version = 'default';
  await expect(complete(ours)).rejects.toBeInstanceOf(BootChanged);
  await expect(client.probe(ours, [7, 8])).rejects.toBeInstanceOf(BootChanged);
});

test('weights that cannot be loaded are an error, and so is a cache that is not cleared', async () => {
  const failed = { success: false, message: 'Failed to update weights: no such file', num_paused_requests: 0 };
  const unloaded = await sglang({ 'POST /update_weights_from_disk': () => ({ status: 400, body: failed }) });
  await expect(unloaded.client.loadWeights('boot-1', '/x')).rejects.toThrow('no such file');
  const busy = await sglang({ 'POST /flush_cache': () => ({ status: 400, body: 'Flush cache failed.' }) });
  await expect(busy.client.loadWeights('boot-1', '/x')).rejects.toThrow('Flush cache failed.');
});

test('older servers are asked by the old names of routes; one that names no weights is refused', async () => {
  const base = { model_path: '/m', tokenizer_path: '/m', is_generation: true };
  const gone = () => ({ status: 404, body: { detail: 'Not Found' } });
  const older = await sglang({
    'GET /model_info': gone,
    'GET /get_model_info': () => ({ body: { ...base, weight_version: 'default' } }),
  });
  expect(await older.client.info()).toEqual({ boot: 'default', root: '/m' });
  const oldest = await sglang({ 'GET /model_info': gone, 'GET /get_model_info': () => ({ body: base }) });
  await expect(oldest.client.info()).rejects.toThrow('a newer SGLang is needed');
});
