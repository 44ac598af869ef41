/** One worker process: builds what activities depend on, and polls one resource class of task queues. */
import { parseArgs } from 'node:util';
import { DefaultLogger, Runtime, Worker, type WorkerOptions } from '@temporalio/worker';
import { activitiesFor, type Queue } from './activities.ts';
import { openDependencies } from './dependencies.ts';
import { failureInterceptor } from './interceptor.ts';
import { logLine } from './log.ts';

const QUEUES: readonly Queue[] = ['exp-cpu', 'exp-rollout', 'exp-gpu'];

/** What one process of each class does at a time. */
const CONCURRENCY: Record<Queue, number> = { 'exp-cpu': 8, 'exp-rollout': 4, 'exp-gpu': 1 };

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { queue: { type: 'string' } } });
  const queue = QUEUES.find((name) => name === values.queue);
  if (!queue) throw new Error(`--queue must be one of ${QUEUES.join(', ')}`);

  Runtime.install({ logger: new DefaultLogger('INFO', logLine), shutdownSignals: ['SIGTERM', 'SIGINT'] });
  const deps = await openDependencies();
  try {
    const workers = await Promise.all(workerOptions(queue, deps).map((options) => Worker.create(options)));
    const background = queue === 'exp-cpu' ? deps.startDraining() : null;
    await Promise.all(workers.map((worker) => worker.run()));
    await background?.stop();
  } finally {
    await deps.close();
  }
}

function workerOptions(queue: Queue, deps: Awaited<ReturnType<typeof openDependencies>>): WorkerOptions[] {
  const common = {
    connection: deps.connection,
    namespace: deps.namespace,
    maxHeartbeatThrottleInterval: '2s',
    shutdownGraceTime: '10s',
    interceptors: { activity: [failureInterceptor(deps.progress)] },
  } satisfies Partial<WorkerOptions>;
  const main: WorkerOptions = {
    ...common,
    taskQueue: queue,
    activities: activitiesFor(queue, deps),
    maxConcurrentActivityTaskExecutions: CONCURRENCY[queue],
  };
  if (queue === 'exp-cpu') return [{ ...main, workflowBundle: { codePath: deps.workflowBundle } }];
  if (queue === 'exp-rollout') return [main];
  return [
    main,
    {
      ...common,
      taskQueue: deps.hostQueue,
      activities: activitiesFor('host', deps),
      maxConcurrentActivityTaskExecutions: 4,
    },
  ];
}

main().catch((error: unknown) => {
  console.error(error);
  process.exit(1);
});
