/** Talking to an engine over HTTP: one agent, one kind of error for every answer that is no success. */
import { Agent, type Dispatcher } from 'undici';

export interface CallOptions {
  signal?: AbortSignal | undefined;
  /** Called when tokens arrive (their number), and with 0 while a wait for the engine goes on. */
  onTokens?: ((count: number) => void) | undefined;
}

/** The engine is no longer the one we gave the weights: it started again since. */
export class BootChanged extends Error {
  override readonly name = 'BootChanged';
}

/** An answer that is no success; `status` 0 means that there was none. */
export class Refusal extends Error {
  readonly status: number;
  readonly retryAfterMs: number | null;

  constructor(status: number, message: string, retryAfterMs: number | null = null, options?: ErrorOptions) {
    super(message, options);
    this.status = status;
    this.retryAfterMs = retryAfterMs;
  }
}

export class EngineHttp {
  readonly #url: URL;
  readonly #agent: Agent;
  readonly #idleMs: number;

  /** `idleMs`: longest pause before an answer, or between two parts of one. */
  constructor(url: string, idleMs: number) {
    this.#url = new URL(url);
    this.#idleMs = idleMs;
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

  async json<T>(
    method: 'GET' | 'POST',
    path: string,
    body: object | undefined,
    options: CallOptions & { idleMs?: number },
  ): Promise<T> {
    const response = await this.#request(method, path, body, options);
    const text = await response.body.text().catch((cause: unknown) => {
      throw asRefusal(cause);
    });
    return (text === '' ? {} : parsed(text)) as T;
  }

  /** What a route answers that speaks no JSON. */
  async send(method: 'POST', path: string, options: CallOptions): Promise<void> {
    const response = await this.#request(method, path, undefined, options);
    await response.body.dump();
  }

  /** The events of a server-sent stream. */
  async *stream<T>(path: string, body: object, options: CallOptions): AsyncGenerator<T> {
    const response = await this.#request('POST', path, body, options);
    const decoder = new TextDecoder();
    let rest = '';
    try {
      for await (const bytes of response.body) {
        rest += decoder.decode(bytes as Buffer, { stream: true });
        const lines = rest.split('\n');
        rest = lines.pop() ?? '';
        for (const line of lines) {
          if (!line.startsWith('data: ') || line === 'data: [DONE]') continue;
          const part = JSON.parse(line.slice('data: '.length)) as T | { error: { message: string; code?: number } };
          if (typeof part === 'object' && part !== null && 'error' in part)
            throw new Refusal(part.error.code ?? 500, part.error.message);
          yield part as T;
        }
      }
    } catch (cause) {
      throw asRefusal(cause);
    }
  }

  async #request(
    method: 'GET' | 'POST',
    path: string,
    body: object | undefined,
    { signal, idleMs = this.#idleMs }: CallOptions & { idleMs?: number },
  ): Promise<Dispatcher.ResponseData> {
    const response = await this.#agent
      .request({
        origin: this.#url.origin,
        path: this.#url.pathname.replace(/\/$/, '') + path,
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
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new Refusal(502, `it answered no JSON: ${text.slice(0, 100)}`, null, { cause });
  }
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
    const { error, message } = JSON.parse(body) as { error?: { message?: string }; message?: string };
    return error?.message ?? message ?? body.slice(0, 300);
  } catch {
    return body.slice(0, 300);
  }
}
