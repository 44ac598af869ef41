import { existsSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { changedLeaves, leafText } from '../../plan/diff.ts';
import { isOverride } from '../../plan/overrides.ts';
import { ExitCode, ExpError } from '../../schemas/errors.ts';
import type { Plan } from '../../schemas/plan.ts';
import type { Command } from '../command.ts';
import { openProfile, withStack } from '../open-stack.ts';
import { readyPlan } from '../ready-plan.ts';
import { findRun } from '../run-state.ts';
import { replan } from '../stored-plan-file.ts';
import { speaker, submitPlan } from '../submit-plan.ts';

export const command: Command = {
  name: 'fork',
  summary: 'Run the spec of a run with changes; what the changes do not reach is reused.',
  usage: 'fork RUN|latest [KEY=VALUE …] [-f OVERLAY] [--watch] [--profile P] [--json]',
  help: `  KEY=VALUE, +KEY=VALUE, ~KEY   change, add or remove a value by its dotted path
  -f, --overlay FILE            lay a file over the spec; may be repeated
  -w, --watch                   follow it to its end; the exit code is then that of the run
  --json                        words to stderr; the last line on stdout is {run, status}

The file that RUN was made from is planned again with the overlays and overrides of RUN, then with those given here;
as always an override wins over an overlay. It is refused (SPEC_CHANGED) when that file does not say any more what RUN
ran: a fork changes what you name and nothing else.`,

  async run(argv, io) {
    const { values, positionals } = parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: {
        overlay: { type: 'string', short: 'f', multiple: true, default: [] },
        watch: { type: 'boolean', short: 'w', default: false },
        profile: { type: 'string' },
        json: { type: 'boolean', default: false },
      },
    });
    const [wanted, ...overrides] = positionals;
    const { overlay: overlays, watch, json } = values;
    const stray = overrides.find((argument) => !isOverride(argument));
    if (wanted === undefined || isOverride(wanted)) throw new ExpError('USAGE', 'exp fork', 'wants a RUN, or `latest`');
    if (stray !== undefined)
      throw new ExpError('USAGE', 'exp fork', `${JSON.stringify(stray.slice(0, 80))} is no override`);
    if (overrides.length + overlays.length === 0)
      throw new ExpError('USAGE', 'exp fork', 'wants a change: KEY=VALUE or -f OVERLAY');
    const { ref } = openProfile(values.profile);
    return withStack(values.profile, async (stack, profile) => {
      const { id, plan_blob } = await findRun(stack.pool, wanted);
      const frozen = await stack.store.readJson<Plan>(plan_blob);
      requireSources(frozen, id);
      await requireUnchanged(frozen, id, { ref, env: io.env });

      const plan = readyPlan(await replan(frozen, { ref, env: io.env, overrides, overlays }), id, { json, io });
      if (plan === null) return ExitCode.invalidInput;
      for (const change of changedLeaves(frozen.spec, plan.spec)) speaker({ json, io })(leafText(change));
      return submitPlan(stack, { plan, profile, watch, json, io });
    });
  },
};

function requireSources({ made_from }: Plan, run: string): void {
  if (made_from === undefined)
    throw new ExpError(
      'SPEC_GONE',
      run,
      'its plan does not say what it was made from; submit its spec with the changes',
    );
  const gone = [made_from.spec_path, ...made_from.overlays].find((file) => !existsSync(file));
  if (gone !== undefined) throw new ExpError('SPEC_GONE', run, `${gone}, which it was made from, is gone`);
}

/** Inputs may have changed, and the keys will tell; what the file says may not. */
async function requireUnchanged(
  frozen: Plan,
  run: string,
  options: { ref: string; env: NodeJS.ProcessEnv },
): Promise<void> {
  const { plan, problems } = await replan(frozen, options);
  const at = frozen.made_from?.spec_path ?? frozen.spec_path;
  if (plan === null) throw new ExpError('SPEC_CHANGED', at, `is no longer valid: ${problems[0]?.message ?? ''}`);
  const armsOf = ({ arms }: Plan): object => Object.fromEntries(arms.map(({ name, changes }) => [name, changes]));
  const changes = [...changedLeaves(frozen.spec, plan.spec), ...changedLeaves(armsOf(frozen), armsOf(plan))];
  if (changes.length === 0) return;
  const said = changes.slice(0, 5).map(leafText).join('; ');
  throw new ExpError(
    'SPEC_CHANGED',
    at,
    `does not say any more what ${run} ran (${said}): submit it as it is, or put it back`,
  );
}
