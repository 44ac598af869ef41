import { CancellationScope } from '@temporalio/workflow';
import { always } from './cancellation.ts';

/** Work that was begun before it is due, and may be given up. */
export interface UnderWay {
  /** How it ends; whoever needs it waits for this. */
  done: Promise<void>;
  /** That it has ended, in whichever way. */
  settled: Promise<void>;
  /** Cancel it, and wait until nothing of it is left. */
  drop(): Promise<void>;
}

export function begin(work: () => Promise<void>): UnderWay {
  const scope = new CancellationScope();
  const done = scope.run(work);
  // Looked at when it is due: a rejection that nobody awaits yet must not fail the task.
  const settled = done.catch(() => undefined);
  return {
    done,
    settled,
    async drop() {
      scope.cancel();
      await always(() => settled); // who drops it has an answer already
    },
  };
}
