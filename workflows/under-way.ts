import { CancellationScope } from '@temporalio/workflow';
import { always } from './cancellation.ts';

/** Work that was begun before it is due, and may be given up. */
export interface UnderWay {
  /** How it ends; whoever needs it waits for this. */
  done: Promise<void>;
  /** Cancel it, and wait until nothing of it is left. */
  drop(): Promise<void>;
}

export function begin(work: () => Promise<void>): UnderWay {
  const scope = new CancellationScope();
  const done = scope.run(work);
  done.catch(() => undefined); // looked at when it is due; a rejection nobody awaits yet must not fail the task
  return {
    done,
    async drop() {
      scope.cancel();
      await always(() => done.catch(() => undefined)); // who drops it has an answer already
    },
  };
}
