/** supervisord itself: its configuration on disk, its start, and taking over a changed configuration. */
import { spawn } from 'node:child_process';
import { closeSync, openSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { ExpError } from '../schemas/errors.ts';
import { python } from './home.ts';
import { logTail } from './log-tail.ts';
import { isWorker, type Program } from './programs.ts';
import { confPath, pidPath, programDocument, programPath, renderConf, socketPath } from './supervisor-conf.ts';
import type { SupervisorClient } from './supervisor-rpc.ts';

export function writeConfiguration(home: string, stack: string, all: readonly Program[]): void {
  for (const program of all) replaceFile(programPath(home, program.service), programDocument(home, program).text);
  replaceFile(confPath(home), renderConf(home, stack, all));
}

function replaceFile(path: string, text: string): void {
  writeFileSync(`${path}.new`, text, { mode: 0o600 });
  renameSync(`${path}.new`, path);
}

export async function startSupervisord(home: string, stack: string, supervisor: SupervisorClient): Promise<void> {
  rmSync(socketPath(stack), { force: true });
  rmSync(pidPath(home), { force: true });
  const output = openSync(join(home, 'logs', 'supervisord.out.log'), 'w');
  const child = spawn(python(), ['-m', 'supervisor.supervisord', '-c', confPath(home)], {
    detached: true, // a session of its own: it outlives this terminal
    stdio: ['ignore', output, output],
    cwd: home,
    env: { ...process.env, EXP_STACK: stack, EXP_SERVICE: 'supervisord', EXP_HOME: home },
  });
  closeSync(output);
  child.unref();
  const ended = new Promise<string>((resolve) => {
    child.once('error', (error) => resolve(error.message));
    child.once('exit', (code) => resolve(`exit ${code}`));
  });
  for (let waited = 0; waited < 20_000; waited += 50) {
    if (await supervisor.isUp()) return;
    const how = await Promise.race([ended, sleep(50, undefined)]);
    if (how !== undefined) {
      throw new ExpError(
        'SERVICE_NOT_READY',
        'supervisord',
        `ended at once (${how}): ${logTail(join(home, 'logs', 'supervisord.out.log'), 3).join(' | ')}`,
      );
    }
  }
  throw new ExpError('SERVICE_NOT_READY', 'supervisord', 'does not answer within 20 s');
}

/** Programs whose command, environment or code changed are stopped (workers drain) and known anew. */
export async function applyChanges(supervisor: SupervisorClient, report: (line: string) => void): Promise<void> {
  const { added, changed, removed } = await supervisor.reloadConfig();
  const before = new Map((await supervisor.programs()).map((program) => [program.name, program]));
  const restarting = [...changed, ...removed].filter((name) => (before.get(name)?.pid ?? 0) > 0);
  for (const name of restarting)
    report(`${name}: ${isWorker(name) ? 'runs older code; draining' : 'has another configuration now; stopping'}`);
  await Promise.all(restarting.map((name) => supervisor.stop(name)));
  for (const name of [...changed, ...removed]) {
    await untilStopped(supervisor, name);
    await supervisor.removeGroup(name);
  }
  for (const name of [...changed, ...added]) await supervisor.addGroup(name);
}

async function untilStopped(supervisor: SupervisorClient, name: string): Promise<void> {
  const STOPPED = new Set(['STOPPED', 'EXITED', 'FATAL']);
  for (;;) {
    const state = await supervisor.program(name);
    if (STOPPED.has(state.statename)) return;
    if (state.statename === 'BACKOFF') await supervisor.stop(name);
    await sleep(100);
  }
}
