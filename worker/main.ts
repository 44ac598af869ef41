/** One worker process: builds what activities depend on, and polls one resource class of task queues. */
import { DefaultLogger, Runtime, Worker, type WorkerOptions } from '@temporalio/worker';
import { activitiesFor, type ResourceClass } from './activities.ts';
import { openDependencies } from './dependencies.ts';
import { failureInterceptor } from './interceptor.ts';
import { logLine } from './log.ts';

/** Activities of each class that one process runs at a time. */
const CONCURRENCY: Record<ResourceClass, number> = { cpu: 8, rollout: 4, gpu: 1, host: 4 };

async function main(): Promise<void> {
  const resources = (['cpu', 'rollout', 'gpu'] as const).find((name) => name === process.argv[2]);
  if (!resources) throw new Error('usage: main.js cpu|rollout|gpu');

  Runtime.install({ logger: new DefaultLogger('INFO', logLine), shutdownSignals: ['SIGTERM', 'SIGINT'] });
  const deps = await openDependencies();
  try {
    const workers = await Promise.all(workersOf(resources, deps).map((options) => Worker.create(options)));
    const background = resources === 'cpu' ? deps.startDraining() : null;
    await Promise.all(workers.map((worker) => worker.run()));
    await background?.stop();
  } finally {
    await deps.close();
  }
}

function workersOf(
  resources: 'cpu' | 'rollout' | 'gpu',
  deps: Awaited<ReturnType<typeof openDependencies>>,
): WorkerOptions[] {
  const common = {
    connection: deps.connection,
    namespace: deps.namespace,
    maxHeartbeatThrottleInterval: '2s',
    shutdownGraceTime: '10s',
    interceptors: { activity: [failureInterceptor(deps.progress)] },
  } satisfies Partial<WorkerOptions>;
  const polling = (polled: ResourceClass): WorkerOptions => ({
    ...common,
    taskQueue: deps.queues[polled],
    activities: activitiesFor(polled, deps),
    maxConcurrentActivityTaskExecutions: CONCURRENCY[polled],
  });
  if (resources === 'cpu') return [{ ...polling('cpu'), workflowBundle: { codePath: deps.workflowBundle } }];
  return resources === 'gpu' ? [polling('gpu'), polling('host')] : [polling('rollout')];
}

main().catch((error: unknown) => {
  console.error(error);
  process.exit(1);
});
