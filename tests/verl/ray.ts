/**
 * A real Ray of one node, with its job API behind a token, as a cluster has it: some of its ports listen on every address
 * of the machine whatever it is told.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { RayJobs } from '../../activities/adapters/ray-jobs.ts';
import { ExpError } from '../../schemas/errors.ts';
import { temporaryFolder } from '../temporary-folder.ts';
import { verlBin } from './environment.ts';

export const RAY_TOKEN = 'a-token-of-the-test';

export interface RayNode {
  address: string;
  jobs: RayJobs;
  stop(): Promise<void>;
}

/** Ray refuses ports between 10002 and 19999, which its workers may take. */
async function freePort(): Promise<number> {
  for (;;) {
    const server = createServer().listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as { port: number };
    server.close();
    await once(server, 'close');
    if (port > 20_000) return port;
  }
}

export async function startRay(): Promise<RayNode> {
  const [dashboard, client] = [await freePort(), await freePort()];
  const child = spawn(
    verlBin('ray'),
    [
      ...['start', '--head', '--block', '--num-cpus=1', '--num-gpus=0', '--object-store-memory=80000000'],
      ...['--node-ip-address=127.0.0.1', '--dashboard-host=127.0.0.1', `--dashboard-port=${dashboard}`],
      ...['--port=0', '--min-worker-port=0', '--max-worker-port=0', '--dashboard-agent-listen-port=0'],
      ...[`--ray-client-server-port=${client}`, '--disable-usage-stats'],
      `--temp-dir=${temporaryFolder('exp-ray-')}`,
    ],
    {
      // Its jobs run `python` of this environment; a group of its own, so that all of it can be ended.
      env: {
        ...process.env,
        PATH: `${join(verlBin('ray'), '..')}:${process.env['PATH']}`,
        RAY_AUTH_MODE: 'token',
        RAY_AUTH_TOKEN: RAY_TOKEN,
      },
      stdio: 'ignore',
      detached: true,
    },
  );
  const address = `http://127.0.0.1:${dashboard}`;
  const node = { address, jobs: new RayJobs({ address, token: RAY_TOKEN }), stop: () => end(child) };
  try {
    await untilJobsRun(node.jobs, child);
  } catch (error) {
    await end(child);
    throw error;
  }
  return node;
}

/** The dashboard answers some seconds before the agent that starts jobs is there. */
async function untilJobsRun(jobs: RayJobs, child: ChildProcess): Promise<void> {
  let last: unknown;
  for (const deadline = Date.now() + 150_000; Date.now() < deadline; await sleep(500)) {
    if (child.exitCode !== null) throw new Error(`ray ended with ${child.exitCode}`);
    try {
      return await jobs.submit({ id: 'is-it-there', command: ['true'], env: {} });
    } catch (error) {
      if (!(error instanceof ExpError) || error.code !== 'UNAVAILABLE') throw error;
      last = error;
    }
  }
  throw new Error('Ray starts no jobs', { cause: last });
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode === null && child.signalCode === null) {
    child.kill('SIGTERM'); // it ends its own processes
    await Promise.race([once(child, 'exit'), sleep(20_000)]);
  }
  try {
    process.kill(-(child.pid as number), 'SIGKILL');
  } catch {
    // nothing is left of the group
  }
}
