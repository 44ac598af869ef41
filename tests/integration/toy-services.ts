/** A PostgreSQL and a Temporal server of a test's own, which it may kill and start again on the same data. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { connectStack, type Stack } from '../../cli/open-stack.ts';
import { venvBin } from '../../services/home.ts';
import { prepareDatabase, preparePostgres } from '../../services/postgres.ts';
import { postgresBin, postgresDir } from '../../services/programs.ts';

export interface TestService {
  address: string;
  /** SIGKILL, as a crash would. */
  kill(): Promise<void>;
  restart(): Promise<void>;
  /** End it and remove its data. */
  stop(): Promise<void>;
}

export async function startPostgres(): Promise<TestService> {
  const folder = await mkdtemp(join(tmpdir(), 'exp-pg-'));
  const port = await freePort();
  mkdirSync(join(folder, 'data'), { recursive: true });
  const user = await preparePostgres(folder, 'test');
  const [command = '', ...argv] = [
    ...user.prefix,
    postgresBin('postgres'),
    '-D',
    postgresDir(folder),
    '-c',
    'listen_addresses=127.0.0.1',
    '-c',
    `port=${port}`,
    '-c',
    'unix_socket_directories=',
    '-c',
    'max_connections=300',
  ];
  const address = `postgresql://exp:test@127.0.0.1:${port}/exp`;
  return service({ folder, address, command, argv, stopSignal: 'SIGINT', ready: () => prepareDatabase(address) });
}

/** What the CLI opens, of PostgreSQL and a folder of artifacts alone: nobody answers at the other addresses. */
export async function connectStore(postgres: string, folder: string): Promise<Stack> {
  const stack = await connectStack({
    temporal: { address: '127.0.0.1:1', namespace: 'default', queuePrefix: 'exp' },
    postgres: { url: postgres },
    milvus: { address: '127.0.0.1:1' },
    mlflow: { url: 'http://127.0.0.1:1' },
    engines: [],
    artifacts: { kind: 'dir', path: join(folder, 'artifacts') },
  });
  if (stack === null) throw new Error(`no PostgreSQL answers at ${postgres}`);
  return stack;
}

export async function startTemporal(): Promise<TestService> {
  const folder = await mkdtemp(join(tmpdir(), 'exp-temporal-'));
  const port = await freePort();
  const address = `127.0.0.1:${port}`;
  const argv = [
    'server',
    'start-dev',
    '--ip',
    '127.0.0.1',
    '--port',
    String(port),
    '--headless',
    '--db-filename',
    join(folder, 'temporal.db'),
    '--log-level',
    'error',
  ];
  return service({
    folder,
    address,
    command: venvBin('temporal'),
    argv,
    stopSignal: 'SIGTERM',
    ready: () => temporalAnswers(address),
  });
}

interface ServiceOptions {
  folder: string;
  address: string;
  command: string;
  argv: string[];
  stopSignal: NodeJS.Signals;
  ready(): Promise<void>;
}

async function service({ folder, address, command, argv, stopSignal, ready }: ServiceOptions): Promise<TestService> {
  let child: ChildProcess;
  const start = async (): Promise<void> => {
    child = spawn(command, argv, { cwd: '/', stdio: 'ignore' });
    await eventually(ready).catch(async (error: unknown) => {
      await end('SIGKILL');
      throw error;
    });
  };
  const end = async (signal: NodeJS.Signals): Promise<void> => {
    const ended = once(child, 'exit');
    if (child.exitCode === null && child.signalCode === null && child.kill(signal)) await ended;
  };
  await start();
  return {
    address,
    kill: () => end('SIGKILL'),
    restart: start,
    async stop() {
      await end(stopSignal);
      await rm(folder, { recursive: true, force: true });
    },
  };
}

async function temporalAnswers(address: string): Promise<void> {
  const { Connection } = await import('@temporalio/client');
  const connection = await Connection.connect({ address, connectTimeout: 2_000 });
  try {
    await connection.workflowService.describeNamespace({ namespace: 'default' });
  } finally {
    await connection.close();
  }
}

async function eventually(attempt: () => Promise<void>): Promise<void> {
  for (const deadline = Date.now() + 30_000; ; ) {
    try {
      return await attempt();
    } catch (error) {
      if (Date.now() > deadline) throw error;
      await sleep(100);
    }
  }
}

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, 'close');
  return port;
}
