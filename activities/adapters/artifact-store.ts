import { readFile, stat } from 'node:fs/promises';
import type { Pool } from 'pg';
import type { ArtifactFile, ArtifactRef, Manifest } from '../../schemas/artifact.ts';
import { canonicalJson, contentKey } from '../../schemas/canonical.ts';
import { ExpError } from '../../schemas/errors.ts';
import type { BlobCollector, BlobState, BlobStore } from './blob-store.ts';

/** What a node hands over to be published under its key. */
export interface Publication {
  key: string;
  kind: string;
  inputs: Manifest['inputs'];
  /** Name in the artifact → local path. */
  files: Record<string, string>;
  body: object;
  metrics: Manifest['metrics'];
  /** After each file, so that many large ones are not taken for a standstill. */
  onStored?(): void;
  /** What made it beyond what the store's process says of itself: a library, a device. */
  made_with?: Record<string, string>;
}

interface ArtifactRow {
  key: string;
  generation: number;
  kind: string;
  digest: string;
  manifest_blob: string;
}

/** The newest artifact of a key, as the table has it. */
export interface ListedArtifact extends ArtifactRow {
  created_at: Date;
}

export interface ListOptions {
  /** Keys after this one. */
  after?: string;
  limit: number;
  /** Only these keys. */
  keys?: readonly string[];
  kind?: string | undefined;
}

/**
 * Content-addressed artifacts: blobs first, manifest after them, the row in PostgreSQL last.
 * A key names a recipe; a (key, generation) has one digest, and the first complete publication wins.
 */
export class ArtifactStore {
  readonly #pool: Pool;
  readonly #blobs: BlobStore;
  readonly #madeWith: Record<string, string>;

  /** `madeWith` is recorded in every manifest: the process that publishes, in words. */
  constructor(pool: Pool, blobs: BlobStore, madeWith: Record<string, string> = {}) {
    this.#pool = pool;
    this.#blobs = blobs;
    this.#madeWith = madeWith;
  }

  putBlob(source: string | Uint8Array): Promise<string> {
    return this.#blobs.put(source);
  }

  /** Local path of a blob. Throws ARTIFACT_MISSING. */
  openBlob(sha256: string): Promise<string> {
    return this.#blobs.open(sha256);
  }

  async putJson(value: unknown): Promise<string> {
    return this.putBlob(Buffer.from(canonicalJson(value)));
  }

  async readJson<T>(sha256: string): Promise<T> {
    return JSON.parse(await readFile(await this.openBlob(sha256), 'utf8')) as T;
  }

  /** The newest artifact of a key, if there is one. */
  async find(key: string): Promise<ArtifactRef | null> {
    return (await this.findAll([key])).get(key) ?? null;
  }

  async findAll(keys: readonly string[]): Promise<Map<string, ArtifactRef>> {
    const { rows } = await this.#pool.query<ArtifactRow>(
      'select distinct on (key) key, generation, kind, digest, manifest_blob from artifacts where key = any($1) order by key, generation desc',
      [keys],
    );
    return new Map(rows.map((row) => [row.key, toRef(row)]));
  }

  /** The newest artifact of each key, in the order of keys, a page at a time. */
  async list({ after = '', limit, keys, kind }: ListOptions): Promise<ListedArtifact[]> {
    const { rows } = await this.#pool.query<ListedArtifact>(
      `select distinct on (key) key, generation, kind, digest, manifest_blob, created_at from artifacts
       where key > $1 and ($2::text[] is null or key = any($2)) and ($3::text is null or kind = $3)
       order by key, generation desc limit $4`,
      [after, keys ?? null, kind ?? null, limit],
    );
    return rows;
  }

  /** Whether a blob is stored, and still is what its name says. */
  checkBlob(sha256: string): Promise<BlobState> {
    return this.#blobs.check(sha256);
  }

  /** Null where blobs cannot be collected safely. */
  get blobCollector(): BlobCollector | null {
    return this.#blobs.collector;
  }

  /** The manifest of a reference, or of the newest artifact of a key. Throws ARTIFACT_MISSING. */
  async manifest(refOrKey: ArtifactRef | string): Promise<Manifest> {
    const [key, generation] = typeof refOrKey === 'string' ? [refOrKey, null] : [refOrKey.key, refOrKey.generation];
    const { rows } = await this.#pool.query<ArtifactRow>(
      'select manifest_blob from artifacts where key = $1 and ($2::int is null or generation = $2) order by generation desc limit 1',
      [key, generation],
    );
    if (!rows[0]) throw new ExpError('ARTIFACT_MISSING', key, 'no artifact is published under this key');
    return this.readJson<Manifest>(rows[0].manifest_blob);
  }

  /** Local path of one file of an artifact. */
  openFile(manifest: Manifest, name: string): Promise<string> {
    const file = manifest.files.find((candidate) => candidate.name === name);
    if (!file) throw new ExpError('ARTIFACT_MISSING', manifest.key, `the artifact has no file ${name}`);
    return this.openBlob(file.sha256);
  }

  /** Publish under a key; if somebody published it first, theirs is returned and ours is dropped. */
  async publish(publication: Publication): Promise<ArtifactRef> {
    const { files: paths, onStored, ...rest } = publication;
    const files: ArtifactFile[] = [];
    for (const [name, path] of Object.entries(paths).sort(([a], [b]) => (a < b ? -1 : 1))) {
      files.push({ name, sha256: await this.putBlob(path), bytes: (await stat(path)).size });
      onStored?.();
    }
    const manifest: Manifest = {
      api_version: 'exp/v1',
      ...rest,
      body: { ...publication.body },
      made_with: { ...this.#madeWith, ...publication.made_with },
      files,
      created_at: new Date().toISOString(),
    };
    const { key, kind, inputs, body } = manifest;
    const digest = contentKey({ key, kind, inputs, body, files });
    const blob = await this.putJson(manifest);
    return this.#claim({ key, kind, digest, manifest_blob: blob });
  }

  /**
   * Compare-and-set: generation 1 belongs to whoever inserts it; a later one is made only when a fresh
   * execution replaced an artifact that no longer verifies (see `retire`).
   */
  async #claim(row: Omit<ArtifactRow, 'generation'>): Promise<ArtifactRef> {
    const { rows } = await this.#pool.query<ArtifactRow>(
      `insert into artifacts (key, generation, kind, digest, manifest_blob)
       select $1, coalesce((select max(generation) from retired_artifacts where key = $1), 0) + 1, $2, $3, $4
       on conflict (key, generation) do update set key = excluded.key
       returning key, generation, kind, digest`,
      [row.key, row.kind, row.digest, row.manifest_blob],
    );
    return toRef(rows[0] as ArtifactRow);
  }

  /** Take an artifact that no longer verifies out of reuse; the next publication of its key is a new generation. */
  async retire(ref: ArtifactRef, reason: string): Promise<void> {
    await this.#pool.query(
      `with gone as (delete from artifacts where key = $1 and generation = $2 returning *)
       insert into retired_artifacts (key, generation, kind, digest, manifest_blob, reason)
       select key, generation, kind, digest, manifest_blob, $3 from gone on conflict do nothing`,
      [ref.key, ref.generation, reason],
    );
  }
}

function toRef({ key, kind, generation, digest }: ArtifactRow): ArtifactRef {
  return { key, kind, generation, digest };
}
