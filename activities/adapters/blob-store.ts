import { createHash, randomUUID } from 'node:crypto';
import { createReadStream, createWriteStream } from 'node:fs';
import { copyFile, link, mkdir, open, readdir, rename, rm, stat, utimes } from 'node:fs/promises';
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
  /** Whether the stored bytes still are what their name says; reads all of them. */
  check(sha256: string): Promise<BlobState>;
  /** Null where blobs cannot be collected safely. */
  readonly collector: BlobCollector | null;
}

export type BlobState = 'whole' | 'missing' | 'damaged';

export interface StoredBlob {
  sha256: string;
  bytes: number;
  /** When it was last stored; storing the same bytes again counts. */
  stored_at: Date;
}

/** What `exp gc` needs of a store. */
export interface BlobCollector {
  /** Every blob, in the order of names. */
  list(): AsyncIterable<StoredBlob>;
  /** Remove a blob unless somebody stored it again since `before`. Says whether it is gone by this call. */
  remove(sha256: string, before: Date): Promise<boolean>;
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

const ignoreMissing = (error: NodeJS.ErrnoException): void => {
  if (error.code !== 'ENOENT') throw error;
};

/** False when there is no such file. What is stored again is new, so that nobody collects it as old. */
async function touch(path: string): Promise<boolean> {
  const now = new Date();
  return utimes(path, now, now).then(
    () => true,
    (error: NodeJS.ErrnoException) => {
      if (error.code === 'EPERM') return true; // another user's file: it is there, and that user collects it
      ignoreMissing(error);
      return false;
    },
  );
}

async function syncPath(path: string): Promise<void> {
  const handle = await open(path, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

const BLOB_NAME = /^[0-9a-f]{64}$/;

/** Blobs as files `<root>/ab/abcdef…`: temporary file, fsync, rename. */
export class DirectoryBlobStore implements BlobStore, BlobCollector {
  readonly collector = this;
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
    if (await touch(target)) return sha256;
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

  async check(sha256: string): Promise<BlobState> {
    const path = this.#path(sha256);
    if (!(await exists(path))) return 'missing';
    return (await sha256File(path)) === sha256 ? 'whole' : 'damaged';
  }

  async *list(): AsyncIterable<StoredBlob> {
    const folders = await readdir(this.#root).catch((error: NodeJS.ErrnoException) => {
      ignoreMissing(error);
      return [];
    });
    for (const folder of folders.sort()) {
      const names = await readdir(join(this.#root, folder));
      for (const sha256 of names.filter((name) => BLOB_NAME.test(name)).sort()) {
        const found = await stat(this.#path(sha256)).catch(ignoreMissing);
        if (found) yield { sha256, bytes: found.size, stored_at: found.mtime };
      }
    }
  }

  /** Moved aside first: whoever stores it from then on writes it anew, and whoever did just before is noticed. */
  async remove(sha256: string, before: Date): Promise<boolean> {
    const path = this.#path(sha256);
    const aside = `${path}.${randomUUID()}.tmp`;
    const moved = await rename(path, aside).then(() => true, ignoreMissing);
    if (moved !== true) return false;
    if ((await stat(aside)).mtime >= before) {
      await rename(aside, path);
      return false;
    }
    await rm(aside);
    return true;
  }
}

/** Blobs as objects `<prefix>/ab/abcdef…` of any S3-compatible store, read through a local directory cache. */
export class S3BlobStore implements BlobStore {
  /** An object store does not say when an object was found to be there already: one in use could look old. */
  readonly collector = null;
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

  /** Reads the object itself, not the cache. */
  async check(sha256: string): Promise<BlobState> {
    if (!(await this.has(sha256))) return 'missing';
    const { GetObjectCommand } = await import('@aws-sdk/client-s3');
    const { Body } = await this.#client.send(new GetObjectCommand(this.#object(sha256)));
    const hash = createHash('sha256');
    await pipeline(Body as Readable, hash);
    return hash.digest('hex') === sha256 ? 'whole' : 'damaged';
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
