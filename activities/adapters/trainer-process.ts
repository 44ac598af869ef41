import { type ChildProcess, spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { closeSync, mkdirSync, openSync, readFileSync, unlinkSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir, userInfo } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { ExpError } from '../../schemas/errors.ts';

/** Names one process for good: pids come again, start times with them do not. */
export interface TrainerLease {
  pid: number;
  /** Clock ticks after boot, as /proc/<pid>/stat says. */
  startTime: string;
  socket: string;
}

export interface TrainerState {
  pid: number;
  stage_key: string | null;
  step: number;
  busy: boolean;
  phase: string;
  progress: number;
}

export interface StartTrainerOptions {
  python: string;
  /** Folder with the Python package `exp_trainer`. */
  packageDir: string;
  logDir: string;
  /** Part of the log file's and the socket's name. */
  name: string;
}

const START_MS = 60_000;
const PING_MS = 5_000;
const END_MS = 10_000;

/** Start a trainer in a session of its own, so that it outlives a worker that restarts. */
export async function startTrainer(options: StartTrainerOptions): Promise<{ lease: TrainerLease; client: TrainerClient }> {
  const socket = join(socketFolder(), `${options.name}-${randomUUID().slice(0, 8)}.sock`);
  mkdirSync(options.logDir, { recursive: true });
  const log = openSync(join(options.logDir, 'trainer.log'), 'a');
  const child = spawn(options.python, ['-m', 'exp_trainer.server', '--socket', socket], {
    detached: true,
    stdio: ['ignore', log, log],
    cwd: options.packageDir,
  });
  closeSync(log);
  const pid = await pidOf(child);
  child.unref();
  const lease = { pid, startTime: startTimeOf(pid) ?? '', socket };
  for (const deadline = Date.now() + START_MS; Date.now() < deadline && isRunning(lease); await delay(100)) {
    const client = await answering(socket);
    if (client) return { lease, client };
  }
  await endProcessGroup(lease.pid, lease.startTime);
  throw new ExpError('TRAINER_LOST', socket, `the trainer did not start; see ${join(options.logDir, 'trainer.log')}`);
}

/** Attach to the process a lease names, if it still runs and answers. */
export async function adoptTrainer(lease: TrainerLease): Promise<TrainerClient | null> {
  return isRunning(lease) ? answering(lease.socket) : null;
}

/** End a process and everything in its group; returns when /proc shows it gone. Zombies count as gone. */
export async function endProcessGroup(pid: number, startTime: string): Promise<void> {
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    if (startTimeOf(pid) !== startTime) return;
    try {
      process.kill(-pid, signal);
    } catch {
      return; // gone between the look and the signal
    }
    for (const deadline = Date.now() + END_MS; Date.now() < deadline; await delay(50)) {
      if (startTimeOf(pid) !== startTime) return;
    }
  }
}

/** Talks to one trainer: newline-delimited JSON, answers matched by id. Batches go as paths, never over the socket. */
export class TrainerClient {
  readonly #socket: Socket;
  readonly #waiting = new Map<string, { resolve(result: unknown): void; reject(error: Error): void }>();
  #open = true;

  constructor(socket: Socket) {
    this.#socket = socket;
    createInterface({ input: socket }).on('line', (line) => this.#answer(line));
    socket.on('error', () => this.#lost());
    socket.on('close', () => this.#lost());
  }

  /** Throws ExpError: the trainer's own code, or TRAINER_LOST when the process is gone. */
  async call<T = unknown>(method: string, params: object): Promise<T> {
    if (!this.#open) throw lost();
    const id = randomUUID();
    return new Promise<T>((resolve, reject) => {
      this.#waiting.set(id, { resolve: resolve as (result: unknown) => void, reject });
      this.#socket.write(`${JSON.stringify({ id, method, params })}\n`);
    });
  }

  /** Answered at once, also while a step runs. */
  async ping(): Promise<TrainerState> {
    const answer = this.call<TrainerState>('ping', {});
    answer.catch(() => undefined); // when the deadline wins, a later rejection has no listener
    return Promise.race([answer, delay(PING_MS, undefined, { ref: false }).then(() => Promise.reject(lost()))]);
  }

  isAlive(): Promise<boolean> {
    return this.ping().then(
      () => true,
      () => false,
    );
  }

  #answer(line: string): void {
    const { id, result, error } = JSON.parse(line) as { id: string; result?: unknown; error?: { code: string; message: string } };
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (error) waiting?.reject(new ExpError(error.code, 'trainer', error.message));
    else waiting?.resolve(result);
  }

  #lost(): void {
    this.#open = false;
    for (const { reject } of this.#waiting.values()) reject(lost());
    this.#waiting.clear();
  }
}

const lost = (): ExpError => new ExpError('TRAINER_LOST', 'trainer', 'the trainer process does not answer');

async function answering(path: string): Promise<TrainerClient | null> {
  const socket = await new Promise<Socket | null>((resolve) => {
    const dialling = connect(path);
    dialling.once('connect', () => resolve(dialling));
    dialling.once('error', () => resolve(null));
  });
  if (!socket) return null;
  socket.unref();
  const client = new TrainerClient(socket);
  if (await client.isAlive()) return client;
  socket.destroy();
  return null;
}

async function pidOf(child: ChildProcess): Promise<number> {
  await new Promise<void>((resolve, reject) => {
    child.once('spawn', resolve);
    child.once('error', reject);
  });
  return child.pid as number;
}

/** A folder of this user alone, with a path short enough for a Unix socket (108 bytes). */
function socketFolder(): string {
  const folder = join(tmpdir(), `exp-trainer-${userInfo().uid}`);
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  return folder;
}

function isRunning({ pid, startTime, socket }: TrainerLease): boolean {
  if (startTimeOf(pid) === startTime) return true;
  try {
    unlinkSync(socket);
  } catch {
    // it removed its socket itself
  }
  return false;
}

/** Undefined for a process that is gone, or only a zombie. */
function startTimeOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' || fields[0] === 'X' ? undefined : fields[19];
  } catch {
    return undefined;
  }
}
