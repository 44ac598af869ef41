import { execFile } from 'node:child_process';
import { mkdir, stat, utimes } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { type Checkpoint, linksOf } from '../../schemas/checkpoint.ts';
import { ExpError } from '../../schemas/errors.ts';
import type { ArtifactStore } from './artifact-store.ts';

export interface MergedWeightsDeps {
  store: ArtifactStore;
  /** Where merged directories are kept; derived and disposable. */
  cache: string;
  python: string;
  /** Folder with the Python package `exp_trainer`. */
  packageDir: string;
  /** Hugging Face directory of a base model of the registry. */
  baseDir(model: string): string;
  /** What the engines load. */
  dtype: 'bfloat16' | 'float32';
}

/** Hugging Face directories with a checkpoint's adapters merged into its base, and the probe they must answer. */
export class MergedWeights {
  readonly #deps: MergedWeightsDeps;
  readonly #making = new Map<string, Promise<string>>();

  constructor(deps: MergedWeightsDeps) {
    this.#deps = deps;
  }

  get dtype(): 'bfloat16' | 'float32' {
    return this.#deps.dtype;
  }

  /** Where a checkpoint's directory is, or will be once somebody makes it. */
  path(checkpoint: Checkpoint): string {
    return join(this.#deps.cache, checkpoint.digest);
  }

  /** The directory of a checkpoint, made from its adapters if it is not there. */
  async directory(checkpoint: Checkpoint): Promise<string> {
    const path = this.path(checkpoint);
    const now = new Date();
    await utimes(join(path, 'probe.json'), now, now).catch(() => {}); // `exp gc` leaves alone what was used lately
    if (await isThere(join(path, 'probe.json'))) return path;
    const making = this.#making.get(path) ?? this.#merge(checkpoint, path).finally(() => this.#making.delete(path));
    this.#making.set(path, making);
    return making;
  }

  /** Two processes may merge at once: each writes its own temporary directory, and the rename decides. */
  async #merge(checkpoint: Checkpoint, out: string): Promise<string> {
    const { store, python, packageDir, baseDir, dtype, cache } = this.#deps;
    await mkdir(cache, { recursive: true });
    const adapters: string[] = [];
    for (const sha256 of linksOf(checkpoint)) adapters.push('--adapter', await store.openBlob(sha256));
    const args = ['-m', 'exp_trainer.merge', '--base', baseDir(checkpoint.model), ...adapters];
    try {
      await promisify(execFile)(python, [...args, '--out', out, '--dtype', dtype], {
        cwd: packageDir,
        maxBuffer: 2 ** 24,
      });
    } catch (cause) {
      if (await isThere(join(out, 'probe.json'))) return out;
      const { stderr = '' } = cause as { stderr?: string };
      const last = stderr.trim().split('\n').at(-1) ?? '';
      throw new ExpError('CHECKPOINT', checkpoint.digest, `merging its adapters failed: ${last}`, { cause });
    }
    return out;
  }
}

const isThere = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  );
