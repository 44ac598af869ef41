/** A plan that may run: what stands in its way is shown or thrown. */
import type { LoadedPlan } from '../plan/load-plan.ts';
import { ExpError } from '../schemas/errors.ts';
import type { Plan } from '../schemas/plan.ts';
import type { CommandIo } from './command.ts';
import { showRest } from './commands/validate.ts';
import { problemsToJson, showProblems } from './show-problems.ts';

/** Null when the spec has problems, which are then shown. Throws MISSING_INPUT. */
export function readyPlan(
  { plan, problems, texts, warnings, unknown }: LoadedPlan,
  at: string,
  { json, io }: { json: boolean; io: CommandIo },
): Plan | null {
  if (plan === null) {
    if (json) io.out(JSON.stringify({ problems: problemsToJson(problems) }));
    else showProblems(problems, texts, io);
    return null;
  }
  showRest(warnings, unknown, io);
  if (unknown.length > 0)
    throw new ExpError('MISSING_INPUT', at, 'what is listed as missing must be there before the spec can run');
  return plan;
}
