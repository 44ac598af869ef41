/**
 * SGLang's server: its native `/generate` with `input_ids`, and `/update_weights_from_disk`.
 *
 * - The boot is `weight_version`, which SGLang repeats with every answer. A server that starts says `default` (or what
 *   `--weight-version` says); the first weights we load give it a name of ours, and an answer under another name comes
 *   from a server that started again since.
 * - A logprob is log_softmax(logits / temperature): after temperature, before top_p. With SGLANG_RETURN_ORIGINAL_LOGPROB
 *   set it would be before temperature, which is wrong for training: leave that unset.
 * - Logprobs of a prompt are at temperature 1 whatever is sampled at.
 * - The seed of a request is honoured only with `--enable-deterministic-inference`; a turn that is sampled again may
 *   differ without it. What was journaled is never sampled again.
 * - An answer comes whole: streamed, every part would repeat all logprobs before it.
 */
import { randomUUID } from 'node:crypto';
import type { SampleRequest } from '../../environments/deep-research/agent-loop.ts';
import type { Dialect } from './engine-client.ts';
import { BootChanged, type CallOptions, type EngineHttp, Refusal } from './engine-http.ts';

/** [logprob, token id, text or null]; the first position of a prompt has no logprob. */
type TokenLogprob = [logprob: number | null, id: number, text: string | null];

interface Generated {
  meta_info: {
    finish_reason: { type: 'stop' | 'length' | 'abort'; message?: string } | null;
    completion_tokens: number;
    weight_version?: string;
    output_token_logprobs?: TokenLogprob[];
    input_token_logprobs?: TokenLogprob[];
  };
}

const OURS = 'boot-';
/** Longest wait for a completion, its queueing included: it comes in one piece. */
const WHOLE_MS = 1_800_000;
/** How often a wait says that it goes on. */
const WAITING_MS = 30_000;

export const sglang: Dialect = {
  async info(http, options) {
    const { model_path, weight_version } = await modelInfo(http, options);
    if (weight_version === undefined)
      throw new Refusal(400, 'it does not say the version of its weights: a newer SGLang is needed');
    return { boot: weight_version, root: model_path };
  },

  bootAfterLoad: (boot) => (boot.startsWith(OURS) ? boot : `${OURS}${randomUUID()}`),

  async complete(http, { boot, ids, stopIds, request }, options) {
    const body = { input_ids: ids, sampling_params: samplingOf(request, stopIds), ...LOGPROBS };
    const answer = await generate(http, boot, body, options);
    const { finish_reason, completion_tokens, output_token_logprobs = [] } = answer;
    if (finish_reason?.type !== 'stop' && finish_reason?.type !== 'length')
      throw new Refusal(
        503,
        `the completion ended with ${finish_reason?.message ?? finish_reason?.type ?? 'no reason'}`,
      );
    if (output_token_logprobs.length !== completion_tokens)
      throw new Refusal(502, `${completion_tokens} ids came with ${output_token_logprobs.length} logprobs`);
    options.onTokens?.(completion_tokens);
    return {
      token_ids: output_token_logprobs.map(([, id]) => id),
      logprobs: output_token_logprobs.map(([logprob]) => logprob ?? Number.NaN),
    };
  },

  async probe(http, { boot, ids }, options) {
    const sampling_params = { max_new_tokens: 1, temperature: 1 };
    const body = { input_ids: ids, sampling_params, ...LOGPROBS, logprob_start_len: 0 };
    const { input_token_logprobs = [] } = await generate(http, boot, body, options);
    const logprobs = input_token_logprobs
      .slice(1)
      .map(([logprob, id], index) => (id === ids[index + 1] && logprob !== null ? logprob : Number.NaN));
    return { logprobs, build: await buildOf(http, options) };
  },

  /**
   * Answered are the ids from `logprob_start_len` on, the first of them without a logprob; what comes before that is taken
   * from the prefix cache, so that a belief costs a forward of the pseudo-answer.
   */
  async score(http, { boot, ids, from }, options) {
    const sampling_params = { max_new_tokens: 1, temperature: 1 };
    const body = { input_ids: ids, sampling_params, ...LOGPROBS, logprob_start_len: from - 1 };
    const { input_token_logprobs = [] } = await generate(http, boot, body, options);
    const scored = input_token_logprobs.slice(1);
    const isWhole =
      scored.length === ids.length - from &&
      scored.every(([logprob, id], at) => id === ids[from + at] && logprob !== null);
    if (!isWhole) throw new Refusal(502, `it gave no logprobs of the ids from ${from} to ${ids.length}`);
    return scored.map(([logprob]) => logprob as number);
  },

  async loadWeights(http, { boot, directory }, options) {
    const body = { model_path: directory, abort_all_requests: true, weight_version: boot };
    const { success, message } = await http.json<{ success: boolean; message?: string }>(
      'POST',
      '/update_weights_from_disk',
      body,
      options,
    );
    if (!success) throw new Refusal(503, `the weights could not be loaded: ${message ?? 'no reason'}`);
    // Loading clears the cache as well; this fails where something still runs on it.
    await http.send('POST', '/flush_cache', options);
  },
};

const LOGPROBS = { return_logprob: true, logprob_start_len: -1, stream: false } as const;

/** All of it, because a server fills in what is missing from the model's generation_config.json. */
function samplingOf({ maxTokens, temperature, topP, seed }: SampleRequest, stopIds: readonly number[]): object {
  return {
    max_new_tokens: maxTokens,
    temperature,
    top_p: topP,
    top_k: -1,
    min_p: 0,
    frequency_penalty: 0,
    presence_penalty: 0,
    repetition_penalty: 1,
    stop_token_ids: stopIds,
    ignore_eos: false, // true would ignore stop_token_ids too
    skip_special_tokens: false,
    no_stop_trim: true,
    sampling_seed: seed,
  };
}

async function generate(
  http: EngineHttp,
  boot: string,
  body: object,
  options: CallOptions,
): Promise<Generated['meta_info']> {
  const waiting = setInterval(() => options.onTokens?.(0), WAITING_MS);
  try {
    const { meta_info } = await http.json<Generated>('POST', '/generate', body, { ...options, idleMs: WHOLE_MS });
    if (meta_info.weight_version !== boot)
      throw new BootChanged(`it answers with weights ${meta_info.weight_version}, not ${boot}`);
    return meta_info;
  } finally {
    clearInterval(waiting);
  }
}

/** The route was renamed; the old name is what older servers know. */
async function modelInfo(
  http: EngineHttp,
  options: CallOptions,
): Promise<{ model_path: string; weight_version?: string }> {
  return renamed(http, ['/model_info', '/get_model_info'], options);
}

async function buildOf(http: EngineHttp, options: CallOptions): Promise<string> {
  const info = await renamed<{ version?: string; dtype?: string; tp_size?: number }>(
    http,
    ['/server_info', '/get_server_info'],
    options,
  );
  return `sglang ${info.version ?? 'unknown'} ${info.dtype ?? ''} tp${info.tp_size ?? 1}`;
}

async function renamed<T>(http: EngineHttp, [now, before]: [string, string], options: CallOptions): Promise<T> {
  try {
    return await http.json<T>('GET', now, undefined, options);
  } catch (error) {
    if (error instanceof Refusal && error.status === 404) return http.json<T>('GET', before, undefined, options);
    throw error;
  }
}
