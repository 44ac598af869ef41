/** The embedded PostgreSQL before and after its start: cluster, database, tables. */
import { execFile } from 'node:child_process';
import { chownSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import pg from 'pg';
import { ExpError } from '../schemas/errors.ts';
import { repoRoot } from './home.ts';
import { type PostgresUser, postgresUser } from './postgres-user.ts';
import { postgresBin, postgresDir } from './programs.ts';

/** Make the cluster unless it is there; a half-made one of a killed call is made anew. */
export async function preparePostgres(home: string, password: string): Promise<PostgresUser> {
  const data = postgresDir(home);
  const user = postgresUser([join(home, 'data'), postgresBin('postgres')]);
  if (existsSync(data)) {
    const { uid, gid } = statSync(data);
    if (user.ids !== undefined && user.ids.uid !== uid) {
      throw new ExpError(
        'SETUP_FAILED',
        data,
        `belongs to user ${uid}:${gid}, but PostgreSQL runs as ${user.ids.uid} here; chown -R it, or move it away`,
      );
    }
    return user;
  }
  const fresh = `${data}.new`;
  const passwordFile = `${data}.password`;
  rmSync(fresh, { recursive: true, force: true });
  mkdirSync(fresh, { recursive: true, mode: 0o700 });
  writeFileSync(passwordFile, password, { mode: 0o600 });
  if (user.ids !== undefined) {
    chownSync(fresh, user.ids.uid, user.ids.gid);
    chownSync(passwordFile, user.ids.uid, user.ids.gid);
  }
  try {
    await initdb(user, fresh, passwordFile);
    renameSync(fresh, data);
  } finally {
    rmSync(passwordFile, { force: true });
  }
  return user;
}

async function initdb(user: PostgresUser, data: string, passwordFile: string): Promise<void> {
  const [command = '', ...argv] = [
    ...user.prefix,
    postgresBin('initdb'),
    '--pgdata',
    data,
    '--username',
    'exp',
    '--pwfile',
    passwordFile,
    '--auth',
    'scram-sha-256',
    '--encoding',
    'UTF8',
    '--locale',
    'C',
    '--no-instructions',
  ];
  try {
    await promisify(execFile)(command, argv, { cwd: '/' });
  } catch (cause) {
    const { stderr = '' } = cause as { stderr?: string };
    const code = /No space left/.test(stderr) ? 'STORAGE_FULL' : 'SETUP_FAILED';
    throw new ExpError(code, data, `initdb failed: ${stderr.trim().split('\n').slice(-3).join(' | ')}`, { cause });
  }
}

/** Database and tables; safe to run by several processes at once and at every start. */
export async function prepareDatabase(url: string): Promise<void> {
  await createDatabase(url);
  await withClient(url, async (client) => {
    await client.query('select pg_advisory_lock(7405160)');
    await client.query(readFileSync(join(repoRoot(), 'services', 'schema.sql'), 'utf8'));
  });
}

async function createDatabase(url: string): Promise<void> {
  const maintenance = new URL(url);
  const name = maintenance.pathname.slice(1);
  maintenance.pathname = '/postgres';
  await withClient(maintenance.href, async (client) => {
    const { rowCount } = await client.query('select 1 from pg_database where datname = $1', [name]);
    if (rowCount === 0) {
      await client.query(`create database ${client.escapeIdentifier(name)}`).catch((error: { code?: string }) => {
        const ALREADY_THERE = new Set(['42P04', '23505']); // another process was quicker
        if (!ALREADY_THERE.has(error.code ?? '')) throw error;
      });
    }
  });
}

export interface TrainerLease {
  resource: string;
  pid: number;
  startTime: string;
}

/** Trainers lead their own sessions; their pid and start time stand in their leases. */
export async function trainerLeases(url: string): Promise<TrainerLease[]> {
  return withClient(url, async (client) => {
    const { rows } = await client.query<{ resource: string; pid: number; start: string }>(
      `select resource, (state -> 'process' ->> 'pid')::int as pid, state -> 'process' ->> 'startTime' as start
       from leases where resource like 'trainer/%' and state -> 'process' ->> 'startTime' is not null`,
    );
    return rows.map(({ resource, pid, start }) => ({ resource, pid, startTime: start }));
  });
}

export async function withClient<T>(url: string, work: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 10_000, application_name: 'exp' });
  client.on('error', () => undefined); // a server that ends mid-query rejects the query; this event says it once more
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}
