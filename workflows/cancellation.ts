import { CancellationScope } from '@temporalio/workflow';

/** Work that is done even when the workflow is being cancelled: last words to those who wait. */
export const always = <T>(work: () => Promise<T>): Promise<T> => CancellationScope.nonCancellable(work);
