import { parseArgs } from 'node:util';
import { decideActions } from '../../plan/reuse.ts';
import { ExitCode, ExpError } from '../../schemas/errors.ts';
import type { Plan } from '../../schemas/plan.ts';
import type { Profile } from '../../schemas/profile.ts';
import { home } from '../../services/home.ts';
import { isUpToDate, up } from '../../services/stack.ts';
import type { Command, CommandIo } from '../command.ts';
import { readEarlierPlans } from '../earlier-plans.ts';
import { followRun } from '../follow-run.ts';
import { asUnreachable, openProfile, openStack, requireStack, type Stack } from '../open-stack.ts';
import { planSpec } from '../plan-spec.ts';
import { problemsToJson, showProblems } from '../show-problems.ts';
import { startRun } from '../start-run.ts';
import { artifactLookup, showPlan } from './plan.ts';
import { showRest, splitPositionals } from './validate.ts';

export const command: Command = {
  name: 'submit',
  summary: 'Run a spec; starts the services of this machine when they are not up.',
  usage: 'submit SPEC [KEY=VALUE …] [--watch] [-f OVERLAY] [--profile P] [--label L] [--no-start] [--json]',
  help: [
    'The same spec is active once: while it runs, another submit attaches and gives the same id. After it has ended,',
    'a submit makes a new run, which reuses what is there.',
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
    const loaded = await planSpec({ spec, overrides, overlays, profile: ref, label, env: io.env, lookUp: true });
    if (loaded.plan === null) {
      if (json) io.out(JSON.stringify({ problems: problemsToJson(loaded.problems) }));
      else showProblems(loaded.problems, loaded.texts, io);
      return ExitCode.invalidInput;
    }
    showRest(loaded.warnings, loaded.unknown, io);
    if (loaded.unknown.length > 0)
      throw new ExpError('MISSING_INPUT', spec, 'what is listed as missing must be there before the spec can run');
    return submit({ plan: loaded.plan, profile, ref, watch, json, mayStart: !values['no-start'], io });
  },
};

interface Submission {
  plan: Plan;
  profile: Profile;
  /** Name or path of the profile, as workers shall load it. */
  ref: string;
  watch: boolean;
  json: boolean;
  mayStart: boolean;
  io: CommandIo;
}

async function submit({ plan, profile, ref, watch, json, mayStart, io }: Submission): Promise<number> {
  const say = json ? (line: string) => io.err(line) : (line: string) => io.out(line);
  if (profile.embedded && mayStart) await ensureUp(profile, ref, say, io.signal);
  const stack = await requireStack(profile);
  try {
    const actions = await decideActions(plan.arms, artifactLookup(stack), await readEarlierPlans(stack, plan));
    showPlan(plan, actions, { ...io, out: say });
    const { run, created } = await startRun(stack, plan);
    say(created ? `submitted ${run}` : `${run} runs this spec already: attached to it`);
    if (watch) return await watchRun(stack, { run, profile, json, say, io });
    if (json) io.out(JSON.stringify({ run, status: 'running' }));
    else io.out(`to follow it: exp watch ${run}`);
    return ExitCode.done;
  } catch (error) {
    throw asUnreachable(error, profile);
  } finally {
    await stack.close();
  }
}

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

interface Watching {
  run: string;
  profile: Profile;
  json: boolean;
  say(line: string): void;
  io: CommandIo;
}

async function watchRun(stack: Stack, { run, profile, json, say, io }: Watching): Promise<number> {
  const live = io.isTTY && !json;
  const { state, exitCode } = await followRun({ run, stack, io, reopen: () => openStack(profile), say, live });
  if (json) io.out(JSON.stringify({ run, status: state?.status ?? 'running' }));
  return exitCode;
}
