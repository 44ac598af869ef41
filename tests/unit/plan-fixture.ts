/** Plans for tests: the real profile, and a small checkout whose models and lockfiles never change. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type LoadedPlan, type LoadPlanOptions, loadPlan } from '../../plan/load-plan.ts';
import { loadProfile } from '../../plan/profile.ts';
import type { PlanNode } from '../../schemas/plan.ts';
import { temporaryFolder } from '../temporary-folder.ts';

export const ROOT = join(import.meta.dirname, '../..');
const FIXTURES = join(ROOT, 'tests/fixtures/plans');
const cacheDir = temporaryFolder('exp-plan-cache-');

export const quickstart = join(ROOT, 'experiments/quickstart.yaml');
/** The quickstart, frozen: for tests that count on its numbers. */
export const recipe = join(ROOT, 'tests/fixtures/specs/recipe.yaml');
export const multihop = join(ROOT, 'experiments/multihop.yaml');

export function planOptions(options: Partial<LoadPlanOptions> = {}): LoadPlanOptions {
  return {
    profile: loadProfile('local', join(ROOT, 'profiles')),
    env: {},
    cacheDir,
    modelsDir: join(FIXTURES, 'models'),
    profilesDir: join(ROOT, 'profiles'),
    repoRoot: join(FIXTURES, 'checkout'),
    pythonLock: 'requirements.txt',
    ...options,
  };
}

export const planFile = (path: string, options: Partial<LoadPlanOptions> = {}): Promise<LoadedPlan> =>
  loadPlan(path, planOptions(options));

/** The nodes of a spec that must be valid. */
export async function nodesOf(path: string, options: Partial<LoadPlanOptions> = {}): Promise<PlanNode[]> {
  const { plan, problems } = await planFile(path, options);
  if (plan === null) throw new Error(`not valid: ${JSON.stringify(problems)}`);
  return plan.arms.flatMap(({ nodes }) => nodes);
}

export const keysOf = (nodes: readonly PlanNode[]): Record<string, string> =>
  Object.fromEntries(nodes.map(({ id, key }) => [id, key]));

/** A folder with files, for specs that are made by a test. */
export function folderWith(files: Record<string, string | Uint8Array>): string {
  const folder = temporaryFolder('exp-specs-');
  for (const [name, content] of Object.entries(files)) writeFileSync(join(folder, name), content);
  return folder;
}

/** Codes and places as `CODE line:column`, in order. */
export const found = ({ problems }: LoadedPlan): string[] =>
  problems.map(({ code, line, column }) => `${code} ${line}:${column}`);
