/** What is wrong with this machine, this checkout and its services; each finding says what, where and what to do. */
import { existsSync, readFileSync } from 'node:fs';
import { statfs } from 'node:fs/promises';
import { arch, platform } from 'node:os';
import { dirname, join } from 'node:path';
import { ExpError } from '../schemas/errors.ts';
import type { Profile } from '../schemas/profile.ts';
import { buildDigest } from './build-digest.ts';
import { type Connections, connections, embedded } from './connections.ts';
import { modelsDir, python, repoRoot, setupDir } from './home.ts';
import { logTail } from './log-tail.ts';
import { isLoopback, listeners, ownerOf, socketsOf } from './ports.ts';
import { environmentOf, type StackProcess, stackProcesses } from './processes.ts';
import { isWorker, logPath, modelPath, SERVICES, type ServiceName, WORKERS } from './programs.ts';
import { probe } from './readiness.ts';
import { readServicesFile, servicesPath } from './services-file.ts';
import { isModelCurrent, isVenvCurrent, requirementsPath, SETUP_MODELS } from './setup.ts';
import { serviceStates } from './stack.ts';
import type { ProgramState } from './supervisor-rpc.ts';

export interface Finding {
  level: 'ok' | 'note' | 'problem';
  code: string;
  /** A file, an address, a service. */
  at: string;
  message: string;
  /** What to do; problems have it. */
  remedy?: string;
}

interface Patient {
  home: string;
  profile: Profile;
  states: ProgramState[] | undefined;
  processes: StackProcess[];
}

const ok = (at: string, message: string): Finding => ({ level: 'ok', code: 'OK', at, message });
const note = (code: string, at: string, message: string, remedy?: string): Finding => ({
  level: 'note',
  code,
  at,
  message,
  ...(remedy && { remedy }),
});
const problem = (code: string, at: string, message: string, remedy: string): Finding => ({
  level: 'problem',
  code,
  at,
  message,
  remedy,
});

type Check = (patient: Patient) => Finding[] | Promise<Finding[]>;

const HERE: readonly Check[] = [checkMachine, checkPackages, checkPython, checkModels, checkDisk];
const EMBEDDED: readonly Check[] = [checkPorts, checkServices, checkWorkerCode, checkOrphans, checkSockets];

export async function examine(home: string, profile: Profile): Promise<Finding[]> {
  const states = await serviceStates(home);
  const patient: Patient = { home, profile, states, processes: existsSync(home) ? stackProcesses(home) : [] };
  const checks = [...HERE, ...(profile.addresses === undefined ? EMBEDDED : [checkAddresses])];
  const findings = await Promise.all(checks.map((check) => guarded(check, patient)));
  return findings.flat();
}

/** A check that breaks is a finding too, not the end of the examination. */
async function guarded(check: Check, patient: Patient): Promise<Finding[]> {
  try {
    return await check(patient);
  } catch (error) {
    return [
      problem(
        'CHECK_FAILED',
        check.name,
        (error as Error).message,
        'look at the message; the other checks do not depend on it',
      ),
    ];
  }
}

function checkMachine(): Finding[] {
  const findings: Finding[] = [];
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
  if (major < 20 || (major === 20 && minor < 19)) {
    findings.push(
      problem('NODE_TOO_OLD', process.execPath, `Node.js ${process.versions.node}`, 'install Node.js 20.19 or newer'),
    );
  } else {
    findings.push(ok('Node.js', process.versions.node));
  }
  if (platform() !== 'linux' || arch() !== 'x64') {
    findings.push(
      problem(
        'PLATFORM',
        'machine',
        `${platform()} on ${arch()}`,
        'the embedded services need Linux on x86-64; use a profile with addresses',
      ),
    );
  } else if (!/^flags.*\bavx2\b/m.test(readFileSync('/proc/cpuinfo', 'utf8'))) {
    findings.push(
      problem(
        'PLATFORM',
        '/proc/cpuinfo',
        'this CPU has no AVX2, which the embedded engine needs',
        'use a profile whose engine runs elsewhere',
      ),
    );
  }
  return findings;
}

function checkPackages(): Finding[] {
  const stamp = join(repoRoot(), 'node_modules', '.exp-package-lock.json');
  const current = existsSync(stamp) && readFileSync(stamp).equals(readFileSync(join(repoRoot(), 'package-lock.json')));
  if (current) return [ok('Node packages', 'as the lockfile says')];
  return [
    problem('SETUP_STALE', join(repoRoot(), 'node_modules'), 'not what package-lock.json asks for', 'run: exp setup'),
  ];
}

function checkPython(): Finding[] {
  if (!existsSync(python()))
    return [problem('SETUP_MISSING', python(), 'there is no Python environment', 'run: exp setup')];
  if (!isVenvCurrent())
    return [
      problem(
        'SETUP_STALE',
        dirname(dirname(python())),
        `not what ${requirementsPath()} asks for, or only half made`,
        'run: exp setup',
      ),
    ];
  return [ok('Python environment', 'as requirements.txt says')];
}

function checkModels({ profile }: Patient): Finding[] {
  const findings = SETUP_MODELS.map((name) =>
    isModelCurrent(name)
      ? ok(`model ${name}`, 'made')
      : problem(
          'SETUP_STALE',
          join(modelsDir(), name),
          existsSync(join(modelsDir(), name)) ? 'made by another version of its script or packages' : 'not made yet',
          'run: exp setup',
        ),
  );
  const served = profile.embedded?.engine.model;
  if (served !== undefined && !existsSync(join(modelPath(profile, served), 'config.json'))) {
    findings.push(
      problem(
        'MODEL_MISSING',
        modelPath(profile, served),
        `the engine's model ${served} is not there`,
        'run: exp setup, or correct the profile',
      ),
    );
  }
  return findings;
}

const GIB = 2 ** 30;

async function checkDisk({ home }: Patient): Promise<Finding[]> {
  const folders = [nearestExisting(home), nearestExisting(setupDir())].filter(
    (path, index, all) => all.indexOf(path) === index,
  );
  return Promise.all(folders.map(diskFinding));
}

async function diskFinding(path: string): Promise<Finding> {
  const { bavail, blocks, bsize, ffree, files } = await statfs(path);
  const free = bavail * bsize;
  const size = `${(free / GIB).toFixed(1)} of ${((blocks * bsize) / GIB).toFixed(1)} GiB free`;
  const remedy = 'free some space there, or move the data: set EXP_HOME to a folder on a larger file system';
  if (free < 16 * 2 ** 20)
    return problem('STORAGE_FULL', path, `the file system is full (${Math.floor(free / 2 ** 20)} MiB free)`, remedy);
  if (files > 0 && ffree < 1000) return problem('STORAGE_FULL', path, 'the file system has no inodes left', remedy);
  if (free < 2 * GIB) return problem('STORAGE_LOW', path, `${size}; 2 GiB are the least for a small run`, remedy);
  return ok(`disk ${path}`, size);
}

function nearestExisting(path: string): string {
  let folder = path;
  while (!existsSync(folder)) folder = dirname(folder);
  return folder;
}

/** A port of ours that a stranger holds, whether or not our service tries to run. */
function checkPorts({ home, processes }: Patient): Finding[] {
  const file = readServicesFile(home);
  if (file === undefined) return [];
  const ours = new Set(processes.map(({ pid }) => pid));
  const listening = new Set(listeners().map(({ port }) => port));
  const findings = Object.entries(file.ports).flatMap(([name, port]) => {
    if (!listening.has(port)) return [];
    const owner = ownerOf(port);
    if (owner !== undefined && ours.has(owner.pid)) return [];
    const holder = owner === undefined ? 'a process of another user' : `process ${owner.pid} (${owner.command})`;
    const remedy =
      name === 'mlflow'
        ? `end that process; or remove ports.mlflow from ${servicesPath(home)}, run exp down and exp up (links to earlier runs will then be wrong)`
        : 'end that process; or run exp down and exp up, which chooses another port';
    return [problem('PORT_TAKEN', `127.0.0.1:${port}`, `the port of ${name} is taken by ${holder}`, remedy)];
  });
  return findings.length > 0
    ? findings
    : [
        ok(
          'ports',
          Object.entries(file.ports)
            .map(([name, port]) => `${name} ${port}`)
            .join(', '),
        ),
      ];
}

/** Long enough for a machine that is busy with other things. */
const ANSWER_MS = 15_000;

async function checkServices({ home, profile, states }: Patient): Promise<Finding[]> {
  const file = readServicesFile(home);
  if (states === undefined || file === undefined) {
    const message = file === undefined ? 'were never started here' : 'are not running';
    return [note('SERVICES_DOWN', home, `the services ${message}`, 'exp up starts them; exp submit does so by itself')];
  }
  const addresses = embedded(profile, file, home);
  await import('@temporalio/client'); // loading it stops this process for a while, which must not look like a slow service
  return Promise.all(
    SERVICES.map((name) =>
      serviceFinding(
        name,
        states.find((state) => state.name === name),
        { home, addresses },
      ),
    ),
  );
}

async function serviceFinding(
  name: ServiceName,
  state: ProgramState | undefined,
  { home, addresses }: { home: string; addresses: Connections },
): Promise<Finding> {
  const log = logPath(home, name);
  const lastLine = logTail(log, 1)[0];
  const saying = lastLine === undefined ? '' : `; its log ends: ${lastLine}`;
  if (state === undefined || state.statename === 'STOPPED')
    return problem('SERVICE_DOWN', name, `${name} is stopped${saying}`, 'run: exp up');
  if (state.statename !== 'RUNNING') {
    const how =
      state.statename === 'BACKOFF' || state.statename === 'FATAL'
        ? 'ends again and again'
        : state.statename.toLowerCase();
    return problem(
      'SERVICE_DOWN',
      name,
      `${name} ${how}${saying}`,
      `read ${log}; when the cause is gone it comes back by itself, or run: exp up`,
    );
  }
  const age = Math.max(0, Math.round(Date.now() / 1000 - state.start));
  try {
    await withTimeout(probe(name, { connections: addresses, startedAt: state.start * 1000 }), ANSWER_MS);
    return ok(name, `runs since ${age} s as process ${state.pid}`);
  } catch (error) {
    const why = (error as Error).message || String(error);
    const STARTING_SECONDS = name === 'engine' ? 300 : 30;
    if (age < STARTING_SECONDS)
      return note('SERVICE_STARTING', name, `${name} was started ${age} s ago and is not ready yet (${why})`);
    return problem(
      'SERVICE_DOWN',
      name,
      `${name} runs (process ${state.pid}) but does not answer: ${why}${saying}`,
      `read ${log}; kill ${state.pid} makes the supervisor start it anew`,
    );
  }
}

async function withTimeout<T>(work: Promise<T>, ms: number): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${ms / 1000} s`)), ms);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}

function checkWorkerCode({ states }: Patient): Finding[] {
  const running = (states ?? []).filter(({ name, pid }) => isWorker(name) && pid > 0);
  const older = running.filter(({ pid }) => environmentOf(pid, 'EXP_BUILD') !== buildDigest());
  if (older.length > 0) {
    return older.map(({ name, pid }) =>
      problem(
        'OLD_CODE',
        name,
        `process ${pid} runs other code than this checkout`,
        'run: exp up, which drains and restarts it',
      ),
    );
  }
  return running.length === WORKERS.length
    ? [ok('workers', `run the code of this checkout (${buildDigest().slice(0, 12)})`)]
    : [];
}

function checkOrphans({ states, processes }: Patient): Finding[] {
  if (states !== undefined || processes.length === 0) return [];
  const some = processes
    .slice(0, 5)
    .map(({ pid, service }) => `${service} ${pid}`)
    .join(', ');
  return [
    problem(
      'SUPERVISOR_GONE',
      'supervisord',
      `${processes.length} processes run without their supervisor (${some} …)`,
      'run: exp up, which ends them and starts anew, or exp down',
    ),
  ];
}

/** Nothing of ours may be reached from outside. */
function checkSockets({ processes }: Patient): Finding[] {
  if (processes.length === 0) return [];
  const open = new Map(
    listeners()
      .filter(({ address }) => !isLoopback(address))
      .map((listener) => [`socket:[${listener.inode}]`, listener]),
  );
  const found = processes.flatMap(({ pid, service }) =>
    socketsOf(pid).flatMap((link) => {
      const listener = open.get(link);
      return listener === undefined
        ? []
        : [
            problem(
              'NOT_LOOPBACK',
              `${listener.address}:${listener.port}`,
              `${service} (process ${pid}) listens beyond loopback`,
              'run: exp down; this must not happen, please report it',
            ),
          ];
    }),
  );
  return found.length > 0 ? found : [ok('sockets', 'loopback only')];
}

/** A profile with addresses: does each service answer there? */
async function checkAddresses({ profile }: Patient): Promise<Finding[]> {
  let addresses: Connections;
  try {
    addresses = await connections(profile);
  } catch (error) {
    if (!(error instanceof ExpError)) throw error;
    return [problem(error.code, error.at, error.message, 'set what is named there, and look again')];
  }
  const { temporal, postgres, milvus, mlflow, engines } = addresses;
  const hidden = new URL(postgres.url);
  const targets: [ServiceName, string, Connections][] = [
    ['temporal', temporal.address, addresses],
    ['postgres', `${hidden.hostname}:${hidden.port || 5432}`, addresses],
    ['milvus', milvus.address, addresses],
    ['mlflow', mlflow.url, addresses],
    ...engines.map((engine): [ServiceName, string, Connections] => [
      'engine',
      engine.url,
      { ...addresses, engines: [engine] },
    ]),
  ];
  return Promise.all(
    targets.map(async ([name, at, target]) => {
      try {
        await withTimeout(probe(name, { connections: target, startedAt: 0 }), ANSWER_MS);
        return ok(name, `answers at ${at}`);
      } catch (error) {
        return problem(
          'SERVICE_UNREACHABLE',
          at,
          `${name} does not answer: ${(error as Error).message}`,
          `is it up, and may this machine reach it? the address stands in profile ${profile.name}`,
        );
      }
    }),
  );
}
