import {
  ApplicationFailure,
  type ChildWorkflowHandle,
  condition,
  defineSignal,
  setHandler,
  type Workflow,
  type WorkflowResultType,
} from '@temporalio/workflow';

/** Sent from above whenever it changes: whether work is held back. */
export const pauseSignal = defineSignal<[boolean]>('pause');

/** Whether work is held back. Looked at between batches, steps and nodes: what is in flight is finished. */
export interface Hold {
  on: boolean;
}

export function listenForPause(on = false): Hold {
  const hold: Hold = { on };
  setHandler(pauseSignal, (paused) => {
    hold.on = paused;
  });
  return hold;
}

/** Code of an execution that ended at a boundary because it was paused: its node runs it again, from the ledgers. */
export const PAUSED = 'PAUSED';

/** Leave the engine and the trainer to others for as long as the pause lasts. */
export function stopIfPaused({ on }: Hold): void {
  if (on) throw ApplicationFailure.nonRetryable('paused', PAUSED);
}

/** Code of an execution that ended because the stage's health is beyond its limits; the message says which. */
export const UNHEALTHY = 'UNHEALTHY';

/** Until a person lets the run go on. */
export function stopForHealth(reason: string): never {
  throw ApplicationFailure.nonRetryable(reason, UNHEALTHY);
}

/** From an arm to its run: a node has stopped, at the run's budget unless it says otherwise. */
export interface OverBudget {
  arm: string;
  reason: string;
  on_exceed: 'pause' | 'stop';
  by?: 'health';
}

/** What the other side knows. */
export interface Told {
  paused: boolean;
}

/** Say each change of `isPaused` to the other side until `isOver`; one that has ended meanwhile needs no word. */
export async function keepTold(
  send: (paused: boolean) => Promise<void>,
  told: Told,
  isPaused: () => boolean,
  isOver: () => boolean,
): Promise<void> {
  try {
    for (;;) {
      await condition(() => isOver() || isPaused() !== told.paused);
      if (isOver()) return;
      told.paused = isPaused();
      await send(told.paused);
    }
  } catch {
    // It has ended, or we are being cancelled: the outcome is told by the work itself.
  }
}

/** `executeChild`, for a child that hears of every pause: also of one that began before it did. */
export async function executePausable<T extends Workflow>(
  start: () => Promise<ChildWorkflowHandle<T>>,
  isPaused: () => boolean,
  told: Told = { paused: false },
): Promise<WorkflowResultType<T>> {
  const handle = await start();
  let over = false;
  const telling = keepTold(
    (paused) => handle.signal(pauseSignal, paused),
    told,
    isPaused,
    () => over,
  );
  try {
    return await handle.result();
  } finally {
    over = true;
    await telling;
  }
}
