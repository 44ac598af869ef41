/**
 * One engine: completions token in and token out, and the routes that load weights. Retries what a retry can cure and
 * says what it cannot; how each kind of server is spoken to is its dialect, and who may use the engine is engine.ts's
 * business.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Completion, SampleRequest } from '../../environments/deep-research/agent-loop.ts';
import { ExpError } from '../../schemas/errors.ts';
import { type CallOptions, EngineHttp, Refusal } from './engine-http.ts';
import { sglang } from './sglang-dialect.ts';
import { vllm } from './vllm-dialect.ts';

export { BootChanged, type CallOptions } from './engine-http.ts';

export interface EngineAddress {
  name: string;
  kind: 'vllm' | 'sglang';
  url: string;
  /** Whether its development routes may be called. */
  admin: boolean;
}

/** What an engine says of itself. */
export interface EngineInfo {
  /** A name that a restart changes, and that the engine checks or repeats with every answer. */
  boot: string;
  /** Model directory or name it was started with, or was given last. */
  root: string;
}

export interface Served {
  /** Position i is log p(token i | tokens before it), without the first; at temperature 1. */
  logprobs: number[];
  /** Engine version and a hash of its configuration. */
  build: string;
}

/** Ids and their logprobs. */
export type Sampled = Omit<Completion, 'weight_version'>;

/** How one kind of server is spoken to. What fails throws Refusal, a restart BootChanged. */
export interface Dialect {
  info(http: EngineHttp, options: CallOptions): Promise<EngineInfo>;
  /** The boot after weights are loaded into an engine of this boot. */
  bootAfterLoad(boot: string): string;
  complete(
    http: EngineHttp,
    asked: { boot: string; ids: readonly number[]; stopIds: readonly number[]; request: SampleRequest },
    options: CallOptions,
  ): Promise<Sampled>;
  probe(http: EngineHttp, asked: { boot: string; ids: readonly number[] }, options: CallOptions): Promise<Served>;
  score(
    http: EngineHttp,
    asked: { boot: string; ids: readonly number[]; from: number },
    options: CallOptions,
  ): Promise<number[]>;
  loadWeights(http: EngineHttp, asked: { boot: string; directory: string }, options: CallOptions): Promise<void>;
}

const DIALECTS: Record<EngineAddress['kind'], Dialect> = { vllm, sglang };

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

export class EngineClient {
  readonly address: EngineAddress;
  readonly #http: EngineHttp;
  readonly #dialect: Dialect;
  readonly #times: EngineTimes;

  constructor(address: EngineAddress, times: Partial<EngineTimes> = {}) {
    this.address = address;
    this.#times = { ...TIMES, ...times };
    this.#http = new EngineHttp(address.url, this.#times.idleMs);
    this.#dialect = DIALECTS[address.kind];
  }

  async close(): Promise<void> {
    await this.#http.close();
  }

  /** Waits for an engine that is starting. */
  async info(options: CallOptions = {}): Promise<EngineInfo> {
    return this.#retrying(options, () => this.#dialect.info(this.#http, options));
  }

  bootAfterLoad(boot: string): string {
    return this.#dialect.bootAfterLoad(boot);
  }

  /** Continue `ids` until a stop token or the limit. Throws BootChanged when the engine is no longer `boot`. */
  async complete(
    boot: string,
    ids: readonly number[],
    stopIds: readonly number[],
    request: SampleRequest,
    options: CallOptions = {},
  ): Promise<Sampled> {
    return this.#retrying(options, () => this.#dialect.complete(this.#http, { boot, ids, stopIds, request }, options));
  }

  /** Logprobs of a prompt under the weights served now. Throws BootChanged when the engine is no longer `boot`. */
  async probe(boot: string, ids: readonly number[], options: CallOptions = {}): Promise<Served> {
    return this.#retrying(options, () => this.#dialect.probe(this.#http, { boot, ids }, options));
  }

  /**
   * Logprobs of `ids[from]` and all after it, each given the ids before it, at temperature 1; `from` is at least 1.
   * Throws BootChanged when the engine is no longer `boot`.
   */
  async score(boot: string, ids: readonly number[], from: number, options: CallOptions = {}): Promise<number[]> {
    return this.#retrying(options, () => this.#dialect.score(this.#http, { boot, ids, from }, options));
  }

  /**
   * Replace the weights by those of a directory: what is in flight is aborted, and no cached prefix survives. The
   * engine is `boot` afterwards. One attempt: after a failure in between, only the whole sequence leaves a known state.
   */
  async loadWeights(boot: string, directory: string, options: CallOptions = {}): Promise<void> {
    await this.#dialect.loadWeights(this.#http, { boot, directory }, options);
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

  #failed(code: string, message: string, cause: Error): ExpError {
    return new ExpError(code, `engine ${this.address.name} at ${this.address.url}`, message, { cause });
  }
}
