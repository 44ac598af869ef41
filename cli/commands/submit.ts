import { parseArgs } from 'node:util';
import { ExitCode, ExpError } from '../../schemas/errors.ts';
import type { Profile } from '../../schemas/profile.ts';
import { home } from '../../services/home.ts';
import { isUpToDate, up } from '../../services/stack.ts';
import type { Command } from '../command.ts';
import { asUnreachable, openProfile, requireStack } from '../open-stack.ts';
import { planSpec } from '../plan-spec.ts';
import { readyPlan } from '../ready-plan.ts';
import { isStoredPlan, openStoredPlan } from '../stored-plan-file.ts';
import { speaker, submitPlan } from '../submit-plan.ts';
import { splitPositionals } from './validate.ts';

export const command: Command = {
  name: 'submit',
  summary: 'Run a spec or a stored plan; starts the services of this machine when they are not up.',
  usage: 'submit SPEC|PLAN.json [KEY=VALUE …] [--watch] [-f OVERLAY] [--profile P] [--label L] [--no-start] [--json]',
  help: [
    'The same spec is active once: while it runs, another submit attaches and gives the same id. After it has ended,',
    'a submit makes a new run, which reuses what is there.',
    '',
    'A plan that `exp plan -o PLAN.json` wrote runs exactly as it is, or is refused (STALE_PLAN, exit 2) with what',
    'changed since: its spec is planned again, and every key must come out the same. It takes no overrides.',
    '',
    '  -w, --watch                   follow it to its end; the exit code is then that of the run',
    '  KEY=VALUE, +KEY=VALUE, ~KEY   change, add or remove a value by its dotted path',
    '  -f, --overlay FILE            lay a file over the spec; may be repeated',
    '  --profile P                   name or path of a profile (default: local)',
    '  --label L                     tells runs of one spec apart',
    '  --no-start                    start no services; exit 69 when they are down',
    '  --json                        words to stderr; the last line on stdout is {run, status}',
  ].join('\n'),
  async run(argv, io) {
    const { values, positionals } = parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: {
        watch: { type: 'boolean', short: 'w', default: false },
        overlay: { type: 'string', short: 'f', multiple: true, default: [] },
        profile: { type: 'string' },
        label: { type: 'string' },
        'no-start': { type: 'boolean', default: false },
        json: { type: 'boolean', default: false },
      },
    });
    const { spec, overrides } = splitPositionals(positionals, 'exp submit');
    const { overlay: overlays, label, watch, json } = values;
    const { profile, ref } = openProfile(values.profile);
    const exact = isStoredPlan(spec);
    if (exact && (overrides.length > 0 || overlays.length > 0 || label !== undefined))
      throw new ExpError(
        'USAGE',
        'exp submit',
        'a stored plan runs as it is: it takes no overrides, overlays or label',
      );
    const plan = exact
      ? await openStoredPlan(spec, { profile, ref, env: io.env })
      : readyPlan(await planSpec({ spec, overrides, overlays, profile: ref, label, env: io.env, lookUp: true }), spec, {
          json,
          io,
        });
    if (plan === null) return ExitCode.invalidInput;
    const say = speaker({ json, io });
    if (profile.embedded && !values['no-start']) await ensureUp(profile, ref, say, io.signal);
    const stack = await requireStack(profile);
    try {
      return await submitPlan(stack, { plan, profile, watch, json, io, exact });
    } catch (error) {
      throw asUnreachable(error, profile);
    } finally {
      await stack.close();
    }
  },
};

/** The engine may still load its model: what needs it waits for it, the rest begins. */
async function ensureUp(
  profile: Profile,
  profileRef: string,
  say: (line: string) => void,
  signal: AbortSignal,
): Promise<void> {
  if (await isUpToDate(home())) return;
  await up({ home: home(), profile, profileRef, waitForEngine: false, report: say, signal });
}
