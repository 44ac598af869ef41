import { Context } from '@temporalio/activity';

const INTERVAL_MS = 2_000;

/**
 * Run an activity's work with a heartbeat every 2 s, sent only if the work said it moved since the last one, so
 * that work which hangs is found out. `moved` throws once the activity is cancelled.
 */
export async function withPulse<T>(work: (moved: () => void) => Promise<T>): Promise<T> {
  const { cancellationSignal } = Context.current();
  const context = Context.current();
  let hasMoved = true;
  const timer = setInterval(() => {
    if (hasMoved) context.heartbeat();
    hasMoved = false;
  }, INTERVAL_MS);
  try {
    return await work(() => {
      cancellationSignal.throwIfAborted();
      hasMoved = true;
    });
  } finally {
    clearInterval(timer);
  }
}

/** Files that are copied or hashed say nothing while they are: as long as it lasts, it counts as moving. */
export async function whileStoring<T>(moved: () => void, work: () => Promise<T>): Promise<T> {
  const timer = setInterval(() => {
    try {
      moved();
    } catch {
      clearInterval(timer); // cancelled: said below, once the file is whole
    }
  }, INTERVAL_MS);
  try {
    return await work();
  } finally {
    clearInterval(timer);
    moved();
  }
}
