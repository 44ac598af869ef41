/** A real MLflow server that a test may stop and start again, and a look into its SQLite store. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { mkdtempSync, openSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { python, venvBin } from '../../services/home.ts';

export interface MlflowServer {
  url: string;
  start(): Promise<void>;
  stop(): Promise<void>;
  /** Rows of a query on the store's tables. */
  query(sql: string): Promise<unknown[][]>;
  /** Root of the proxied artifacts. */
  artifacts: string;
  close(): Promise<void>;
}

export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Not started yet. Data, log and artifacts lie in a folder of its own, removed by `close`. */
export async function createMlflowServer(): Promise<MlflowServer> {
  const folder = mkdtempSync(join(tmpdir(), 'exp-mlflow-'));
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const database = join(folder, 'mlflow.db');
  const artifacts = join(folder, 'artifacts');
  let child: ChildProcess | undefined;

  const start = async (): Promise<void> => {
    const log = openSync(join(folder, 'log'), 'a');
    child = spawn(
      venvBin('mlflow'),
      [
        ...['server', '--host', '127.0.0.1', '--port', String(port), '--workers', '1', '--serve-artifacts'],
        ...['--backend-store-uri', `sqlite:///${database}`, '--artifacts-destination', artifacts],
      ],
      { cwd: folder, stdio: ['ignore', log, log], detached: true },
    );
    for (let tries = 0; tries < 600; tries++) {
      const ok = await fetch(`${url}/health`).then(
        (response) => response.ok,
        () => false,
      );
      if (ok) return;
      if (child.exitCode !== null) break;
      await sleep(200);
    }
    throw new Error(`MLflow did not come up; see ${folder}/log`);
  };

  const stop = async (): Promise<void> => {
    const stopped = child;
    child = undefined;
    if (!stopped?.pid || stopped.exitCode !== null) return;
    const exited = new Promise((resolve) => stopped.once('exit', resolve));
    process.kill(-stopped.pid, 'SIGKILL'); // the launcher and its uvicorn worker
    await exited;
  };

  const query = async (sql: string): Promise<unknown[][]> => {
    const script =
      'import json,sqlite3,sys; print(json.dumps(sqlite3.connect(sys.argv[1]).execute(sys.argv[2]).fetchall()))';
    const { stdout } = await promisify(execFile)(python(), ['-c', script, database, sql], { maxBuffer: 64 << 20 });
    return JSON.parse(stdout) as unknown[][];
  };

  const close = async (): Promise<void> => {
    await stop();
    await rm(folder, { recursive: true, force: true });
  };
  return { url, start, stop, query, artifacts, close };
}

/** Forwards to a server and, for every request that `spoil` picks, lets it be carried out but answers 500. */
export async function spoiltProxy(
  target: string,
  spoil: (request: number) => boolean,
): Promise<{ url: string; server: Server }> {
  let requests = 0;
  const forward = async (incoming: IncomingMessage, outgoing: ServerResponse): Promise<void> => {
    const chunks: Buffer[] = [];
    for await (const chunk of incoming) chunks.push(chunk as Buffer);
    const answer = await fetch(`${target}${incoming.url}`, {
      method: incoming.method ?? 'GET',
      headers: { 'content-type': incoming.headers['content-type'] ?? 'application/json' },
      ...(chunks.length > 0 && { body: Buffer.concat(chunks) }),
    });
    const body = Buffer.from(await answer.arrayBuffer());
    requests += 1;
    outgoing.writeHead(spoil(requests) ? 500 : answer.status, { 'content-type': 'application/json' }).end(body);
  };
  const server = createServer((incoming, outgoing) => void forward(incoming, outgoing));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, server };
}
