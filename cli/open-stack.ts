/** The services a verb talks to, opened once and closed at its end. */
import { join, resolve } from 'node:path';
import type { Client } from '@temporalio/client';
import type { MilvusClient } from '@zilliz/milvus2-sdk-node';
import type { Pool } from 'pg';
import { ArtifactStore } from '../activities/adapters/artifact-store.ts';
import { openBlobStore } from '../activities/adapters/blob-store.ts';
import { loadProfile } from '../plan/profile.ts';
import type { ArtifactRef } from '../schemas/artifact.ts';
import { ExpError } from '../schemas/errors.ts';
import type { Profile } from '../schemas/profile.ts';
import { type Connections, connections, temporalOptions } from '../services/connections.ts';
import { home, repoRoot } from '../services/home.ts';

const CONNECT_MS = 5_000;
/** A service that accepts a connection and then says nothing must not hold a verb for ever. */
const ANSWER_MS = 15_000;

export interface Stack {
  pool: Pool;
  store: ArtifactStore;
  connections: Connections;
  /** Connected on first use. Throws SERVICE_UNREACHABLE when Temporal does not answer within seconds. */
  temporal(): Promise<Client>;
  /** Whether the pages or the index that an artifact describes are still in the services, unchanged. */
  verifyLive(artifact: ArtifactRef): Promise<boolean>;
  close(): Promise<void>;
}

/** The stack of a profile, or null when it is down: never started, or PostgreSQL does not answer. */
export async function openStack(profile: Profile): Promise<Stack | null> {
  let addresses: Connections;
  try {
    addresses = await connections(profile);
  } catch (error) {
    if (error instanceof ExpError && error.code === 'SERVICES_DOWN') return null;
    throw error;
  }
  return connectStack(addresses);
}

/** For verbs that only ask what exists: a plan can be made where a secret of the services is not known. */
export async function openStackToAsk(profile: Profile): Promise<Stack | null> {
  try {
    return await openStack(profile);
  } catch (error) {
    if (error instanceof ExpError && error.code === 'SECRET_MISSING') return null;
    throw error;
  }
}

/** Open services by address; null when PostgreSQL does not answer. */
export async function connectStack(addresses: Connections): Promise<Stack | null> {
  const { default: pg } = await import('pg');
  const pool = new pg.Pool({
    connectionString: addresses.postgres.url,
    connectionTimeoutMillis: CONNECT_MS,
    query_timeout: ANSWER_MS,
    max: 4,
    application_name: 'exp cli',
  });
  // A server that goes away breaks idle connections; the next query opens a new one or says so itself.
  pool.on('error', () => {});
  try {
    await pool.query('select 1');
  } catch (error) {
    await pool.end();
    if (isOutage(error)) return null;
    throw error;
  }
  let client: Promise<Client> | null = null;
  const temporal = (): Promise<Client> => {
    client ??= connectTemporal(addresses.temporal);
    client.catch(() => {
      client = null; // ask again next time
    });
    return client;
  };
  const store = new ArtifactStore(pool, await openBlobStore(addresses.artifacts, join(home(), 'cache', 'blobs')));
  let milvus: MilvusClient | null = null;
  return {
    pool,
    connections: addresses,
    store,
    temporal,
    async verifyLive(artifact) {
      const { connectMilvus } = await import('../environments/world/milvus.ts');
      const { verifyLive } = await import('../activities/verify-live.ts');
      milvus ??= connectMilvus(addresses.milvus);
      return verifyLive({ pool, store, milvus }, artifact);
    },
    async close() {
      const opened = await client?.catch(() => null);
      await Promise.allSettled([pool.end(), opened?.connection.close(), milvus?.closeConnection()]);
    },
  };
}

/** For verbs that need the stack. Throws SERVICES_DOWN (exit 69) and says what to do. */
export async function requireStack(profile: Profile): Promise<Stack> {
  const stack = await openStack(profile);
  if (stack) return stack;
  const remedy = profile.addresses
    ? 'PostgreSQL does not answer at its address'
    : 'its services are not running; run: exp up';
  throw new ExpError('SERVICES_DOWN', `profile ${profile.name}`, remedy);
}

/** A profile by name or path; the embedded one unless EXP_PROFILE says otherwise. */
export function openProfile(nameOrPath: string | undefined): { profile: Profile; ref: string } {
  const given = nameOrPath ?? (process.env['EXP_PROFILE'] || 'local');
  // Workers load it too, from another folder.
  const ref = /[/]|\.ya?ml$/.test(given) ? resolve(given) : given;
  return { profile: loadProfile(ref, join(repoRoot(), 'profiles')), ref };
}

/** Run a verb's work on the open stack of a profile; a service that stops answering meanwhile is exit 69. */
export async function withStack<T>(
  nameOrPath: string | undefined,
  work: (stack: Stack, profile: Profile) => Promise<T>,
): Promise<T> {
  const { profile } = openProfile(nameOrPath);
  const stack = await requireStack(profile);
  try {
    return await work(stack, profile);
  } catch (error) {
    throw asUnreachable(error, profile);
  } finally {
    await stack.close();
  }
}

/** An outage as an answer for the user; anything else as it is. */
export function asUnreachable(cause: unknown, profile: Profile): unknown {
  if (cause instanceof ExpError || !isOutage(cause)) return cause;
  const reason = (cause as Error).message || 'connection refused';
  return new ExpError('SERVICE_UNREACHABLE', `profile ${profile.name}`, `a service stopped answering: ${reason}`, {
    cause,
  });
}

async function connectTemporal(temporal: Connections['temporal']): Promise<Client> {
  const { Client, Connection } = await import('@temporalio/client');
  try {
    const connection = await Connection.connect({ ...temporalOptions(temporal), connectTimeout: CONNECT_MS });
    return new Client({ connection, namespace: temporal.namespace });
  } catch (cause) {
    throw new ExpError(
      'SERVICE_UNREACHABLE',
      `Temporal at ${temporal.address}`,
      'no answer; `exp doctor` looks for the cause',
      { cause },
    );
  }
}

const POSTGRES_OUTAGES = new Set(['57P03', '57P01', '57P02', '08006', '08001', '08004', '53300']);
const SOCKET_OUTAGES = new Set([
  'ECONNREFUSED',
  'ECONNRESET',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'ETIMEDOUT',
  'ENOTFOUND',
  'EPIPE',
]);

/** Whether an error of PostgreSQL's client or Temporal's says that the service is away, not that the request was wrong. */
export function isOutage(error: unknown): boolean {
  if (error instanceof ExpError) return error.code === 'SERVICE_UNREACHABLE' || error.code === 'SERVICES_DOWN';
  const { code, message, cause, errors } = error as {
    code?: unknown;
    message?: string;
    cause?: unknown;
    errors?: unknown[];
  };
  if (typeof code === 'string' && (POSTGRES_OUTAGES.has(code) || SOCKET_OUTAGES.has(code))) return true;
  if (typeof code === 'number' && (code === 14 || code === 4 || code === 1)) return true; // gRPC: unavailable, deadline, cancelled
  if (
    /timeout exceeded|Connection terminated|Query read timeout|server closed the connection|Failed to connect/i.test(
      message ?? '',
    )
  )
    return true;
  if (Array.isArray(errors) && errors.some(isOutage)) return true;
  return cause instanceof Error && isOutage(cause);
}
