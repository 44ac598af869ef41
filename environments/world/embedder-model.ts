import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Tokenizer } from '@huggingface/tokenizers';
import { ExpError } from '../../schemas/errors.ts';

export type Precision = 'fp32' | 'fp16' | 'int8';

/** What an embedder's folder says of itself; `pooling` matters only when the graph yields one vector per token. */
export interface EmbedderModel {
  name: string;
  precision: Precision;
  onnxPath: string;
  tokenizerPath: string;
  tokenizerConfigPath: string;
  dimension: number;
  maxTokens: number;
  pooling: 'mean' | 'cls';
  /** SHA-256 over the graph and the tokenizer: what decides the vectors. */
  sha256: string;
  /** What set-up stamped the folder with (`digest.json`), as registries and plans name it. */
  folderDigest: string | null;
}

interface SourceFile {
  dimension?: number;
  max_tokens?: number;
  pooling?: 'mean' | 'cls';
}

/** Dimension, length and pooling of models whose folder does not say. */
const KNOWN: Record<string, Required<SourceFile>> = {
  'all-minilm-l6-v2': { dimension: 384, max_tokens: 512, pooling: 'mean' },
  'bge-m3': { dimension: 1024, max_tokens: 8192, pooling: 'cls' },
};

/** Read an embedder's folder (`model.<precision>.onnx`, `tokenizer.json`, `source.json`). Throws MODEL_MISSING. */
export async function readEmbedderModel(folder: string, name: string, precision: Precision): Promise<EmbedderModel> {
  const onnxPath = join(folder, `model.${precision}.onnx`);
  const tokenizerPath = join(folder, 'tokenizer.json');
  const missing = (path: string, cause: unknown): ExpError =>
    new ExpError('MODEL_MISSING', path, `the embedder ${name} (${precision}) is not here; run \`exp setup\``, {
      cause,
    });
  const [graph, tokenizer] = await Promise.all(
    [onnxPath, tokenizerPath].map((path) =>
      sha256OfFile(path).catch((cause) => {
        throw missing(path, cause);
      }),
    ),
  );
  const about = await readJson<SourceFile>(join(folder, 'source.json'), {});
  const { dimension, max_tokens, pooling } = { pooling: 'mean' as const, max_tokens: 512, ...KNOWN[name], ...about };
  if (dimension === undefined)
    throw new ExpError('MODEL_MISSING', folder, `source.json does not give the dimension of ${name}`);
  const stamp = await readJson<{ sha256?: string }>(join(folder, 'digest.json'), {});
  return {
    name,
    precision,
    onnxPath,
    tokenizerPath,
    tokenizerConfigPath: join(folder, 'tokenizer_config.json'),
    dimension,
    maxTokens: max_tokens,
    pooling,
    sha256: createHash('sha256').update(`${graph}\n${tokenizer}`).digest('hex'),
    folderDigest: stamp.sha256 ?? null,
  };
}

/** Counts tokens of a text as the embedder in a folder sees them, without special tokens. Throws MODEL_MISSING. */
export async function tokenCounter(folder: string): Promise<(text: string) => number> {
  const tokenizerJson = await readFile(join(folder, 'tokenizer.json'), 'utf8').catch((cause) => {
    throw new ExpError('MODEL_MISSING', folder, 'there is no tokenizer.json; run `exp setup`', { cause });
  });
  const config = await readJson<object>(join(folder, 'tokenizer_config.json'), {});
  const tokenizer = new Tokenizer(JSON.parse(tokenizerJson) as object, config);
  return (text) => tokenizer.tokenize(text, { add_special_tokens: false }).length;
}

async function readJson<T>(path: string, absent: T): Promise<T> {
  try {
    return JSON.parse(await readFile(path, 'utf8')) as T;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return absent;
    throw error;
  }
}

async function sha256OfFile(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const bytes of createReadStream(path)) hash.update(bytes as Buffer);
  return hash.digest('hex');
}
