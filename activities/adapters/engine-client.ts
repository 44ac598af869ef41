/**
 * One vLLM server over HTTP: completions token in and token out, and the development routes that load weights.
 * Retries what a retry can cure and says what it cannot; who may use the engine is engine.ts's business.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { Agent, type Dispatcher } from 'undici';
import type { Completion, SampleRequest } from '../../environments/deep-research/agent-loop.ts';
import { ExpError } from '../../schemas/errors.ts';

export interface EngineAddress {
  name: string;
  kind: 'vllm' | 'sglang';
  url: string;
  /** Whether its development routes may be called. */
  admin: boolean;
}

/** What an engine says of itself. */
export interface EngineInfo {
  /** Served model name; the embedded stack makes a new one at every start. */
  boot: string;
  /** Model directory or name it was started with. */
  root: string;
  maxModelLen: number;
}

export interface Served {
  /** Position i is log p(token i | tokens before it), without the first. */
  logprobs: number[];
  /** Engine version and a hash of its configuration. */
  build: string;
}

export interface CallOptions {
  signal?: AbortSignal | undefined;
  /** Called when tokens arrive (their number), and with 0 while a wait for the engine goes on. */
  onTokens?: ((count: number) => void) | undefined;
}

export interface EngineTimes {
  /** How long an engine that does not answer is waited for. */
  downMs: number;
  /** Longest pause between two parts of an answer, its queueing included. */
  idleMs: number;
  /** Attempts at a request that an engine which is up answers with a server error. */
  attempts: number;
  firstRetryMs: number;
  lastRetryMs: number;
}

const TIMES: EngineTimes = { downMs: 600_000, idleMs: 300_000, attempts: 6, firstRetryMs: 250, lastRetryMs: 8_000 };

/** The engine does not serve the name we asked for: it started again since. */
export class BootChanged extends Error {
  override readonly name = 'BootChanged';
}

/** An answer that is no success; `status` 0 means that there was none. */
class Refusal extends Error {
  readonly status: number;
  readonly retryAfterMs: number | null;

  constructor(status: number, message: string, retryAfterMs: number | null, options?: ErrorOptions) {
    super(message, options);
    this.status = status;
    this.retryAfterMs = retryAfterMs;
  }
}

export class EngineClient {
  readonly address: EngineAddress;
  readonly #agent: Agent;
  readonly #times: EngineTimes;

  constructor(address: EngineAddress, times: Partial<EngineTimes> = {}) {
    this.address = address;
    this.#times = { ...TIMES, ...times };
    // The server closes idle connections after five seconds; ours end first, so no request meets a closing one.
    this.#agent = new Agent({
      connections: 256,
      keepAliveTimeout: 4_000,
      keepAliveMaxTimeout: 4_000,
      connect: { timeout: 10_000 },
    });
  }

  async close(): Promise<void> {
    await this.#agent.close();
  }

  /** Waits for an engine that is starting. */
  async info(options: CallOptions = {}): Promise<EngineInfo> {
    return this.#retrying(options, async () => {
      const body = await this.#json('GET', '/v1/models', undefined, options);
      const [model] = (body as { data: { id: string; root: string; max_model_len: number }[] }).data;
      if (model === undefined) throw new Refusal(503, 'it serves no model', null);
      return { boot: model.id, root: model.root, maxModelLen: model.max_model_len };
    });
  }

  /** Continue `ids` until a stop token or the limit. Throws BootChanged when the engine is no longer `boot`. */
  async complete(
    boot: string,
    ids: readonly number[],
    stopIds: readonly number[],
    request: SampleRequest,
    options: CallOptions = {},
  ): Promise<Omit<Completion, 'weight_version'>> {
    const body = {
      model: boot,
      prompt: ids,
      max_tokens: request.maxTokens,
      temperature: request.temperature,
      top_p: request.topP,
      seed: request.seed,
      stop_token_ids: stopIds,
      logprobs: 0,
      return_token_ids: true,
      skip_special_tokens: false,
      stream: true,
      // Fewer, larger parts: the server is Python and shares our cores.
      stream_interval: 16,
    };
    return this.#retrying(options, async () => {
      const token_ids: number[] = [];
      const logprobs: number[] = [];
      let finish: string | null = null;
      for await (const { choices } of this.#stream(body, options)) {
        const [choice] = choices;
        if (choice === undefined) continue;
        token_ids.push(...choice.token_ids);
        logprobs.push(...(choice.logprobs?.token_logprobs ?? []));
        finish = choice.finish_reason ?? finish;
        options.onTokens?.(choice.token_ids.length);
      }
      if (finish !== 'stop' && finish !== 'length')
        throw new Refusal(503, `the completion ended with ${finish ?? 'no reason'}`, null);
      if (logprobs.length !== token_ids.length)
        throw new Refusal(502, `${token_ids.length} ids came with ${logprobs.length} logprobs`, null);
      return { token_ids, logprobs };
    });
  }

  /** Logprobs of a prompt under the weights served now. */
  async probe(boot: string, ids: readonly number[], options: CallOptions = {}): Promise<Served> {
    const body = {
      model: boot,
      prompt: ids,
      max_tokens: 1,
      temperature: 1,
      prompt_logprobs: 0,
      return_token_ids: true,
    };
    return this.#retrying(options, async () => {
      const answer = (await this.#json('POST', '/v1/completions', body, options)) as {
        system_fingerprint?: string;
        choices: { prompt_logprobs: (Record<string, { logprob: number }> | null)[] }[];
      };
      const positions = answer.choices[0]?.prompt_logprobs ?? [];
      const logprobs = positions
        .slice(1)
        .map((position, index) => position?.[String(ids[index + 1])]?.logprob ?? Number.NaN);
      return { logprobs, build: answer.system_fingerprint ?? this.address.kind };
    });
  }

  /** Replace the weights by those of a directory: what is in flight is aborted, and no cached prefix survives. */
  async loadWeights(directory: string, options: CallOptions = {}): Promise<void> {
    // One attempt each: after a failure in between, only the whole sequence leaves a known state.
    await this.#json('POST', '/pause?mode=abort&clear_cache=true', undefined, options);
    await this.#json(
      'POST',
      '/collective_rpc',
      { method: 'reload_weights', kwargs: { weights_path: directory } },
      options,
    );
    const { success } = (await this.#json('POST', '/reset_prefix_cache', undefined, options)) as { success?: boolean };
    if (success === false) throw new Refusal(503, 'the prefix cache could not be cleared', null);
    await this.#json('POST', '/resume', undefined, options);
  }

  /** Repeat what an engine that is down, busy or stumbling refuses; the waits grow and are jittered. */
  async #retrying<T>(options: CallOptions, call: () => Promise<T>): Promise<T> {
    const { downMs, attempts, firstRetryMs, lastRetryMs } = this.#times;
    let wait = firstRetryMs;
    let stumbles = 0;
    /** Since when it has been down, or turning requests away. */
    let awaySince: number | null = null;
    for (;;) {
      options.signal?.throwIfAborted();
      try {
        return await call();
      } catch (error) {
        options.signal?.throwIfAborted();
        if (!(error instanceof Refusal)) throw error;
        const { status, message } = error;
        if (status === 404) throw new BootChanged(message, { cause: error });
        const isAway = status === 0 || status === 429 || status === 408;
        if (!isAway && status < 500) throw this.#failed('ENGINE_REQUEST', `refused the request: ${message}`, error);
        awaySince = isAway ? (awaySince ?? Date.now()) : null;
        if (!isAway) stumbles += 1;
        if (stumbles >= attempts)
          throw this.#failed('ENGINE_UNAVAILABLE', `failed ${stumbles} times: ${message}`, error);
        if (awaySince !== null && Date.now() - awaySince > downMs) {
          throw this.#failed(
            'ENGINE_UNAVAILABLE',
            `has been away for ${Math.round((Date.now() - awaySince) / 1000)} s: ${message}`,
            error,
          );
        }
        await sleep(
          error.retryAfterMs ?? wait * (0.5 + Math.random()),
          undefined,
          options.signal ? { signal: options.signal } : {},
        );
        options.onTokens?.(0);
        wait = Math.min(wait * 2, lastRetryMs);
      }
    }
  }

  async *#stream(body: object, options: CallOptions): AsyncGenerator<StreamPart> {
    const response = await this.#request('POST', '/v1/completions', body, options);
    const decoder = new TextDecoder();
    let rest = '';
    try {
      for await (const bytes of response.body) {
        rest += decoder.decode(bytes as Buffer, { stream: true });
        const lines = rest.split('\n');
        rest = lines.pop() ?? '';
        for (const line of lines) {
          if (!line.startsWith('data: ') || line === 'data: [DONE]') continue;
          const part = JSON.parse(line.slice('data: '.length)) as
            | StreamPart
            | { error: { message: string; code?: number } };
          if ('error' in part) throw new Refusal(part.error.code ?? 500, part.error.message, null);
          yield part;
        }
      }
    } catch (cause) {
      throw asRefusal(cause);
    }
  }

  async #json(method: 'GET' | 'POST', path: string, body: object | undefined, options: CallOptions): Promise<unknown> {
    const response = await this.#request(method, path, body, options);
    const text = await response.body.text().catch((cause: unknown) => {
      throw asRefusal(cause);
    });
    return text === '' ? {} : JSON.parse(text);
  }

  async #request(
    method: 'GET' | 'POST',
    path: string,
    body: object | undefined,
    { signal }: CallOptions,
  ): Promise<Dispatcher.ResponseData> {
    const { idleMs } = this.#times;
    const response = await this.#agent
      .request({
        origin: new URL(this.address.url).origin,
        path: new URL(this.address.url).pathname.replace(/\/$/, '') + path,
        method,
        headersTimeout: idleMs,
        bodyTimeout: idleMs,
        ...(body && { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }),
        ...(signal && { signal }),
      })
      .catch((cause: unknown) => {
        throw asRefusal(cause);
      });
    if (response.statusCode < 300) return response;
    const text = await response.body.text().catch(() => '');
    const after = Number(response.headers['retry-after']);
    throw new Refusal(
      response.statusCode,
      `HTTP ${response.statusCode} ${messageOf(text)}`,
      Number.isFinite(after) && after >= 0 ? Math.min(after, 60) * 1000 : null,
    );
  }

  #failed(code: string, message: string, cause: Error): ExpError {
    return new ExpError(code, `engine ${this.address.name} at ${this.address.url}`, message, { cause });
  }
}

interface StreamPart {
  choices: { token_ids: number[]; logprobs: { token_logprobs: number[] } | null; finish_reason: string | null }[];
}

/** A broken or refused connection, or an answer that stopped coming, as one kind of error. */
function asRefusal(cause: unknown): unknown {
  if (cause instanceof Refusal || (cause as Error).name === 'AbortError') return cause;
  const { code, message } = cause as NodeJS.ErrnoException;
  const stalled = code === 'UND_ERR_HEADERS_TIMEOUT' || code === 'UND_ERR_BODY_TIMEOUT';
  // Without a code it is no connection that broke but an answer we cannot read.
  return new Refusal(stalled ? 504 : code === undefined ? 502 : 0, message || code || 'the connection broke', null, {
    cause,
  });
}

function messageOf(body: string): string {
  try {
    const { error } = JSON.parse(body) as { error?: { message?: string } };
    return error?.message ?? body.slice(0, 300);
  } catch {
    return body.slice(0, 300);
  }
}
