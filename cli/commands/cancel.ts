import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { ExitCode } from '../../schemas/errors.ts';
import type { Command } from '../command.ts';
import { type Stack, withStack } from '../open-stack.ts';
import { allNodes, findRun, RunReader, type RunRow, type RunState, runArgument, workflowPhase } from '../run-state.ts';

/** Activities hear of it with their next heartbeat, and put away what they have. */
const WAIT_MS = 120_000;

export const command: Command = {
  name: 'cancel',
  summary: 'Stop a run; what it finished is kept.',
  usage: 'cancel RUN|latest [--no-wait] [--profile P] [--json]',
  async run(argv, io) {
    const { values, positionals } = parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: {
        'no-wait': { type: 'boolean', default: false },
        profile: { type: 'string' },
        json: { type: 'boolean', default: false },
      },
    });
    const wanted = runArgument(positionals, 'cancel');
    return withStack(values.profile, async (stack) => {
      const row = await findRun(stack.pool, wanted);
      const say = values.json ? io.err : io.out;
      if (row.status !== 'running') say(`${row.id} has already ended: ${row.status}`);
      else await cancel(stack, row);
      const ended = row.status !== 'running' || values['no-wait'] || (await waitForEnd(stack, row, io.signal));
      const state = await new RunReader(stack, row.id).read();
      if (values.json) io.out(JSON.stringify({ run: row.id, status: state.status }));
      else if (row.status === 'running') for (const line of describe(state)) io.out(line);
      return ended ? ExitCode.done : ExitCode.runFailed;
    });
  },
};

/** A run whose workflow is not open has nobody to ask: its row is closed here. */
async function cancel(stack: Stack, row: RunRow): Promise<void> {
  const client = await stack.temporal();
  if ((await workflowPhase(client, row.id)) === 'open') {
    await client.workflow.getHandle(`run/${row.id}`).cancel();
    return;
  }
  await closeRow(stack, row);
}

async function closeRow(stack: Stack, { id }: RunRow): Promise<void> {
  await stack.pool.query(
    `update runs set status = 'cancelled', ended_at = now() where id = $1 and status = 'running'`,
    [id],
  );
}

/** True when the run has ended; false when it takes longer than we wait. */
async function waitForEnd(stack: Stack, row: RunRow, signal: AbortSignal): Promise<boolean> {
  const client = await stack.temporal();
  for (const deadline = Date.now() + WAIT_MS; Date.now() < deadline && !signal.aborted; ) {
    if ((await findRun(stack.pool, row.id)).status !== 'running') return true;
    if ((await workflowPhase(client, row.id)) !== 'open') await closeRow(stack, row);
    else await sleep(300);
  }
  return false;
}

function describe(state: RunState): string[] {
  const nodes = allNodes(state);
  const kept = nodes.filter(({ status }) => status === 'done' || status === 'reused').map(({ id }) => id);
  const begun = nodes.filter(({ status, total }) => status === 'cancelled' && total > 0);
  if (state.status === 'running') return [`${state.run} is still stopping; exp watch ${state.run}`];
  return [
    `${state.run} ${state.status}`,
    kept.length > 0 ? `kept: ${kept.join(', ')}` : 'kept: nothing was finished yet',
    ...begun.map(({ id, done, total }) => `kept in part: ${id}, ${done} of ${total}`),
    `to go on: exp resume ${state.run}`,
  ];
}
