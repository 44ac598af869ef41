// One process of the embedder pool. onnxruntime computes on the event loop that calls it, so it gets a process of its
// own, with one thread: N processes of one thread are faster than one of N, and a crash takes one batch with it.
import { readFileSync } from 'node:fs';
import { Tokenizer } from '@huggingface/tokenizers';
import { InferenceSession, Tensor } from 'onnxruntime-node';

export interface ChildConfig {
  onnxPath: string;
  tokenizerPath: string;
  tokenizerConfigPath: string;
  maxTokens: number;
  pooling: 'mean' | 'cls';
}

export interface EmbedRequest {
  id: number;
  texts: string[];
}

export type ChildMessage =
  | { kind: 'ready' }
  | { kind: 'vectors'; id: number; vectors: Float32Array; tokens: number }
  | { kind: 'failed'; id: number; message: string };

// Longer texts are truncated anyway: tokenising them whole would only cost time.
const MAX_CHARACTERS_PER_TOKEN = 16;

const send = (message: ChildMessage): void => {
  process.send?.(message);
};

const config = JSON.parse(process.argv[2] as string) as ChildConfig;
const tokenizer = new Tokenizer(readJson(config.tokenizerPath, true), readJson(config.tokenizerConfigPath, false));
const session = await InferenceSession.create(config.onnxPath, {
  intraOpNumThreads: 1,
  interOpNumThreads: 1,
  executionMode: 'sequential',
  graphOptimizationLevel: 'all',
});

process.on('message', (request: EmbedRequest) => {
  embed(request.texts).then(
    ({ vectors, tokens }) => send({ kind: 'vectors', id: request.id, vectors, tokens }),
    (error: unknown) => send({ kind: 'failed', id: request.id, message: String(error) }),
  );
});
// The parent is gone: so is the reason to be here.
process.on('disconnect', () => process.exit(0));
send({ kind: 'ready' });

async function embed(texts: readonly string[]): Promise<{ vectors: Float32Array; tokens: number }> {
  const rows = texts.map(encode);
  const width = Math.max(...rows.map((row) => row.length));
  const ids = new BigInt64Array(rows.length * width);
  const mask = new BigInt64Array(rows.length * width);
  rows.forEach((row, b) => {
    row.forEach((id, t) => {
      ids[b * width + t] = BigInt(id);
      mask[b * width + t] = 1n;
    });
  });
  const shape = [rows.length, width];
  const inputs: Record<string, Tensor> = {
    input_ids: new Tensor('int64', ids, shape),
    attention_mask: new Tensor('int64', mask, shape),
    token_type_ids: new Tensor('int64', new BigInt64Array(ids.length), shape),
  };
  const output = await session.run(
    Object.fromEntries(session.inputNames.map((name) => [name, inputs[name] as Tensor])),
  );
  const first = output[session.outputNames[0] as string] as Tensor;
  return {
    vectors: normalise(pool(first, rows, width), rows.length),
    tokens: rows.reduce((sum, row) => sum + row.length, 0),
  };
}

/** Ids of a text, cut to the model's length with its closing special token kept. */
function encode(text: string): number[] {
  const { ids } = tokenizer.encode(text.slice(0, config.maxTokens * MAX_CHARACTERS_PER_TOKEN));
  if (ids.length <= config.maxTokens) return ids;
  return [...ids.slice(0, config.maxTokens - 1), ids.at(-1) as number];
}

/** [B, D] as it is; [B, T, D] by the first token or the mean over unpadded tokens. */
function pool(output: Tensor, rows: readonly number[][], width: number): Float32Array {
  const data = output.data as Float32Array;
  const dimension = output.dims.at(-1) as number;
  if (output.dims.length === 2) return Float32Array.from(data);
  const pooled = new Float32Array(rows.length * dimension);
  rows.forEach((row, b) => {
    const tokens = config.pooling === 'cls' ? 1 : row.length;
    for (let t = 0; t < tokens; t += 1) {
      const from = (b * width + t) * dimension;
      for (let d = 0; d < dimension; d += 1) pooled[b * dimension + d]! += (data[from + d] as number) / tokens;
    }
  });
  return pooled;
}

function normalise(vectors: Float32Array, rows: number): Float32Array {
  const dimension = vectors.length / rows;
  for (let b = 0; b < rows; b += 1) {
    const row = vectors.subarray(b * dimension, (b + 1) * dimension);
    const length = Math.hypot(...row) || 1;
    for (let d = 0; d < dimension; d += 1) row[d] = (row[d] as number) / length;
  }
  return vectors;
}

function readJson(path: string, required: boolean): object {
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as object;
  } catch (error) {
    if (required) throw error;
    return {};
  }
}
