/** A judge behind an OpenAI-compatible server: one chat completion a question, asked again when it fails. */
import { setTimeout as sleep } from 'node:timers/promises';
import pLimit from 'p-limit';
import { ExpError } from '../../schemas/errors.ts';
import type { JudgeParameters } from '../../schemas/node-parameters.ts';

export interface JudgeServer {
  /** Base address, such as http://host:8000/v1. */
  url: string;
  apiKey?: string;
  /** Attempts after a failed one. */
  retries: number;
}

/** What is asked, and what a reply means; null when it decides nothing. */
export interface Question<T> {
  prompt: string;
  read(reply: string): T | null;
}

/** Requests in flight at a time, from one worker. */
const CONCURRENT = 32;
const TIMEOUT_MS = 300_000;
const FIRST_RETRY_MS = 500;

export class JudgeClient {
  readonly #server: JudgeServer;
  readonly #limit = pLimit(CONCURRENT);

  constructor(server: JudgeServer) {
    this.#server = server;
  }

  /**
   * Null when the judge answered every time and no reply decided anything.
   * Throws JUDGE_UNAVAILABLE when it did not answer, JUDGE_REFUSED when it will not answer such a request.
   */
  ask<T>(judge: JudgeParameters, question: Question<T>, signal: AbortSignal): Promise<T | null> {
    return this.#limit(() => this.#attempts(judge, question, signal));
  }

  async #attempts<T>(judge: JudgeParameters, { prompt, read }: Question<T>, signal: AbortSignal): Promise<T | null> {
    for (let attempt = 0; ; attempt += 1) {
      const isLast = attempt >= this.#server.retries;
      try {
        const meaning = read(await this.#complete(judge, prompt, signal));
        if (meaning !== null || isLast) return meaning;
      } catch (error) {
        signal.throwIfAborted();
        if (isLast || (error instanceof ExpError && error.code === 'JUDGE_REFUSED')) throw error;
      }
      await sleep(FIRST_RETRY_MS * 2 ** attempt * (0.5 + Math.random()), undefined, { signal });
    }
  }

  async #complete(
    { model, temperature, max_tokens }: JudgeParameters,
    content: string,
    signal: AbortSignal,
  ): Promise<string> {
    const { url, apiKey } = this.#server;
    const response = await fetch(`${url.replace(/\/+$/, '')}/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...(apiKey && { authorization: `Bearer ${apiKey}` }) },
      body: JSON.stringify({ model, temperature, max_tokens, messages: [{ role: 'user', content }] }),
      redirect: 'error',
      signal: AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT_MS)]),
    }).catch((cause: unknown) => {
      throw new ExpError('JUDGE_UNAVAILABLE', model, 'the judge does not answer', { cause });
    });
    const text = await response.text().catch((cause: unknown) => {
      throw new ExpError('JUDGE_UNAVAILABLE', model, 'the answer of the judge broke off', { cause });
    });
    if (response.ok) return contentOf(model, text);
    const mayPass = response.status >= 500 || response.status === 429 || response.status === 408;
    throw new ExpError(
      mayPass ? 'JUDGE_UNAVAILABLE' : 'JUDGE_REFUSED',
      model,
      `the judge answered ${response.status}: ${text.slice(0, 200)}`,
    );
  }
}

function contentOf(model: string, text: string): string {
  try {
    const { choices } = JSON.parse(text) as { choices: { message: { content: string | null } }[] };
    return choices[0]?.message.content ?? '';
  } catch (cause) {
    throw new ExpError('JUDGE_UNAVAILABLE', model, 'what answers there is no OpenAI-compatible server', { cause });
  }
}
