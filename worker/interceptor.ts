import type { Context } from '@temporalio/activity';
import type { ActivityInterceptorsFactory } from '@temporalio/worker';
import { toFailure } from '../activities/failure.ts';
import type { NodeProgress } from '../activities/node-progress.ts';

/** Around every activity: our errors become Temporal's, and a second attempt is counted on its node. */
export const failureInterceptor =
  (progress: NodeProgress): ActivityInterceptorsFactory =>
  ({ info }: Context) => ({
    inbound: {
      async execute(input, next) {
        const key = nodeKeyOf(input.args[0]);
        if (info.attempt > 1 && key) await progress.retried(key);
        try {
          return await next(input);
        } catch (error) {
          throw toFailure(error);
        }
      },
    },
  });

/** Activities take a NodeRef, or an object with one. */
function nodeKeyOf(argument: unknown): string | undefined {
  const { key, node } = (argument ?? {}) as { key?: string; node?: { key?: string } };
  return node?.key ?? key;
}
