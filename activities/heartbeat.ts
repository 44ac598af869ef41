import { Context } from '@temporalio/activity';
import type { TrainerClient } from './adapters/trainer-process.ts';

const INTERVAL_MS = 2_000;

/** Heartbeat every 2 s while a trainer answers that it is at work; a process that hangs is not kept alive by us. */
export async function heartbeatWhile<T>(client: TrainerClient, work: () => Promise<T>): Promise<T> {
  const context = Context.current();
  const timer = setInterval(() => {
    client.ping().then(
      (state) => context.heartbeat(state.step),
      () => undefined, // no answer, no heartbeat
    );
  }, INTERVAL_MS);
  try {
    return await work();
  } finally {
    clearInterval(timer);
  }
}
