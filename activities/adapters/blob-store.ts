import { createHash, randomUUID } from 'node:crypto';
import { createReadStream, createWriteStream } from 'node:fs';
import { copyFile, link, mkdir, open, rename, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import type { S3Client } from '@aws-sdk/client-s3';
import { ExpError } from '../../schemas/errors.ts';

/** Bytes named by their SHA-256: whole or not there at all. */
export interface BlobStore {
  /** Store a file (copied) or bytes; returns the SHA-256. Storing the same bytes again is a no-op. */
  put(source: string | Uint8Array): Promise<string>;
  /** A local path holding the blob, read-only. Throws ARTIFACT_MISSING. */
  open(sha256: string): Promise<string>;
  has(sha256: string): Promise<boolean>;
}

/** Where a profile keeps its blobs. `cacheRoot` holds what was read from a remote store. */
export async function openBlobStore(
  where:
    | { kind: 'dir'; path: string }
    | { kind: 's3'; bucket: string; prefix: string; region: string; endpoint?: string },
  cacheRoot: string,
): Promise<BlobStore> {
  if (where.kind === 'dir') return new DirectoryBlobStore(where.path);
  const { S3Client } = await import('@aws-sdk/client-s3');
  const { bucket, prefix, region, endpoint } = where;
  const client = new S3Client({ region, ...(endpoint !== undefined && { endpoint, forcePathStyle: true }) });
  return new S3BlobStore({ client, bucket, prefix, cacheRoot });
}

export async function sha256File(path: string): Promise<string> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(path), hash);
  return hash.digest('hex');
}

const exists = async (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  );

async function syncPath(path: string): Promise<void> {
  const handle = await open(path, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** Blobs as files `<root>/ab/abcdef…`: temporary file, fsync, rename. */
export class DirectoryBlobStore implements BlobStore {
  readonly #root: string;

  constructor(root: string) {
    this.#root = root;
  }

  #path(sha256: string): string {
    return join(this.#root, sha256.slice(0, 2), sha256);
  }

  async put(source: string | Uint8Array): Promise<string> {
    const sha256 =
      typeof source === 'string' ? await sha256File(source) : createHash('sha256').update(source).digest('hex');
    const target = this.#path(sha256);
    if (await exists(target)) return sha256;
    await mkdir(dirname(target), { recursive: true });
    const temporary = `${target}.${randomUUID()}.tmp`;
    try {
      if (typeof source === 'string') await copyFile(source, temporary);
      else await pipeline([source], createWriteStream(temporary));
      await syncPath(temporary);
      await rename(temporary, target);
      await syncPath(dirname(target));
    } catch (error) {
      await rm(temporary, { force: true });
      throw storageError(error, target);
    }
    return sha256;
  }

  async open(sha256: string): Promise<string> {
    const path = this.#path(sha256);
    if (await exists(path)) return path;
    throw new ExpError('ARTIFACT_MISSING', sha256, `no such blob under ${this.#root}`);
  }

  has(sha256: string): Promise<boolean> {
    return exists(this.#path(sha256));
  }
}

/** Blobs as objects `<prefix>/ab/abcdef…` of any S3-compatible store, read through a local directory cache. */
export class S3BlobStore implements BlobStore {
  readonly #client: S3Client;
  readonly #bucket: string;
  readonly #prefix: string;
  readonly #cache: DirectoryBlobStore;
  readonly #cacheRoot: string;

  constructor(options: { client: S3Client; bucket: string; prefix: string; cacheRoot: string }) {
    this.#client = options.client;
    this.#bucket = options.bucket;
    this.#prefix = options.prefix;
    this.#cacheRoot = options.cacheRoot;
    this.#cache = new DirectoryBlobStore(options.cacheRoot);
  }

  #object(sha256: string): { Bucket: string; Key: string } {
    return { Bucket: this.#bucket, Key: [this.#prefix, sha256.slice(0, 2), sha256].filter(Boolean).join('/') };
  }

  async put(source: string | Uint8Array): Promise<string> {
    const sha256 = await this.#cache.put(source);
    if (await this.has(sha256)) return sha256;
    const { PutObjectCommand } = await import('@aws-sdk/client-s3');
    const path = await this.#cache.open(sha256);
    const { size } = await stat(path);
    await this.#client.send(
      new PutObjectCommand({ ...this.#object(sha256), Body: createReadStream(path), ContentLength: size }),
    );
    return sha256;
  }

  async open(sha256: string): Promise<string> {
    if (await this.#cache.has(sha256)) return this.#cache.open(sha256);
    const { GetObjectCommand } = await import('@aws-sdk/client-s3');
    const { Body } = await this.#client.send(new GetObjectCommand(this.#object(sha256))).catch((cause: unknown) => {
      throw new ExpError('ARTIFACT_MISSING', sha256, `cannot read it from bucket ${this.#bucket}`, { cause });
    });
    const temporary = join(this.#cacheRoot, `${sha256}.${randomUUID()}.download`);
    await mkdir(this.#cacheRoot, { recursive: true });
    try {
      await pipeline(Body as Readable, createWriteStream(temporary));
      const stored = await this.#cache.put(temporary);
      if (stored !== sha256)
        throw new ExpError('ARTIFACT_CORRUPT', sha256, `the store returned other bytes (${stored})`);
    } finally {
      await rm(temporary, { force: true });
    }
    return this.#cache.open(sha256);
  }

  async has(sha256: string): Promise<boolean> {
    const { HeadObjectCommand } = await import('@aws-sdk/client-s3');
    return this.#client.send(new HeadObjectCommand(this.#object(sha256))).then(
      () => true,
      (error: { $metadata?: { httpStatusCode?: number } }) => {
        if (error.$metadata?.httpStatusCode === 404) return false;
        throw error;
      },
    );
  }
}

/** Put blobs into a directory under readable names, without copying where the file system allows it. */
export async function linkBlob(blobPath: string, target: string): Promise<void> {
  await mkdir(dirname(target), { recursive: true });
  await link(blobPath, target).catch(() => copyFile(blobPath, target));
}

function storageError(error: unknown, path: string): unknown {
  const { code } = error as NodeJS.ErrnoException;
  if (code !== 'ENOSPC' && code !== 'EDQUOT') return error;
  return new ExpError('STORAGE_FULL', path, 'no space left to write an artifact; free some and run `exp resume`', {
    cause: error,
  });
}
