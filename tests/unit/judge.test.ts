/** What a judge is asked and how its replies count; the server speaks the wire of an OpenAI-compatible one. */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, describe, expect, test } from 'vitest';
import { Judges } from '../../activities/judges.ts';
import { judgePrompt, readVerdict } from '../../environments/deep-research/judge.ts';
import { capabilityPrompt, readCapability } from '../../environments/deep-research/tasks/capability-judge.ts';
import type { Trajectory } from '../../schemas/trajectory.ts';

describe('a reply', () => {
  test.each([
    ['reasoning: the same\ncorrect: yes', true],
    ['reasoning: another city\ncorrect: No.', false],
    ['**correct:** yes', true],
    ['I shall say correct: yes or correct: no. They differ.\ncorrect: no', false],
    ['<think>correct: yes</think>correct: no', false],
  ])('%j decides', (reply, correct) => {
    expect(readVerdict(reply)?.correct).toBe(correct);
  });
  test.each(['', 'yes', 'the answer is correct', 'correct: maybe', '<think>correct: yes</think>'])(
    '%j decides nothing',
    (reply) => {
      expect(readVerdict(reply)).toBeNull();
    },
  );
});

test('what an answer holds is not read as a slot', () => {
  const slots = { question: 'q', reference: 'r', answer: '{reference} $& {question}' };
  expect(judgePrompt('{question}|{answer}|{reference}', slots)).toBe('q|{reference} $& {question}|r');
});

describe('a reply to what a question asks for', () => {
  test.each([
    ['reasoning: one page\ncapability: direct_retrieval', 'direct_retrieval'],
    ['**Capability:** Cross-Verification.', 'cross_verification'],
    ['capability: direct retrieval', 'direct_retrieval'],
    ['capability: statistics? No: capability: enumeration', 'enumeration'],
    ['<think>capability: statistics</think>capability: aggregation', 'aggregation'],
  ])('%j decides', (reply, capability) => {
    expect(readCapability(reply)).toBe(capability);
  });
  test.each(['', 'aggregation', 'capability: none', 'capability: statistics\ncapability: unclear'])(
    '%j decides nothing',
    (reply) => {
      expect(readCapability(reply)).toBeNull();
    },
  );
  test('what a question holds is not read as a slot', () => {
    expect(capabilityPrompt('{question}!', '$& {question}')).toBe('$& {question}!');
  });
});

const closing: (() => void)[] = [];
afterEach(() => {
  for (const close of closing.splice(0)) close();
});

type Reply = { status: number; content?: string };

/** Grades one answer by a server that gives these replies in turn, the last one for ever. */
async function judge(replies: readonly Reply[], retries: number, on_failure: 'retry_later' | 'fail' = 'retry_later') {
  const asked: { body: Record<string, unknown>; authorization: string | undefined }[] = [];
  const answer = async (request: IncomingMessage, response: ServerResponse) => {
    const body = JSON.parse(await textOf(request)) as Record<string, unknown>;
    asked.push({ body, authorization: request.headers.authorization });
    const { status, content } = replies[Math.min(asked.length, replies.length) - 1] as Reply;
    response.writeHead(status).end(JSON.stringify({ choices: [{ message: { content } }] }));
  };
  const server = createServer((request, response) => void answer(request, response));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  closing.push(() => server.close());
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1/`;
  const parameters = { model: 'Qwen3-32B', sha256: '0', prompt: '{question}|{reference}|{answer}', temperature: 0.1 };
  const node = {
    parameters: { reward: { outcome: 'judge', format_penalty: 1, judge: { ...parameters, max_tokens: 64 } } },
    unkeyed: { judge: { url: { env: 'JUDGE_URL' }, api_key: { env: 'JUDGE_KEY' }, retries, on_failure } },
  };
  const secrets: Record<string, string> = { JUDGE_URL: url, JUDGE_KEY: 'token' };
  const judges = new Judges({
    plans: { node: async () => node } as never,
    secret: (secret) => ('env' in secret ? (secrets[secret.env] as string) : ''),
  });
  const grade = await judges.open({ id: 'stage1' } as never);
  return {
    asked,
    grade: async (answer: string | null, exact_match = 0) => {
      const [graded] = await grade(
        [
          {
            answer,
            score: { exact_match },
            reward: { outcome: exact_match, turns: [null] },
            termination: 'answer',
            judge: null,
          } as unknown as Trajectory,
        ],
        { question: 'Where?', answer: 'Paris', aliases: ['Lutetia'] } as never,
        AbortSignal.timeout(10_000),
      );
      return graded;
    },
  };
}

async function textOf(request: IncomingMessage): Promise<string> {
  const parts: Buffer[] = [];
  for await (const part of request) parts.push(part as Buffer);
  return Buffer.concat(parts).toString();
}

test('a verdict is the outcome, and is kept', async () => {
  const { grade, asked } = await judge([{ status: 200, content: 'correct: yes' }], 0);
  const { reward, judge: verdict } = await grade('the capital of France');
  expect(reward.outcome).toBe(1);
  expect(verdict).toEqual({ correct: true, reply: 'correct: yes' });
  expect(asked).toEqual([
    {
      authorization: 'Bearer token',
      body: {
        model: 'Qwen3-32B',
        temperature: 0.1,
        max_tokens: 64,
        messages: [{ role: 'user', content: 'Where?|Paris (or: Lutetia)|the capital of France' }],
      },
    },
  ]);
});

test('an exact match and a trajectory without an answer ask nobody', async () => {
  const { grade, asked } = await judge([{ status: 500 }], 0);
  expect((await grade('Paris', 1)).reward.outcome).toBe(1);
  expect((await grade(null)).judge).toBeNull();
  expect(asked).toHaveLength(0);
});

test('a server error and a reply that decides nothing are asked again', async () => {
  const { grade, asked } = await judge(
    [{ status: 503 }, { status: 200, content: 'hm' }, { status: 200, content: 'correct: no' }],
    2,
  );
  expect((await grade('Rome')).reward.outcome).toBe(0);
  expect(asked).toHaveLength(3);
});

test('no usable verdict is no zero: the trajectory is masked', async () => {
  const { grade } = await judge([{ status: 200, content: 'hm' }], 1);
  expect(await grade('Rome')).toMatchObject({ termination: 'failed', failure_class: 'judge' });
});

test('a judge that is down is an outage, or fails the trajectory where the spec says so', async () => {
  const later = await judge([{ status: 503 }], 0);
  await expect(later.grade('Rome')).rejects.toMatchObject({ code: 'JUDGE_UNAVAILABLE' });
  const fail = await judge([{ status: 503 }], 0, 'fail');
  expect(await fail.grade('Rome')).toMatchObject({ termination: 'failed', failure_class: 'judge' });
});

test('a judge that refuses the request is an answer for the user, and is not asked again', async () => {
  const { grade, asked } = await judge([{ status: 401 }], 3);
  await expect(grade('Rome')).rejects.toMatchObject({ code: 'JUDGE_REFUSED' });
  expect(asked).toHaveLength(1);
});
