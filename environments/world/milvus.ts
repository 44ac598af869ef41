import { MilvusClient } from '@zilliz/milvus2-sdk-node';
import { ExpError } from '../../schemas/errors.ts';

export interface MilvusAddress {
  address: string;
  token?: string;
}

export const TIMEOUT_MS = 60_000;
// Python's gRPC server (Milvus Lite) cuts off a client that pings an idle connection more than every five minutes; the
// SDK pings every ten seconds. Calls have deadlines, so a dead connection is noticed without pings.
const CHANNEL = { 'grpc.keepalive_time_ms': 600_000, 'grpc.keepalive_permit_without_calls': 0 };

/** A client that lives through an outage: it connects again by itself, and a failed first connection crashes nobody. */
export function connectMilvus({ address, token }: MilvusAddress): MilvusClient {
  const client = new MilvusClient({
    address,
    ...(token !== undefined && { token }),
    timeout: TIMEOUT_MS,
    maxRetries: 3,
    retryDelay: 100,
    channelOptions: CHANNEL,
    logLevel: 'error',
  });
  // The constructor dials at once; without a listener a refused connection ends the process.
  client.connectPromise.catch(() => undefined);
  return client;
}

interface Status {
  error_code?: string | number;
  code?: number;
  reason?: string;
}

/** Milvus answers failures as data; here they are exceptions. */
export async function milvusCall<R>(what: string, call: Promise<R>): Promise<R> {
  let answer: R;
  // While gRPC waits to connect again, none of its timers keeps the process alive.
  const hold = setInterval(() => undefined, TIMEOUT_MS);
  try {
    answer = await call;
  } catch (cause) {
    throw new ExpError('WORLD_UNAVAILABLE', `milvus ${what}`, firstLine(cause), { cause });
  } finally {
    clearInterval(hold);
  }
  const outer = answer as Status & { status?: Status };
  const { error_code, code, reason } = outer.status ?? outer;
  const isFailure =
    (code !== undefined && code !== 0) || (error_code !== undefined && error_code !== 'Success' && error_code !== 0);
  if (isFailure) throw new ExpError('WORLD_UNAVAILABLE', `milvus ${what}`, reason || `code ${code ?? error_code}`);
  return answer;
}

function firstLine(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).split('\n')[0]?.slice(0, 300) ?? '';
}
