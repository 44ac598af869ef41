/** A child process with a time limit, in a group of its own, so that nothing it started outlives it. */
import { spawn } from 'node:child_process';

export interface Ended {
  code: number;
  /** stdout and stderr as they came, unless they went to the terminal. */
  output: string;
  seconds: number;
  timedOut: boolean;
}

export interface RunOptions {
  cwd: string;
  timeoutMs: number;
  /** `inherit` shows the output as it comes, `capture` keeps it. */
  output: 'inherit' | 'capture';
  env?: NodeJS.ProcessEnv;
}

export async function runCommand(command: string, args: readonly string[], options: RunOptions): Promise<Ended> {
  const began = performance.now();
  const stdio = options.output === 'inherit' ? ('inherit' as const) : ('pipe' as const);
  const child = spawn(command, args, {
    cwd: options.cwd,
    env: { ...process.env, ...options.env },
    stdio: ['ignore', stdio, stdio],
    detached: true,
  });
  const chunks: Buffer[] = [];
  child.stdout?.on('data', (chunk: Buffer) => chunks.push(chunk));
  child.stderr?.on('data', (chunk: Buffer) => chunks.push(chunk));

  let timedOut = false;
  const timer = setTimeout(() => {
    timedOut = true;
    killGroup(child.pid, 'SIGKILL');
  }, options.timeoutMs);
  if (running.size === 0) for (const signal of STOP_SIGNALS) process.once(signal, stopAll);
  running.add(child.pid);
  try {
    const code = await new Promise<number>((resolve) => {
      child.once('error', (error) => {
        chunks.push(Buffer.from(`${error.message}\n`));
        resolve(127);
      });
      child.once('close', (exitCode) => resolve(exitCode ?? 1));
    });
    const output = Buffer.concat(chunks).toString('utf8');
    return { code, output, seconds: (performance.now() - began) / 1000, timedOut };
  } finally {
    clearTimeout(timer);
    running.delete(child.pid);
    if (running.size === 0) for (const signal of STOP_SIGNALS) process.off(signal, stopAll);
  }
}

const STOP_SIGNALS = ['SIGINT', 'SIGTERM'] as const;
const running = new Set<number | undefined>();

/** Whoever stops us stops what we started. */
function stopAll(): void {
  for (const pid of running) killGroup(pid, 'SIGTERM');
  process.exit(130);
}

function killGroup(pid: number | undefined, signal: NodeJS.Signals): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, signal);
  } catch {
    // it has ended by itself
  }
}
