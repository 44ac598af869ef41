/** How the client behaves when an engine misbehaves; what a sound engine answers is tested on a real one. */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, expect, test } from 'vitest';
import { BootChanged, EngineClient } from '../../activities/adapters/engine-client.ts';

type Answer = (response: ServerResponse, request: IncomingMessage) => void;
const closing: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0)) await close();
});

const part = (ids: number[], finish: string | null = null) =>
  `data: ${JSON.stringify({ choices: [{ token_ids: ids, logprobs: { token_logprobs: ids.map(() => -0.5) }, finish_reason: finish }] })}\n\n`;
const whole: Answer = (response) => response.end(`${part([5, 6])}${part([2], 'stop')}data: [DONE]\n\n`);
const status =
  (code: number, headers: Record<string, string> = {}): Answer =>
  (response) =>
    response.writeHead(code, headers).end(JSON.stringify({ error: { message: `said ${code}` } }));

/** An engine that gives these answers in turn, the last one for ever. */
async function engine(...answers: Answer[]) {
  const asked: number[] = [];
  const server = createServer((request, response) => {
    request.resume();
    asked.push(Date.now());
    answers[Math.min(asked.length, answers.length) - 1]?.(response, request);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const client = new EngineClient(
    { name: 'e', kind: 'vllm', url, admin: true },
    { firstRetryMs: 5, lastRetryMs: 20, attempts: 3, downMs: 300, idleMs: 200 },
  );
  closing.push(
    () => client.close(),
    () =>
      new Promise((resolve) => {
        server.closeAllConnections();
        server.close(resolve);
      }),
  );
  return {
    client,
    asked,
    server,
    complete: (signal?: AbortSignal) =>
      client.complete('boot-1', [1], [2], { maxTokens: 4, temperature: 1, topP: 1, seed: 1 }, { signal }),
  };
}

test('a stream of parts is one completion', async () => {
  const { complete } = await engine(whole);
  expect(await complete()).toEqual({ token_ids: [5, 6, 2], logprobs: [-0.5, -0.5, -0.5] });
});

test('a score is the logprobs of the ids from a position on', async () => {
  const prompt_logprobs = [null, { 8: { logprob: -1 } }, { 9: { logprob: -2 } }, { 10: { logprob: -3 } }];
  const { client } = await engine((response) => response.end(JSON.stringify({ choices: [{ prompt_logprobs }] })));
  expect(await client.score('boot-1', [7, 8, 9, 10], 2)).toEqual([-2, -3]);
});

test('a part that is torn between two packets is read whole', async () => {
  const { complete } = await engine((response) => {
    const text = `${part([5, 6])}${part([2], 'stop')}`;
    response.write(text.slice(0, 30));
    setTimeout(() => response.end(text.slice(30)), 20);
  });
  expect((await complete()).token_ids).toEqual([5, 6, 2]);
});

test('an engine that stumbles is asked again, and what it had begun to say is forgotten', async () => {
  const { complete, asked } = await engine(
    status(503),
    (response) => {
      response.write(part([7, 7, 7]));
      setTimeout(() => response.destroy(), 10);
    },
    whole,
  );
  expect((await complete()).token_ids).toEqual([5, 6, 2]);
  expect(asked).toHaveLength(3);
});

test('an aborted completion is no completion', async () => {
  const { complete, asked } = await engine((response) => response.end(part([7], 'abort')), whole);
  expect((await complete()).token_ids).toEqual([5, 6, 2]);
  expect(asked).toHaveLength(2);
});

test('an error inside the stream is asked again', async () => {
  const { complete } = await engine(
    (response) => response.end('data: {"error": {"message": "engine dead", "code": 500}}\n\n'),
    whole,
  );
  expect((await complete()).token_ids).toEqual([5, 6, 2]);
});

test('Retry-After is honoured', async () => {
  const { complete, asked } = await engine(status(429, { 'retry-after': '1' }), whole);
  await complete();
  expect((asked[1] ?? 0) - (asked[0] ?? 0)).toBeGreaterThanOrEqual(950);
});

test('server errors without end are an outage, after a bounded number of attempts', async () => {
  const { complete, asked } = await engine(status(500));
  await expect(complete()).rejects.toMatchObject({ code: 'ENGINE_UNAVAILABLE' });
  expect(asked).toHaveLength(3);
});

test('an engine that is down is waited for, for a bounded time', async () => {
  const { complete, server, client } = await engine(whole);
  const port = (server.address() as AddressInfo).port;
  await new Promise((resolve) => server.close(resolve));
  const back = setTimeout(() => server.listen(port, '127.0.0.1'), 100);
  expect((await complete()).token_ids).toEqual([5, 6, 2]);
  clearTimeout(back);
  await new Promise((resolve) => {
    server.closeAllConnections();
    server.close(resolve);
  });
  await expect(client.info()).rejects.toMatchObject({ code: 'ENGINE_UNAVAILABLE' });
});

test('an engine that is silent in the middle of an answer is given up', async () => {
  const { complete } = await engine((response) => void response.write(part([5])), whole);
  expect((await complete()).token_ids).toEqual([5, 6, 2]);
}, 10_000);

test('an engine that no longer has our name is another boot', async () => {
  const { complete, asked } = await engine(status(404));
  await expect(complete()).rejects.toBeInstanceOf(BootChanged);
  expect(asked).toHaveLength(1);
});

test('a request that is wrong is not repeated', async () => {
  const { complete, asked } = await engine(status(400));
  await expect(complete()).rejects.toMatchObject({ code: 'ENGINE_REQUEST' });
  expect(asked).toHaveLength(1);
});

test('cancelling ends the request at once, and the engine sees the connection close', async () => {
  let closed = false;
  const { complete } = await engine((response, request) => {
    request.on('close', () => {
      closed = true;
    });
    response.write(part([5]));
  });
  const cancelling = new AbortController();
  const completing = complete(cancelling.signal);
  setTimeout(() => cancelling.abort(new Error('cancelled')), 50);
  await expect(completing).rejects.toThrow('cancelled');
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect(closed).toBe(true);
});
