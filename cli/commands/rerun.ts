import { randomBytes } from 'node:crypto';
import { parseArgs } from 'node:util';
import { withNonce } from '../../plan/rerun.ts';
import { ExpError } from '../../schemas/errors.ts';
import type { Unkeyed } from '../../schemas/node-parameters.ts';
import type { Plan } from '../../schemas/plan.ts';
import type { Command } from '../command.ts';
import { withStack } from '../open-stack.ts';
import { nodesNamed } from '../plan-node.ts';
import { findRun, runArgument } from '../run-state.ts';
import { submitPlan } from '../submit-plan.ts';

export const command: Command = {
  name: 'rerun',
  summary: 'Run a node of a run again, and all that depends on it, as a new run; the rest is reused.',
  usage: 'rerun RUN|latest --from NODE [--watch] [--profile P] [--json]',
  help: `  --from NODE   its id as \`exp status\` shows it, in every arm that has it; ARM/ID for one arm
  -w, --watch   follow the new run to its end; the exit code is then that of the run
  --json        words to stderr; the last line on stdout is {run, status}

The new run has the frozen plan of RUN with a nonce in the key of NODE. Parameters and seeds stay: what is
deterministic comes out as before, under another key.`,

  async run(argv, io) {
    const { values, positionals } = parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: {
        from: { type: 'string' },
        watch: { type: 'boolean', short: 'w', default: false },
        profile: { type: 'string' },
        json: { type: 'boolean', default: false },
      },
    });
    const wanted = runArgument(positionals, 'rerun');
    const { from, watch, json } = values;
    if (from === undefined) throw new ExpError('USAGE', 'exp rerun', 'wants --from NODE, the first node to run again');
    return withStack(values.profile, async (stack, profile) => {
      const { id, plan_blob } = await findRun(stack.pool, wanted);
      const frozen = await stack.store.readJson<Plan>(plan_blob);
      const first = nodesNamed(frozen, from, id);
      const taken = first.map(({ node }) => (node.unkeyed as Unkeyed).reused_from).find((run) => run !== undefined);
      if (taken !== undefined)
        throw new ExpError(
          'NODE_TAKEN',
          `${id} ${from}`,
          `it was taken from ${taken}: exp rerun ${taken} --from ${from}`,
        );
      const isFirst = (arm: string, node: string): boolean =>
        first.some((one) => one.node.id === node && one.arms.includes(arm));
      const plan = withNonce(frozen, isFirst, randomBytes(8).toString('hex'));
      return submitPlan(stack, { plan, profile, watch, json, io });
    });
  },
};
