/** A plan from a file (`exp plan -o`), run only while it is what its spec still gives. */
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import type { ReusedStage } from '../plan/compile.ts';
import { parseStoredPlan, staleReasons } from '../plan/stored-plan.ts';
import { ExpError } from '../schemas/errors.ts';
import type { Unkeyed } from '../schemas/node-parameters.ts';
import type { Plan } from '../schemas/plan.ts';
import type { Profile } from '../schemas/profile.ts';
import { planSpec } from './plan-spec.ts';

/** A spec is YAML; what ends like this is a stored plan. */
export const isStoredPlan = (path: string): boolean => path.endsWith('.json');

export interface StoredPlanContext {
  profile: Profile;
  /** Name or path of the profile. */
  ref: string;
  env: NodeJS.ProcessEnv;
}

/** Throws FILE, PLAN, STALE_PLAN. */
export async function openStoredPlan(path: string, { profile, ref, env }: StoredPlanContext): Promise<Plan> {
  const text = await readFile(path, 'utf8').catch((cause: Error) => {
    throw new ExpError('FILE', path, `cannot be read: ${cause.message}`, { cause });
  });
  const plan = parseStoredPlan(text, path);
  if (plan.profile !== profile.name)
    throw new ExpError('STALE_PLAN', path, `was made for profile ${plan.profile}, this is ${profile.name}`);
  const { made_from } = plan;
  if (made_from === undefined)
    throw new ExpError('STALE_PLAN', path, 'does not say what it was made from, so nobody can say what changed since');
  const gone = [made_from.spec_path, ...made_from.overlays].find((file) => !existsSync(file));
  if (gone !== undefined)
    throw new ExpError(
      'STALE_PLAN',
      path,
      `${gone}, which it was made from, is gone: nobody can say what changed since`,
    );

  const now = await replan(plan, { ref, env });
  if (now.plan === null)
    throw new ExpError('STALE_PLAN', path, `its spec is no longer valid: ${firstProblem(now.problems)}`);
  const reasons = [...staleReasons(plan, now.plan), ...now.unknown.map((lack) => `missing: ${lack}`)];
  if (reasons.length > 0)
    throw new ExpError('STALE_PLAN', path, `an input changed since it was made: ${reasons.join('; ')}`);
  return plan;
}

/** Plan again what a plan was made from, with more laid over it. */
export function replan(
  { made_from, arms }: Plan,
  {
    ref,
    env,
    overrides = [],
    overlays = [],
  }: { ref: string; env: NodeJS.ProcessEnv; overrides?: readonly string[]; overlays?: readonly string[] },
): ReturnType<typeof planSpec> {
  if (made_from === undefined) throw new Error('whoever asks has looked whether the plan says what it was made from');
  return planSpec({
    spec: made_from.spec_path,
    overlays: [...made_from.overlays, ...overlays],
    overrides: [...made_from.overrides, ...overrides],
    label: made_from.label ?? undefined,
    profile: ref,
    env,
    findStage: async (stage) => frozenStage(arms, stage),
  });
}

/** What the plan took from a run stays as it was, whatever has run since. */
function frozenStage(arms: Plan['arms'], stage: string): ReusedStage | null {
  const node = arms.flatMap(({ nodes }) => nodes).find(({ id }) => id === stage);
  const run = (node?.unkeyed as Unkeyed | undefined)?.reused_from;
  return node && run !== undefined ? { run, node } : null;
}

function firstProblem(problems: Awaited<ReturnType<typeof planSpec>>['problems']): string {
  const [first] = problems;
  return first === undefined ? '' : `${first.file}:${first.line}:${first.column}: ${first.code}: ${first.message}`;
}
