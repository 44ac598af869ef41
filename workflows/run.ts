import {
  CancellationScope,
  condition,
  defineQuery,
  defineSignal,
  defineUpdate,
  isCancellation,
  setHandler,
  startChild,
  workflowInfo,
} from '@temporalio/workflow';
import type { Bounds } from '../activities/index.ts';
import { ledger } from './activity-proxies.ts';
import { arm as armWorkflow } from './arm.ts';
import { always } from './cancellation.ts';
import { type ArmStatus, type RunStatus, worstOf } from './outcome.ts';
import { executePausable, type OverBudget, type Told } from './pausing.ts';

export interface RunInput {
  run: string;
  /** Blob of the frozen plan. */
  plan: string;
  max_parallel: number;
  /** An arm that fails ends the others. */
  fail_fast?: boolean;
  /** Arms that an earlier execution brought to their end: a resumed run leaves them as they are. */
  done?: string[];
}

export interface RunState {
  run: string;
  status: RunStatus;
  arms: { arm: string; status: ArmStatus }[];
  /** Null while it is not paused. */
  paused: RunPause | null;
}

export interface RunPause {
  reason: string;
  since: string;
  /** Raising the bound ends it. */
  over_budget: boolean;
}

export const runStateQuery = defineQuery<RunState>('state');
/** Hold the run back: what is in flight is finished, nothing new is begun. Tells since when. */
export const pauseUpdate = defineUpdate<RunPause, [{ reason: string }]>('pause');
/** From an arm whose node has stopped at the budget, or for its health. */
export const overBudgetSignal = defineSignal<[OverBudget]>('over_budget');
/** Other bounds from now on; a run that the budget paused goes on, and is paused again where they do not suffice. */
export const setBudgetUpdate = defineUpdate<{ went_on: boolean }, [{ bounds: Bounds }]>('set_budget');
/** Let a paused run go on; tells whether it was paused. */
export const continueUpdate = defineUpdate<boolean>('continue');

/** The frozen plan of a run: one child per arm, `max_parallel` at a time. Its result is the run's true final status. */
export async function run(input: RunInput): Promise<{ status: RunStatus }> {
  const state: RunState = { run: input.run, status: 'running', arms: [], paused: null };
  setHandler(runStateQuery, () => state);
  setHandler(pauseUpdate, ({ reason }) => {
    state.paused ??= { reason, since: new Date().toISOString(), over_budget: false };
    return state.paused;
  });
  setHandler(setBudgetUpdate, async ({ bounds }) => {
    await ledger.setBudget({ run: input.run, bounds });
    const went_on = state.paused?.over_budget ?? false;
    if (went_on) state.paused = null;
    return { went_on };
  });
  setHandler(continueUpdate, () => {
    const wasPaused = state.paused !== null;
    state.paused = null;
    return wasPaused;
  });
  state.status = await executeArms(input, state).catch((error: unknown) => {
    if (isCancellation(error)) return 'cancelled';
    throw error;
  });
  await always(() => ledger.finishRun({ run: input.run, status: state.status }));
  return { status: state.status };
}

async function executeArms(
  { run, plan, max_parallel, fail_fast = false, done = [] }: RunInput,
  state: RunState,
): Promise<RunStatus> {
  const { arms } = await ledger.listArms({ plan });
  state.arms = arms.map((arm) => ({ arm, status: done.includes(arm) ? 'done' : 'waiting' }));
  await ledger.trackRunStarted({ run, plan });
  const waiting = state.arms.filter(({ status }) => status === 'waiting');
  const scope = new CancellationScope();
  let ended: RunStatus | null = null;
  const told = new Map<string, Told>();
  setHandler(overBudgetSignal, ({ arm, reason, on_exceed, by }) => {
    // The arm holds itself back already; it must hear when it may go on.
    const known = told.get(arm);
    if (known) known.paused = true;
    if (on_exceed === 'pause') state.paused = { reason, since: new Date().toISOString(), over_budget: by !== 'health' };
    else {
      ended ??= 'budget';
      scope.cancel();
    }
  });
  const worker = async () => {
    for (let entry = waiting.shift(); entry; entry = waiting.shift()) {
      const status = await executeArm({ run, plan, arm: entry.arm }, state, entry, told);
      entry.status = status;
      if (!fail_fast || ended !== null || status === 'done' || status === 'cancelled') continue;
      ended = status;
      scope.cancel();
    }
  };
  await scope.run(() => Promise.all(Array.from({ length: Math.min(max_parallel, arms.length) }, worker)));
  return ended ?? worstOf(state.arms.map(({ status }) => status));
}

/** A paused run begins no arm; one at work is told, and finishes what it has in flight. */
async function executeArm(
  input: { run: string; plan: string; arm: string },
  state: RunState,
  entry: RunState['arms'][number],
  allTold: Map<string, Told>,
): Promise<RunStatus> {
  const isPaused = () => state.paused !== null;
  const { taskQueue } = workflowInfo();
  try {
    if (isPaused()) await condition(() => !isPaused());
    entry.status = 'running';
    const told: Told = { paused: false };
    allTold.set(input.arm, told);
    const { status } = await executePausable(
      () => startChild(armWorkflow, { workflowId: `arm/${input.run}/${input.arm}`, args: [input], taskQueue }),
      isPaused,
      told,
    );
    return status;
  } catch (error) {
    if (isCancellation(error)) return 'cancelled';
    throw error;
  }
}
