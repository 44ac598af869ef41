/** When a service of the embedded stack is ready to be used, not merely running. */
import { connect } from 'node:net';
import type { Connection } from '@temporalio/client';
import { type Connections, temporalOptions } from './connections.ts';
import { withClient } from './postgres.ts';
import { isWorker, type ServiceName } from './programs.ts';

/** Bound of the wait, in seconds, on a busy machine with two cores. */
export const READY_WITHIN: Record<ServiceName, number> = {
  postgres: 60,
  temporal: 60,
  milvus: 120,
  mlflow: 240,
  engine: 600,
  'worker-cpu': 180,
  'worker-rollout': 180,
  'worker-gpu': 180,
};

export interface ProbeInput {
  connections: Connections;
  /** When the supervisor started the process, in ms. */
  startedAt: number;
  signal?: AbortSignal;
}

/** Throws while the service is not ready; the message says why. */
export async function probe(service: ServiceName, input: ProbeInput): Promise<void> {
  if (isWorker(service)) return probeWorker(service, input);
  const { connections } = input;
  switch (service) {
    case 'postgres':
      return withClient(
        withPath(connections.postgres.url, '/postgres'),
        async (client) => void (await client.query('select 1')),
      );
    case 'temporal':
      return probeTemporal(connections);
    case 'milvus':
      return probeTcp(connections.milvus.address);
    case 'mlflow':
      return probeHttp(`${connections.mlflow.url}/health`);
    case 'engine':
      return probeHttp(`${connections.engines[0]?.url}/health`);
    default:
      throw new Error(`no probe for ${service}`);
  }
}

function withPath(url: string, path: string): string {
  const changed = new URL(url);
  changed.pathname = path;
  return changed.href;
}

async function probeHttp(url: string): Promise<void> {
  const response = await fetch(url, { signal: AbortSignal.timeout(5000) });
  await response.arrayBuffer();
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
}

/** Milvus Lite listens only once its data is loaded. Takes `host:port` or a URL. */
function probeTcp(address: string): Promise<void> {
  const { protocol, hostname, port } = new URL(address.includes('://') ? address : `tcp://${address}`);
  return new Promise((resolve, reject) => {
    const socket = connect({
      host: hostname,
      port: Number(port) || (protocol === 'https:' ? 443 : 19530),
      timeout: 3000,
    });
    socket.once('connect', () => {
      socket.destroy();
      resolve();
    });
    socket.once('timeout', () => socket.destroy(new Error('no connection within 3 s')));
    socket.once('error', reject);
  });
}

async function withTemporal<T>(
  { temporal }: Connections,
  work: (service: Connection['workflowService']) => Promise<T>,
): Promise<T> {
  const { Connection } = await import('@temporalio/client');
  const connection = await Connection.connect({ ...temporalOptions(temporal), connectTimeout: '3s' });
  try {
    return await work(connection.workflowService);
  } finally {
    await connection.close();
  }
}

async function probeTemporal(connections: Connections): Promise<void> {
  await withTemporal(connections, (service) =>
    service.describeNamespace({ namespace: connections.temporal.namespace }),
  );
}

/** A worker is ready when its queue was polled after the process started. */
async function probeWorker(service: ServiceName, { connections, startedAt }: ProbeInput): Promise<void> {
  const queue = `${connections.temporal.queuePrefix}-${service.slice('worker-'.length)}`;
  const ACTIVITY_QUEUE = 2;
  const { pollers } = await withTemporal(connections, (temporal) =>
    temporal.describeTaskQueue({
      namespace: connections.temporal.namespace,
      taskQueue: { name: queue },
      taskQueueType: ACTIVITY_QUEUE,
    }),
  );
  const polled = (pollers ?? []).some(({ lastAccessTime }) => Number(lastAccessTime?.seconds ?? 0) * 1000 >= startedAt);
  if (!polled) throw new Error(`nothing polls ${queue} yet`);
}
