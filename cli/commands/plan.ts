import { readFile, stat, writeFile } from 'node:fs/promises';
import { parseArgs } from 'node:util';
import { type Located, leaves } from '../../plan/located.ts';
import { placeText } from '../../plan/problem.ts';
import { type ArtifactLookup, decideActions, type FoundArtifact, type NodeAction } from '../../plan/reuse.ts';
import { ExitCode, ExpError } from '../../schemas/errors.ts';
import type { Plan } from '../../schemas/plan.ts';
import type { Profile } from '../../schemas/profile.ts';
import type { Command, CommandIo } from '../command.ts';
import { readEarlierPlans } from '../earlier-plans.ts';
import { isOutage, openStackToAsk, type Stack } from '../open-stack.ts';
import { planSpec } from '../plan-spec.ts';
import { planToJson, showPlan } from '../show-plan.ts';
import { problemsToJson, showProblems } from '../show-problems.ts';
import { showRest, splitPositionals } from './validate.ts';

export const command: Command = {
  name: 'plan',
  summary: 'Show what a spec would run, and what it would reuse.',
  usage: 'plan SPEC [KEY=VALUE …] [-f OVERLAY] [--profile P] [--label L] [-o FILE] [--resolved [--origin]] [--json]',
  help: `  KEY=VALUE, +KEY=VALUE, ~KEY   change, add or remove a value by its dotted path
  -f, --overlay FILE            lay a file over the spec; may be repeated
  --profile P                   name or path of a profile (default: local)
  --label L                     tells runs of one spec apart
  -o, --output FILE             write the plan as JSON; another file is never overwritten
  --resolved, --origin          print the resolved spec, leaf by leaf; and where each value was written
  --json                        {nodes: [{arm, id, kind, key, inputs, action, reason, since, estimate}], total}
  A node without an artifact is compared with the nearest one of the latest runs of the same spec: \`reason\` names the
  first difference, such as \`rollout.temperature: 1 → 0.7\`, and \`since\` all of them.`,

  async run(argv, io) {
    const { values, positionals } = parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: {
        overlay: { type: 'string', short: 'f', multiple: true, default: [] },
        profile: { type: 'string' },
        label: { type: 'string' },
        output: { type: 'string', short: 'o' },
        resolved: { type: 'boolean', default: false },
        origin: { type: 'boolean', default: false },
        json: { type: 'boolean', default: false },
      },
    });
    const { spec, overrides } = splitPositionals(positionals, 'exp plan');
    const { overlay: overlays, profile: profileName, label } = values;
    const loaded = await planSpec({
      spec,
      overrides,
      overlays,
      profile: profileName,
      label,
      env: io.env,
      lookUp: true,
    });
    const { plan, problems, warnings, unknown, root, texts, profile } = loaded;
    if (plan === null) {
      if (values.json) io.out(JSON.stringify({ problems: problemsToJson(problems) }));
      else showProblems(problems, texts, io);
      return ExitCode.invalidInput;
    }
    if (values.output !== undefined) await writeNew(values.output, `${JSON.stringify(plan, null, 2)}\n`);
    if (values.resolved) {
      showResolved(root as Located, values.origin, io);
      return ExitCode.done;
    }
    const actions = await actionsOnStack(plan, profile);
    if (values.json) {
      io.out(JSON.stringify({ ...planToJson(plan, actions, profile), warnings: problemsToJson(warnings), unknown }));
    } else {
      showRest(warnings, unknown, io);
      showPlan(plan, actions, { profile, io });
    }
    return ExitCode.done;
  },
};

/** Nothing that is there is lost: what holds the very same is left, anything else refused. */
async function writeNew(path: string, text: string): Promise<void> {
  try {
    await writeFile(path, text, { flag: 'wx' });
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code !== 'EEXIST') throw new ExpError('FILE', path, `the plan cannot be written (${code})`, { cause: error });
    const isFile = await stat(path).then(
      (info) => info.isFile(),
      () => false,
    );
    if (isFile && (await readFile(path, 'utf8')) === text) return;
    throw new ExpError('EXISTS', path, 'something else is there already, and nothing is overwritten', { cause: error });
  }
}

/** What each node would do, as far as the stack can be asked: planning needs no service. */
async function actionsOnStack(plan: Plan, profile: Profile): Promise<NodeAction[]> {
  const stack = await openStackToAsk(profile);
  try {
    if (stack === null) return await decideActions(plan.arms, null);
    return await decideActions(plan.arms, artifactLookup(stack), await readEarlierPlans(stack, plan));
  } catch (error) {
    if (isOutage(error)) return decideActions(plan.arms, null);
    throw error;
  } finally {
    await stack?.close();
  }
}

/** What the artifact store has under keys, what it was made from, and whether it still holds. */
export function artifactLookup(stack: Stack): ArtifactLookup {
  const { store } = stack;
  return async (keys) => {
    const refs = [...(await store.findAll(keys)).values()];
    const found = await Promise.all(
      refs.map(async (ref): Promise<[string, FoundArtifact]> => {
        const { key, generation, digest } = ref;
        const { made_with, created_at, inputs } = await store.manifest(ref);
        return [key, { generation, digest, made_with, created_at, inputs, is_live: await stack.verifyLive(ref) }];
      }),
    );
    // Parents may be of another plan: whether they are still current matters too.
    const parents = found
      .flatMap(([, { inputs }]) => inputs.map(({ key }) => key))
      .filter((key) => !keys.includes(key));
    const current = await store.findAll(parents);
    const others = [...current.values()].map(({ key, generation, digest }): [string, FoundArtifact] => [
      key,
      { generation, digest, made_with: {}, created_at: '', inputs: [], is_live: true },
    ]);
    return new Map([...found, ...others]);
  };
}

/** Every leaf of the resolved spec; with `origin`, where it was written. */
function showResolved(root: Located, origin: boolean, io: CommandIo): void {
  for (const { path, leaf } of leaves(root)) {
    if (leaf.kind === 'unset') continue;
    const place = leaf.isDefault ? 'default' : placeText(leaf.at);
    io.out(`${path.join('.')}: ${JSON.stringify(leaf.value)}${origin ? `  # ${place}` : ''}`);
  }
}
