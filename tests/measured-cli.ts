/** The built CLI as a process of its own, with what it took. */
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { repoRoot } from '../services/home.ts';

export interface Measured {
  code: number;
  out: string;
  err: string;
  seconds: number;
  cpuSeconds: number;
  /** Largest resident set, as the kernel counted it. */
  mebibytes: number;
}

/** Told on its way out by the process itself, through a pipe of its own: nothing else would know its memory. */
const TELL_USAGE = `data:text/javascript,${encodeURIComponent(
  "import { writeSync } from 'node:fs'; process.on('exit', () => writeSync(3, JSON.stringify(process.resourceUsage())));",
)}`;

export async function measureCli(args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<Measured> {
  const began = performance.now();
  const child = spawn(process.execPath, ['--import', TELL_USAGE, join(repoRoot(), 'dist/cli/main.js'), ...args], {
    cwd: repoRoot(),
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe', 'pipe'],
    timeout: 60_000,
  });
  const [out, err, usage] = child.stdio.slice(1).map(collect);
  const code = await new Promise<number>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (ended) => resolve(ended ?? 1));
  });
  const { maxRSS, userCPUTime, systemCPUTime } = JSON.parse(usage?.() || '{}') as NodeJS.ResourceUsage;
  return {
    code,
    out: out?.() ?? '',
    err: err?.() ?? '',
    seconds: (performance.now() - began) / 1000,
    cpuSeconds: (userCPUTime + systemCPUTime) / 1e6,
    mebibytes: maxRSS / 1024,
  };
}

/** What a stream said, once it has ended. */
function collect(stream: unknown): () => string {
  const chunks: Buffer[] = [];
  (stream as NodeJS.ReadableStream).on('data', (chunk: Buffer) => chunks.push(chunk));
  return () => Buffer.concat(chunks).toString('utf8');
}
