import { createReadStream } from 'node:fs';
import { pipeline, Transform } from 'node:stream';
import { createGunzip } from 'node:zlib';
import { Decompress } from 'fzstd';
import { ExpError } from '../../../schemas/errors.ts';

const MAX_LINE_BYTES = 32 * 2 ** 20;
// Text compresses 3 to 10 times; a gzip bomb a thousand times.
const MAX_RATIO = 100;
const RATIO_FREE_BYTES = 64 * 2 ** 20;

export type Line = { number: number; text: string } | { number: number; error: string };

/** Lines of a UTF-8 file (plain, `.gz` or `.zst`), one at a time. A line too long or not UTF-8 is an error in its place. */
export async function* readLines(path: string): AsyncGenerator<Line> {
  const decoder = new TextDecoder('utf-8', { fatal: true });
  let number = 0;
  let pending: Buffer[] = [];
  let pendingBytes = 0;
  let overlong = false;

  const finish = (): Line => {
    number += 1;
    const bytes = Buffer.concat(pending);
    const tooLong = overlong;
    pending = [];
    pendingBytes = 0;
    overlong = false;
    if (tooLong) return { number, error: `line is longer than ${MAX_LINE_BYTES} bytes` };
    try {
      return { number, text: decoder.decode(bytes) };
    } catch {
      return { number, error: 'line is not UTF-8' };
    }
  };
  const keep = (bytes: Buffer): void => {
    pendingBytes += bytes.length;
    if (pendingBytes > MAX_LINE_BYTES) {
      overlong = true;
      pending = [];
    } else if (bytes.length > 0) pending.push(bytes);
  };

  for await (const chunk of openBytes(path)) {
    let from = 0;
    for (let to = chunk.indexOf(10, from); to !== -1; to = chunk.indexOf(10, from)) {
      keep(chunk.subarray(from, to));
      yield finish();
      from = to + 1;
    }
    keep(chunk.subarray(from));
  }
  if (pendingBytes > 0) yield finish();
}

function openBytes(path: string): AsyncIterable<Buffer> {
  const file = createReadStream(path);
  const unpacker = path.endsWith('.gz') ? createGunzip() : path.endsWith('.zst') ? createZstdDecoder() : null;
  if (unpacker === null) return file;
  // An error anywhere destroys the last stream with it, which is how the reader learns of it.
  return pipeline(
    file,
    unpacker,
    refuseBombs(path, () => file.bytesRead),
    () => undefined,
  );
}

function createZstdDecoder(): Transform {
  const stream = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      attempt(() => decoder.push(chunk), done);
    },
    flush(done) {
      attempt(() => decoder.push(new Uint8Array(0), true), done);
    },
  });
  const decoder = new Decompress((chunk) => stream.push(chunk));
  return stream;
}

function attempt(work: () => void, done: (error?: Error) => void): void {
  try {
    work();
    done();
  } catch (error) {
    done(error as Error);
  }
}

function refuseBombs(path: string, compressedBytes: () => number): Transform {
  let unpacked = 0;
  return new Transform({
    transform(chunk: Buffer, _encoding, done) {
      unpacked += chunk.length;
      const isBomb = unpacked > RATIO_FREE_BYTES && unpacked > compressedBytes() * MAX_RATIO;
      if (isBomb) done(new ExpError('ARCHIVE', path, `unpacks to more than ${MAX_RATIO} times its size`));
      else done(null, chunk);
    },
  });
}
