/** Directories of merged weights that nobody has used lately: they are made again from a checkpoint when asked for. */
import { randomUUID } from 'node:crypto';
import { readdir, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { Pool } from 'pg';
import type { Amount } from './node-rows.ts';

/** `<cache>/<dtype>/<digest>`, or what a killed process left of one that it was making or removing. */
const MERGED = /^([0-9a-f]{64})$|^\.([0-9a-f]{64})\.part-/;

/** Checkpoints that engines serve, or are about to leave: they are compared when weights are replaced. */
export async function servedCheckpoints(pool: Pool): Promise<Set<string>> {
  const { rows } = await pool.query<{ state: string }>(
    `select state::text as state from leases where resource like 'engine/%'`,
  );
  return new Set(rows.flatMap(({ state }) => state.match(/\b[0-9a-f]{64}\b/g) ?? []));
}

/** On this machine; a worker of another one has its own. Whoever asks for a directory makes it young (MergedWeights). */
export async function sweepMergedWeights(
  cache: string,
  served: ReadonlySet<string>,
  { before, apply }: { before: Date; apply: boolean },
): Promise<Amount> {
  const swept = { count: 0, bytes: 0 };
  for (const dtype of await namesIn(cache)) {
    for (const name of await namesIn(join(cache, dtype))) {
      const [, whole, part] = name.match(MERGED) ?? [];
      if ((whole === undefined && part === undefined) || served.has(whole ?? '')) continue;
      const path = join(cache, dtype, name);
      const found = await measure(path);
      if (found === null || found.usedMs >= before.getTime()) continue;
      const aside = join(cache, dtype, `.${whole ?? part}.part-${randomUUID()}`);
      if (apply && !(await remove(path, aside, before))) continue;
      swept.count += 1;
      swept.bytes += found.bytes;
    }
  }
  return swept;
}

/** Moved aside first: whoever asks from then on makes it anew, and whoever did just before is noticed. */
async function remove(path: string, aside: string, before: Date): Promise<boolean> {
  const moved = await rename(path, aside).then(() => true, ifMissing(false));
  if (!moved) return false;
  const found = await measure(aside);
  if (
    found !== null &&
    found.usedMs >= before.getTime() &&
    (await rename(aside, path).then(() => true, ifMissing(false)))
  )
    return false;
  await rm(aside, { recursive: true, force: true });
  return true;
}

/** What its removal frees (a file that is the base model's own frees nothing), and when it was last made or asked for. */
async function measure(path: string): Promise<{ bytes: number; usedMs: number } | null> {
  const of = async (file: string) => stat(file).catch(ifMissing(null));
  const folder = await of(path);
  if (folder === null) return null;
  const files = await Promise.all((await namesIn(path)).map((name) => of(join(path, name))));
  const there = files.filter((file) => file !== null);
  return {
    bytes: there.reduce((sum, { size, nlink }) => sum + (nlink > 1 ? 0 : size), 0),
    usedMs: Math.max(...[folder, ...there].map(({ mtimeMs }) => mtimeMs)),
  };
}

const namesIn = async (folder: string): Promise<string[]> =>
  (await readdir(folder).catch(ifMissing<string[]>([]))).sort();

/** Gone meanwhile, or in the way of another that was made meanwhile. */
function ifMissing<T>(otherwise: T): (error: NodeJS.ErrnoException) => T {
  return (error) => {
    if (['ENOENT', 'ENOTEMPTY', 'EEXIST', 'ENOTDIR'].includes(error.code ?? '')) return otherwise;
    throw error;
  };
}
