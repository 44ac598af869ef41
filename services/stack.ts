/** Starting and stopping the embedded stack. */
import { spawn } from 'node:child_process';
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { ExpError } from '../schemas/errors.ts';
import type { Profile } from '../schemas/profile.ts';
import { buildDigest } from './build-digest.ts';
import { type Connections, embedded } from './connections.ts';
import { python } from './home.ts';
import { withLock } from './lock.ts';
import { logTail } from './log-tail.ts';
import { isFree, ownerOf, planPorts } from './ports.ts';
import { prepareDatabase, preparePostgres, trainerLeases } from './postgres.ts';
import {
  endProcesses,
  groupFile,
  type ProcessInfo,
  readProcess,
  type StackProcess,
  stackId,
  stackProcesses,
} from './processes.ts';
import { isWorker, type Program, postgresDir, programs, SERVICES, type ServiceName, WORKERS } from './programs.ts';
import { probe, READY_WITHIN } from './readiness.ts';
import {
  newPassword,
  type PortName,
  readServicesFile,
  type ServicesFile,
  servicesPath,
  writeServicesFile,
} from './services-file.ts';
import {
  confPath,
  makeSocketDir,
  pidPath,
  programDocument,
  programPath,
  renderConf,
  socketPath,
} from './supervisor-conf.ts';
import { type ProgramState, SupervisorClient } from './supervisor-rpc.ts';

export interface UpOptions {
  home: string;
  profile: Profile;
  /** Name or path by which workers load the same profile. */
  profileRef: string;
  /** All of them when absent. */
  only?: readonly ServiceName[];
  /** Return while the engine still loads; who needs it waits for it. */
  waitForEngine?: boolean;
  report(line: string): void;
  signal?: AbortSignal;
}

/** Start what is not running, restart what runs older code or another configuration, and wait until all is ready. */
export async function up(options: UpOptions): Promise<Connections> {
  const { report } = options;
  return storageErrors(options.home, async () => {
    mkdirSync(options.home, { recursive: true });
    const home = realpathSync(options.home);
    const waiting = (): void => report('another exp starts or stops these services; waiting for it');
    return withLock(`stack-${stackId(home)}`, waiting, () => upLocked({ ...options, home }));
  });
}

async function upLocked(options: UpOptions): Promise<Connections> {
  const { home, profile, profileRef, report } = options;
  for (const folder of [
    'data',
    'data/milvus',
    'data/mlflow-artifacts',
    'artifacts',
    'cache',
    'logs',
    'work',
    'programs',
  ]) {
    mkdirSync(join(home, folder), { recursive: true });
  }
  const stack = stackId(home);
  const supervisor = new SupervisorClient(makeSocketDir(stack));
  const isUp = await supervisor.isUp();
  if (!isUp) await endOrphans(home, report);

  const file = await settlePorts(home, isUp ? await runningServices(supervisor) : new Set(), report);
  const user = await preparePostgres(home, file.passwords.postgres);
  const all = programs({ home, stack, profile, profileRef, file, build: buildDigest(), postgresPrefix: user.prefix });
  writeConfiguration(home, stack, all);
  if (isUp) await applyChanges(supervisor, report);
  else await startSupervisord(home, stack, supervisor);

  const wanted = options.only ?? SERVICES;
  const connections = embedded(profile, file, home);
  await startAndWait(
    supervisor,
    wanted.filter((name) => !isWorker(name)),
    connections,
    options,
  );
  if (wanted.includes('postgres')) await prepareDatabase(connections.postgres.url);
  await startAndWait(supervisor, wanted.filter(isWorker), connections, options);
  return connections;
}

/** A supervisord that was killed leaves its programs running, unsupervised. */
async function endOrphans(home: string, report: (line: string) => void): Promise<void> {
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

async function runningServices(supervisor: SupervisorClient): Promise<Set<PortName>> {
  const running = (await supervisor.programs()).filter(({ pid }) => pid > 0).map(({ name }) => name);
  return new Set([...running, ...(running.includes('temporal') ? ['temporal_ui'] : [])] as PortName[]);
}

async function settlePorts(
  home: string,
  ours: ReadonlySet<PortName>,
  report: (line: string) => void,
): Promise<ServicesFile> {
  const kept = readServicesFile(home);
  const { ports, moved, blocked } = await planPorts(kept?.ports ?? {}, ours, isFree);
  const holder = (port: number): string => {
    const owner = ownerOf(port);
    return owner === undefined ? 'another process' : `process ${owner.pid} (${owner.command})`;
  };
  const [first] = blocked;
  if (first !== undefined) {
    throw new ExpError(
      'PORT_TAKEN',
      `${servicesPath(home)}: ports.${first.name}`,
      `port ${first.port} is taken by ${holder(first.port)}; end it, or remove ports.${first.name} from that file to choose another port (links to earlier runs will then be wrong)`,
    );
  }
  for (const { name, from, to } of moved)
    report(`port ${from} of ${name} is taken by ${holder(from)}; using ${to} from now on`);
  const file: ServicesFile = { version: 1, ports, passwords: kept?.passwords ?? { postgres: newPassword() } };
  writeServicesFile(home, file);
  return file;
}

function writeConfiguration(home: string, stack: string, all: readonly Program[]): void {
  for (const program of all) replaceFile(programPath(home, program.service), programDocument(home, program).text);
  replaceFile(confPath(home), renderConf(home, stack, all));
}

function replaceFile(path: string, text: string): void {
  writeFileSync(`${path}.new`, text, { mode: 0o600 });
  renameSync(`${path}.new`, path);
}

async function startSupervisord(home: string, stack: string, supervisor: SupervisorClient): Promise<void> {
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
async function applyChanges(supervisor: SupervisorClient, report: (line: string) => void): Promise<void> {
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
    const state = await stateOf(supervisor, name);
    if (STOPPED.has(state.statename)) return;
    if (state.statename === 'BACKOFF') await supervisor.stop(name);
    await sleep(100);
  }
}

async function stateOf(supervisor: SupervisorClient, name: string): Promise<ProgramState> {
  const state = (await supervisor.programs()).find((program) => program.name === name);
  if (state === undefined) throw new Error(`supervisord does not know ${name}`);
  return state;
}

async function startAndWait(
  supervisor: SupervisorClient,
  names: readonly ServiceName[],
  connections: Connections,
  options: UpOptions,
): Promise<void> {
  await Promise.all(names.map((name) => supervisor.start(name)));
  const waited = names.filter((name) => name !== 'engine' || options.waitForEngine !== false);
  // The first that fails ends the waiting for the others.
  const failed = new AbortController();
  const signal = AbortSignal.any([failed.signal, ...(options.signal ? [options.signal] : [])]);
  const waits = waited.map((name) => waitUntilReady(supervisor, name, connections, { ...options, signal }));
  try {
    await Promise.all(waits);
  } catch (error) {
    failed.abort();
    await Promise.allSettled(waits);
    throw error;
  }
}

async function waitUntilReady(
  supervisor: SupervisorClient,
  name: ServiceName,
  connections: Connections,
  { home, profile, report, signal }: UpOptions,
): Promise<void> {
  const began = performance.now();
  const seconds = (): number => (performance.now() - began) / 1000;
  let pid = 0;
  let starts = 0;
  let reason = '';
  let noted = 0;
  while (seconds() < READY_WITHIN[name]) {
    signal?.throwIfAborted();
    const state = await stateOf(supervisor, name);
    if (state.pid > 0 && state.pid !== pid) {
      pid = state.pid;
      starts += 1;
    }
    const CRASHES_ENDURED = 4;
    if (state.statename === 'FATAL' || starts > CRASHES_ENDURED) {
      reason = state.spawnerr || 'it ends again and again';
      break;
    }
    try {
      if (state.statename !== 'RUNNING') throw new Error(state.statename.toLowerCase());
      await probe(name, { connections, profile, startedAt: state.start * 1000 });
      report(`${name.padEnd(14)} ready ${seconds() < 0.15 ? '' : `after ${seconds().toFixed(1)} s`}`.trimEnd());
      return;
    } catch (error) {
      reason = (error as Error).message || String(error);
    }
    if (seconds() - noted > 15) {
      noted = seconds();
      report(`${name.padEnd(14)} … ${Math.round(noted)} s (${reason})`);
    }
    await sleep(name === 'engine' ? 500 : 100);
  }
  const tail = logTail(join(home, 'logs', `${name}.log`), 12);
  throw new ExpError(
    tail.some((line) => /No space left on device|database or disk is full/.test(line))
      ? 'STORAGE_FULL'
      : 'SERVICE_NOT_READY',
    name,
    [
      `is not ready after ${Math.round(seconds())} s: ${reason}`,
      `last lines of ${join(home, 'logs', `${name}.log`)}:`,
      ...tail.map((line) => `  ${line}`),
    ].join('\n'),
  );
}

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

/** A full disk shows in many calls; it is one answer for the user. */
async function storageErrors<T>(home: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOSPC') {
      throw new ExpError(
        'STORAGE_FULL',
        home,
        'the file system is full; free some space (exp doctor shows how much is used where) and try again',
        { cause: error },
      );
    }
    throw error;
  }
}

/** What runs now, for `exp status` and `exp doctor`; undefined when no supervisor answers. */
export async function serviceStates(home: string): Promise<ProgramState[] | undefined> {
  if (!existsSync(home)) return undefined;
  const supervisor = new SupervisorClient(socketPath(stackId(home)));
  return (await supervisor.isUp()) ? supervisor.programs() : undefined;
}

/** Whether everything runs, and the workers run the code of this checkout. */
export async function isUpToDate(home: string): Promise<boolean> {
  const states = await serviceStates(home);
  if (states === undefined) return false;
  const running = new Map(
    states.filter(({ statename }) => statename === 'RUNNING').map(({ name, pid }) => [name, pid]),
  );
  const build = buildDigest();
  return (
    SERVICES.every((name) => running.has(name)) &&
    WORKERS.every((name) => environmentOf(running.get(name) ?? 0, 'EXP_BUILD') === build)
  );
}
