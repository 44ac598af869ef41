/** A spec planned on this checkout: fills in where models, profiles, lockfiles and caches are. */
import { join } from 'node:path';
import { type LoadedPlan, loadPlan, type StageLookup } from '../plan/load-plan.ts';
import { loadProfile } from '../plan/profile.ts';
import type { Profile } from '../schemas/profile.ts';
import { home, modelsDir, repoRoot } from '../services/home.ts';

export const DEFAULT_PROFILE = 'local';
/** Every Python package set-up installs, pinned. */
export const PYTHON_LOCK = 'requirements.txt';

export interface SpecRequest {
  spec: string;
  /** Name or path; EXP_PROFILE, or `local`, when absent. */
  profile?: string | undefined;
  overrides?: readonly string[];
  overlays?: readonly string[];
  label?: string | undefined;
  env: NodeJS.ProcessEnv;
  /** Ask the services for what `reuse` names; without it, that is unknown. */
  lookUp?: boolean;
  /** Only look for problems. */
  checkOnly?: boolean;
  /** Knows already what `reuse` names. */
  findStage?: StageLookup;
}

export const profilesDir = (): string => join(repoRoot(), 'profiles');

/** Throws PROFILE when the profile itself is wrong; problems of the spec are in the result. */
export async function planSpec(request: SpecRequest): Promise<LoadedPlan & { profile: Profile }> {
  const profile = loadProfile(request.profile ?? (request.env['EXP_PROFILE'] || DEFAULT_PROFILE), profilesDir());
  const loaded = await loadPlan(request.spec, {
    ...request,
    profile,
    cacheDir: join(home(), 'cache'),
    modelsDir: modelsDir(),
    profilesDir: profilesDir(),
    repoRoot: repoRoot(),
    pythonLock: PYTHON_LOCK,
    findStage: request.lookUp ? lookUpWith(profile) : request.findStage,
  });
  return { ...loaded, profile };
}

const lookUpWith =
  (profile: Profile): StageLookup =>
  async (...asked) =>
    (await import('./find-stage.ts')).findStage(profile, ...asked);
