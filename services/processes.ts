/** What runs for a stack, read from /proc: a pid alone says nothing, since pids come again and zombies stay. */
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, readlinkSync, realpathSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

export interface ProcessInfo {
  pid: number;
  group: number;
  session: number;
  /** Clock ticks after boot; with the pid it names one process for good. */
  startTime: string;
  command: string;
}

export interface StackProcess extends ProcessInfo {
  /** Program under which it was started: `postgres`, `worker-gpu`, `supervisord` … */
  service: string;
}

/** Processes of a stack carry this in their environment as EXP_STACK; a home has one id by whatever path it is reached. */
export function stackId(homeDir: string): string {
  return createHash('sha256').update(realpathSync(homeDir)).digest('hex').slice(0, 16);
}

/** Undefined when there is no such process, or only its zombie. */
export function readProcess(pid: number): ProcessInfo | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // The name in parentheses may hold spaces and parentheses.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    if (fields[0] === 'Z' || fields[0] === 'X') return undefined;
    return {
      pid,
      group: Number(fields[2]),
      session: Number(fields[3]),
      startTime: fields[19] ?? '',
      command: readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ').trim().slice(0, 160),
    };
  } catch {
    return undefined;
  }
}

export function isAlive({ pid, startTime }: Pick<ProcessInfo, 'pid' | 'startTime'>): boolean {
  return readProcess(pid)?.startTime === startTime;
}

/** All living processes that were started for a stack, in whatever session or group they are now. */
export function stackProcesses(home: string): StackProcess[] {
  const id = stackId(home);
  const groups = recordedGroups(home);
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
    .flatMap((name) => {
      const info = readProcess(Number(name));
      const service = info && (groups.get(info.group) ?? serviceByMark(info.pid, id, join(home, 'data', 'postgres')));
      return info === undefined || service === undefined ? [] : [{ ...info, service }];
    });
}

/** PostgreSQL's processes overwrite their environment with titles and lead their own groups; they work in its data. */
function serviceByMark(pid: number, id: string, postgresData: string): string | undefined {
  try {
    const environment = readFileSync(`/proc/${pid}/environ`, 'latin1').split('\0');
    if (environment.includes(`EXP_STACK=${id}`)) {
      return environment.find((entry) => entry.startsWith('EXP_SERVICE='))?.slice('EXP_SERVICE='.length);
    }
    return readlinkSync(`/proc/${pid}/cwd`) === postgresData ? 'postgres' : undefined;
  } catch {
    return undefined; // gone, or another user's
  }
}

/** A variable of a running process, as it was started; undefined when it may not be looked into. */
export function environmentOf(pid: number, name: string): string | undefined {
  try {
    const entries = readFileSync(`/proc/${pid}/environ`, 'utf8').split('\0');
    return entries.find((entry) => entry.startsWith(`${name}=`))?.slice(name.length + 1);
  } catch {
    return undefined;
  }
}

export const groupFile = (home: string, service: string): string => join(home, 'work', `${service}.group`);

/**
 * Process groups that launch.py recorded: vLLM's processes overwrite their environment too, but keep their group. A leader
 * with another start time is a stranger; the number of a group that still has members is never given out again.
 */
function recordedGroups(home: string): Map<number, string> {
  const files = existsSync(join(home, 'work'))
    ? readdirSync(join(home, 'work')).filter((name) => name.endsWith('.group'))
    : [];
  const groups = new Map<number, string>();
  for (const name of files) {
    const [group = '', startTime] = readFileSync(join(home, 'work', name), 'ascii')
      .trim()
      .split(' ');
    const leader = readProcess(Number(group));
    if (leader === undefined || leader.startTime === startTime)
      groups.set(Number(group), name.slice(0, -'.group'.length));
  }
  return groups;
}

/**
 * Ask processes to end, wait, then kill the rest, and wait until /proc shows none of them.
 * Returns those that had to be killed; throws when one outlives even that.
 */
export async function endProcesses(
  processes: readonly ProcessInfo[],
  { graceMs, signal = 'SIGTERM' }: { graceMs: number; signal?: NodeJS.Signals },
): Promise<ProcessInfo[]> {
  for (const process of processes) send(process, signal);
  const stubborn = await survivors(processes, graceMs);
  for (const process of stubborn) send(process, 'SIGKILL');
  const left = await survivors(stubborn, 10_000);
  if (left.length > 0) throw new Error(`process ${left.map(({ pid }) => pid).join(', ')} does not end`);
  return stubborn;
}

function send(process_: ProcessInfo, signal: NodeJS.Signals): void {
  if (!isAlive(process_)) return;
  try {
    process.kill(process_.pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

async function survivors(processes: readonly ProcessInfo[], withinMs: number): Promise<ProcessInfo[]> {
  const deadline = performance.now() + withinMs;
  let alive = processes.filter(isAlive);
  while (alive.length > 0 && performance.now() < deadline) {
    await sleep(50);
    alive = alive.filter(isAlive);
  }
  return alive;
}
