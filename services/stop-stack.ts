/** Ending what runs for a home, with or without its supervisor, and verifying that nothing is left. */
import { existsSync, readFileSync, realpathSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { ExpError } from '../schemas/errors.ts';
import type { Profile } from '../schemas/profile.ts';
import { embedded } from './connections.ts';
import { withLock } from './lock.ts';
import { trainerLeases } from './postgres.ts';
import {
  endProcesses,
  groupFile,
  type ProcessInfo,
  readProcess,
  type StackProcess,
  stackId,
  stackProcesses,
} from './processes.ts';
import { isWorker, postgresDir, SERVICES } from './programs.ts';
import { readServicesFile } from './services-file.ts';
import { pidPath, socketPath } from './supervisor-conf.ts';
import { SupervisorClient } from './supervisor-rpc.ts';

export interface DownOptions {
  home: string;
  profile: Profile;
  report(line: string): void;
}

/** Stop everything of this home, whether or not a supervisor still answers, and verify that nothing is left. */
export async function down({ home: givenHome, profile, report }: DownOptions): Promise<void> {
  if (!existsSync(givenHome)) return report('nothing was ever started here');
  const home = realpathSync(givenHome);
  const stack = stackId(home);
  const waiting = (): void => report('another exp starts or stops these services; waiting for it');
  await withLock(`stack-${stack}`, waiting, async () => {
    const began = performance.now();
    const before = stackProcesses(home);
    const supervisor = new SupervisorClient(socketPath(stack));
    const trainers = await leasedTrainers(home, profile);
    if (await supervisor.isUp()) await stopBySupervisor(supervisor, home, report);
    const left = [...stackProcesses(home), ...trainers.map((trainer) => ({ ...trainer, service: 'trainer' }))];
    const killed = await endInOrder(left, 10_000);
    for (const { pid, command } of killed)
      report(`killed process ${pid}, which did not end by itself: ${command.slice(0, 100)}`);
    const after = stackProcesses(home);
    if (after.length > 0)
      throw new ExpError(
        'SERVICE_NOT_READY',
        'exp down',
        `still running: ${after.map(({ pid, service }) => `${service} ${pid}`).join(', ')}`,
      );
    removeStaleFiles(home, stack);
    report(
      before.length === 0
        ? 'nothing was running'
        : `stopped ${before.length} processes in ${((performance.now() - began) / 1000).toFixed(1)} s; nothing is left`,
    );
  });
}

async function leasedTrainers(home: string, profile: Profile): Promise<ProcessInfo[]> {
  const file = readServicesFile(home);
  if (file === undefined) return [];
  try {
    const leases = await trainerLeases(embedded(profile, file, home).postgres.url);
    return leases.flatMap(({ pid, startTime }) => {
      const process = readProcess(pid);
      return process?.startTime === startTime ? [process] : [];
    });
  } catch {
    return []; // PostgreSQL is down; trainers started by our workers carry our mark too
  }
}

/** Workers first, with a short time to drain: what they leave undone is retried when they are up again. */
async function stopBySupervisor(
  supervisor: SupervisorClient,
  home: string,
  report: (line: string) => void,
): Promise<void> {
  const supervisord = Number(readFileSync(pidPath(home), 'utf8'));
  const process = readProcess(supervisord);
  const states = await supervisor.programs();
  const workers = states.filter(({ name, pid }) => isWorker(name) && pid > 0);
  if (workers.length > 0) {
    report('workers drain');
    await Promise.all(workers.map(({ name }) => supervisor.stop(name)));
    await endProcesses(
      workers.flatMap(({ pid }) => readProcess(pid) ?? []),
      { graceMs: 20_000 },
    );
  }
  await supervisor.shutdown();
  if (process !== undefined) await endProcesses([process], { graceMs: 45_000 });
}

function removeStaleFiles(home: string, stack: string): void {
  const groups = SERVICES.map((service) => groupFile(home, service));
  for (const path of [socketPath(stack), pidPath(home), join(postgresDir(home), 'postmaster.pid'), ...groups])
    rmSync(path, { force: true });
}

/** A supervisord that was killed leaves its programs running, unsupervised. */
export async function endOrphans(home: string, report: (line: string) => void): Promise<void> {
  const all = stackProcesses(home);
  const supervisors = new Set(all.filter(({ service }) => service === 'supervisord').map(({ pid }) => pid));
  const orphans = all.filter((process) => !isTrainer(process, supervisors));
  if (orphans.length === 0) return;
  report(`ending ${orphans.length} processes that a killed supervisor left behind`);
  await endInOrder(orphans, 20_000);
}

/** What a worker started in a session of its own is adopted again by the next worker. */
function isTrainer({ service, session }: StackProcess, supervisors: ReadonlySet<number>): boolean {
  return isWorker(service) && readProcess(session) !== undefined && !supervisors.has(session);
}

/** The supervisor first, so that it restarts nothing; PostgreSQL last and by SIGINT, so that it closes its files in order. */
async function endInOrder(processes: readonly StackProcess[], graceMs: number): Promise<ProcessInfo[]> {
  const by = (test: (service: string) => boolean): StackProcess[] => processes.filter(({ service }) => test(service));
  return [
    ...(await endProcesses(
      by((service) => service === 'supervisord'),
      { graceMs: 500, signal: 'SIGKILL' },
    )),
    ...(await endProcesses(
      by((service) => service !== 'supervisord' && service !== 'postgres'),
      { graceMs },
    )),
    ...(await endProcesses(
      by((service) => service === 'postgres'),
      { graceMs, signal: 'SIGINT' },
    )),
  ];
}
