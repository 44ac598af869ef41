import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { repoRoot } from './home.ts';

/** Digest of the code that workers run, as the last build wrote it; workers carry it as EXP_BUILD. */
export function buildDigest(): string {
  try {
    return (JSON.parse(readFileSync(join(repoRoot(), 'dist', 'build.json'), 'utf8')) as { worker: string }).worker;
  } catch {
    return 'unbuilt';
  }
}
