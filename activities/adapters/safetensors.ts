/** Safetensors files (https://huggingface.co/docs/safetensors): 8 bytes of length, a JSON header, then raw tensors. */
import { createReadStream, createWriteStream } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { pipeline } from 'node:stream/promises';
import { ExpError } from '../../schemas/errors.ts';

interface Tensor {
  dtype: string;
  shape: number[];
  /** Into the bytes after the header. */
  data_offsets: [number, number];
}

interface Part {
  path: string;
  tensors: [name: string, tensor: Tensor][];
  /** Where the bytes begin. */
  start: number;
  bytes: number;
}

const MAX_HEADER = 100 * 2 ** 20;

/**
 * The tensors of several files in one, in the order of the files; tensors are copied, never read into memory. The same
 * files give the same bytes. Throws CHECKPOINT when a file is no safetensors, or a name stands in two.
 */
export async function joinSafetensors(paths: readonly string[], out: string): Promise<void> {
  const parts = await Promise.all(paths.map(readPart));
  const header: Record<string, Tensor | Record<string, string>> = { __metadata__: { format: 'pt' } };
  let offset = 0;
  for (const { path, tensors, bytes } of parts) {
    for (const [name, { dtype, shape, data_offsets }] of tensors) {
      if (Object.hasOwn(header, name)) throw new ExpError('CHECKPOINT', path, `${name} stands in another file too`);
      header[name] = { dtype, shape, data_offsets: [data_offsets[0] + offset, data_offsets[1] + offset] };
    }
    offset += bytes;
  }
  const json = Buffer.from(JSON.stringify(header));
  const padded = Buffer.concat([json, Buffer.alloc(-json.length & 7, ' ')]); // the format aligns the tensors
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(padded.length));
  async function* content(): AsyncGenerator<Buffer> {
    yield length;
    yield padded;
    for (const { path, start, bytes } of parts)
      if (bytes > 0) yield* createReadStream(path, { start, end: start + bytes - 1 }) as AsyncIterable<Buffer>;
  }
  await pipeline(content, createWriteStream(out));
}

async function readPart(path: string): Promise<Part> {
  const file = await open(path, 'r');
  try {
    const { size } = await file.stat();
    const length = Number((await readExactly(file, 0, 8, path)).readBigUInt64LE());
    if (length > Math.min(MAX_HEADER, size - 8)) throw new ExpError('CHECKPOINT', path, 'it is no safetensors file');
    const header = JSON.parse((await readExactly(file, 8, length, path)).toString('utf8')) as Record<string, Tensor>;
    const tensors = Object.entries(header).filter(([name]) => name !== '__metadata__');
    const bytes = Math.max(0, ...tensors.map(([, { data_offsets }]) => data_offsets[1]));
    if (8 + length + bytes > size) throw new ExpError('CHECKPOINT', path, 'the file is cut off');
    return { path, tensors, start: 8 + length, bytes };
  } finally {
    await file.close();
  }
}

async function readExactly(file: FileHandle, position: number, bytes: number, path: string): Promise<Buffer> {
  const { bytesRead, buffer } = await file.read({ buffer: Buffer.alloc(bytes), position });
  if (bytesRead < bytes) throw new ExpError('CHECKPOINT', path, 'the file is cut off');
  return buffer;
}
