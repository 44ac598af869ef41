/**
 * vLLM's server: `/v1/completions` with ids in and out, and its development routes (VLLM_SERVER_DEV_MODE=1).
 *
 * The boot is the served model name, new at every start, so an engine that started again refuses the request itself
 * (docs/decisions/0002). With `--logprobs-mode processed_logprobs` a logprob is that of the distribution the token was
 * drawn from: after temperature, and with top_p below 1 after truncation, renormalised (docs/decisions/0017).
 */
import type { Dialect, Sampled, Served } from './engine-client.ts';
import { BootChanged, type CallOptions, type EngineHttp, Refusal } from './engine-http.ts';

interface Part {
  choices: { token_ids: number[]; logprobs: { token_logprobs: number[] } | null; finish_reason: string | null }[];
}

export const vllm: Dialect = {
  async info(http, options) {
    const { data } = await http.json<{ data: { id: string; root: string }[] }>('GET', '/v1/models', undefined, options);
    const [model] = data;
    if (model === undefined) throw new Refusal(503, 'it serves no model');
    return { boot: model.id, root: model.root };
  },

  bootAfterLoad: (boot) => boot,

  complete: (http, { boot, ids, stopIds, request }, options) =>
    orBootChanged(async () => {
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
      const sampled: Sampled = { token_ids: [], logprobs: [] };
      let finish: string | null = null;
      for await (const { choices } of http.stream<Part>('/v1/completions', body, options)) {
        const [choice] = choices;
        if (choice === undefined) continue;
        sampled.token_ids.push(...choice.token_ids);
        sampled.logprobs.push(...(choice.logprobs?.token_logprobs ?? []));
        finish = choice.finish_reason ?? finish;
        options.onTokens?.(choice.token_ids.length);
      }
      if (finish !== 'stop' && finish !== 'length')
        throw new Refusal(503, `the completion ended with ${finish ?? 'no reason'}`);
      const { token_ids, logprobs } = sampled;
      if (logprobs.length !== token_ids.length)
        throw new Refusal(502, `${token_ids.length} ids came with ${logprobs.length} logprobs`);
      return sampled;
    }),

  probe: (http, asked, options) => promptLogprobs(http, asked, options),

  /** The whole prompt is computed anew: for its logprobs the prefix cache is not used. */
  score: async (http, { from, ...asked }, options) =>
    (await promptLogprobs(http, asked, options)).logprobs.slice(from - 1),

  async loadWeights(http, { directory }, options) {
    await http.json('POST', '/pause?mode=abort&clear_cache=true', undefined, options);
    const reload = { method: 'reload_weights', kwargs: { weights_path: directory } };
    await http.json('POST', '/collective_rpc', reload, options);
    const { success } = await http.json<{ success?: boolean }>('POST', '/reset_prefix_cache', undefined, options);
    if (success === false) throw new Refusal(503, 'the prefix cache could not be cleared');
    await http.json('POST', '/resume', undefined, options);
  },
};

const promptLogprobs = (
  http: EngineHttp,
  { boot, ids }: { boot: string; ids: readonly number[] },
  options: CallOptions,
): Promise<Served> =>
  orBootChanged(async () => {
    const answer = await http.json<{
      system_fingerprint?: string;
      choices: { prompt_logprobs: (Record<string, { logprob: number }> | null)[] }[];
    }>(
      'POST',
      '/v1/completions',
      { model: boot, prompt: ids, max_tokens: 1, temperature: 1, prompt_logprobs: 0, return_token_ids: true },
      options,
    );
    const positions = answer.choices[0]?.prompt_logprobs ?? [];
    const logprobs = positions
      .slice(1)
      .map((position, index) => position?.[String(ids[index + 1])]?.logprob ?? Number.NaN);
    return { logprobs, build: answer.system_fingerprint ?? 'vllm' };
  });

async function orBootChanged<T>(call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    if (error instanceof Refusal && error.status === 404) throw new BootChanged(error.message, { cause: error });
    throw error;
  }
}
