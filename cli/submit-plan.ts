/** From a plan to a run: shown, started or attached to, and followed when that is wanted. */
import { decideActions } from '../plan/reuse.ts';
import { ExitCode, ExpError } from '../schemas/errors.ts';
import type { Plan } from '../schemas/plan.ts';
import type { Profile } from '../schemas/profile.ts';
import type { CommandIo } from './command.ts';
import { artifactLookup } from './commands/plan.ts';
import { readEarlierPlans } from './earlier-plans.ts';
import { followRun } from './follow-run.ts';
import { openStack, type Stack } from './open-stack.ts';
import { findRun } from './run-state.ts';
import { showPlan } from './show-plan.ts';
import { startRun } from './start-run.ts';

export interface Submission {
  plan: Plan;
  profile: Profile;
  watch: boolean;
  json: boolean;
  io: CommandIo;
  /** Refuse to attach to an active run of the same key whose nodes are others. */
  exact?: boolean;
}

/** Where words for people go: with `--json`, stdout is data only. */
export const speaker = ({ json, io }: Pick<Submission, 'json' | 'io'>): ((line: string) => void) =>
  json ? (line) => io.err(line) : (line) => io.out(line);

/** Returns the exit code of the verb. */
export async function submitPlan(stack: Stack, submission: Submission): Promise<number> {
  const { plan, watch, json, io, exact = false } = submission;
  const say = speaker(submission);
  const actions = await decideActions(plan.arms, artifactLookup(stack), await readEarlierPlans(stack, plan));
  showPlan(plan, actions, { profile: submission.profile, io: { ...io, out: say } });
  const { run, created } = await startRun(stack, plan);
  if (!created && exact) await requireSameNodes(stack, run, plan);
  say(created ? `submitted ${run}` : `${run} runs this spec already: attached to it`);
  if (watch) return watchRun(stack, run, submission);
  if (json) io.out(JSON.stringify({ run, status: 'running' }));
  else io.out(`to follow it: exp watch ${run}`);
  return ExitCode.done;
}

async function requireSameNodes(stack: Stack, run: string, plan: Plan): Promise<void> {
  const { plan_blob } = await findRun(stack.pool, run);
  const active = await stack.store.readJson<Plan>(plan_blob);
  const keysOf = ({ arms }: Plan): string => arms.flatMap(({ nodes }) => nodes.map(({ key }) => key)).join();
  if (keysOf(active) === keysOf(plan)) return;
  throw new ExpError('RUN_ACTIVE', run, 'it runs the same spec with other inputs now; cancel it first, or wait');
}

async function watchRun(stack: Stack, run: string, submission: Submission): Promise<number> {
  const { profile, json, io } = submission;
  const say = speaker(submission);
  const live = io.isTTY && !json;
  const { state, exitCode } = await followRun({ run, stack, io, reopen: () => openStack(profile), say, live });
  if (json) io.out(JSON.stringify({ run, status: state?.status ?? 'running' }));
  return exitCode;
}
