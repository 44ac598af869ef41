/** What a test may lack: the shared data, a GPU, a cluster. Everything else is installed by set-up. */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { repoRoot } from '../services/home.ts';

export type AbsentPart = 'shared_data' | 'gpu' | 'cluster';

/** Folder of the data sets that are not in the repository: `EXP_SHARED_DATA`, or ../shared/data. Null when absent. */
export function sharedData(): string | null {
  const folder = process.env['EXP_SHARED_DATA'] ?? join(repoRoot(), '../shared/data');
  return existsSync(folder) ? folder : null;
}

export const hasGpu = (): boolean => spawnSync('nvidia-smi', ['-L'], { stdio: 'ignore' }).status === 0;

export const hasCluster = (): boolean => Boolean(process.env['EXP_CLUSTER_PROFILE']);

export function absentParts(): Set<AbsentPart> {
  const absent = new Set<AbsentPart>();
  if (sharedData() === null) absent.add('shared_data');
  if (!hasGpu()) absent.add('gpu');
  if (!hasCluster()) absent.add('cluster');
  return absent;
}
