/** The embedded stack: bring it up, and say how it is. */
import { existsSync, mkdirSync, realpathSync } from 'node:fs';
import { join } from 'node:path';
import { ExpError } from '../schemas/errors.ts';
import type { Profile } from '../schemas/profile.ts';
import { buildDigest } from './build-digest.ts';
import { type Connections, embedded } from './connections.ts';
import { withLock } from './lock.ts';
import { isFree, ownerOf, planPorts } from './ports.ts';
import { prepareDatabase, preparePostgres } from './postgres.ts';
import { environmentOf, stackId } from './processes.ts';
import { isWorker, programs, SERVICES, type ServiceName, WORKERS } from './programs.ts';
import { applyChanges, startSupervisord, writeConfiguration } from './run-supervisor.ts';
import {
  newPassword,
  type PortName,
  readServicesFile,
  type ServicesFile,
  servicesPath,
  writeServicesFile,
} from './services-file.ts';
import { type StartOptions, startAndWait } from './start-programs.ts';
import { endOrphans } from './stop-stack.ts';
import { makeSocketDir, socketPath } from './supervisor-conf.ts';
import { type ProgramState, SupervisorClient } from './supervisor-rpc.ts';

export interface UpOptions extends StartOptions {
  profile: Profile;
  /** Name or path by which workers load the same profile. */
  profileRef: string;
  /** All of them when absent. */
  only?: readonly ServiceName[];
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

const FOLDERS = ['data/milvus', 'data/mlflow-artifacts', 'artifacts', 'cache', 'logs', 'work', 'programs'];

async function upLocked(options: UpOptions): Promise<Connections> {
  const { home, profile, profileRef, report } = options;
  for (const folder of FOLDERS) mkdirSync(join(home, folder), { recursive: true });
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

/** A full disk shows in many calls; it is one answer for the user. */
async function storageErrors<T>(home: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOSPC') {
      throw new ExpError(
        'STORAGE_FULL',
        home,
        'the file system is full; free some space (exp doctor shows how much there is) and try again',
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
