import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { chmodSync, closeSync, lstatSync, mkdirSync, openSync, readdirSync, readFileSync, unlinkSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { tmpdir, userInfo } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { ExpError } from '../../schemas/errors.ts';
import { cancelCommand, freePort, type Launcher, launchCommand, type Processes } from './launch-command.ts';

/**
 * Names one process for good: within a boot, pids come again and start times with them do not. Of several, it is
 * torchrun (or the launcher's command), which ends when one of them does.
 */
export interface TrainerLease {
  pid: number;
  /** Clock ticks after boot, as /proc/<pid>/stat says. */
  startTime: string;
  /** A Unix socket, or a file with the address of a trainer on another machine. */
  socket: string;
  /** What ends a job that outlives the command which started it. */
  cancel?: string[];
  /** The kernel's id of this boot. */
  boot: string;
}

export interface TrainerState {
  pid: number;
  stage_key: string | null;
  step: number;
  busy: boolean;
  phase: string;
  /** Rises only when work was done: a layer, a chunk, a file. */
  progress: number;
}

/** All the trainer is told of an algorithm. */
export interface LossSpec {
  kind: 'cross_entropy' | 'policy_gradient';
  aggregation?: 'token_mean' | 'seq_mean_token_mean' | 'seq_mean_token_sum';
  /** Of one token, or the geometric mean over a sequence's tokens; absent: token. */
  ratio?: 'token' | 'sequence';
  /** The surrogate is clipped, or the ratio as a detached weight of the log-probability; absent: surrogate. */
  clip?: { low: number; high: number; dual?: number; on?: 'surrogate' | 'weight' };
  /** Towards `reference_parents`, or where the stage started. */
  kl?: { coefficient: number; estimator?: 'k1' | 'k2' | 'k3' };
  importance?: { level: 'token' | 'sequence'; truncate?: number; veto?: number };
  entropy?: number;
}

/** Where a stage computes. */
export interface PlaceParams {
  /** Of each process. */
  threads: number;
  /** Absent: a GPU where there is one. */
  device?: 'cuda';
  /** Processes that share a sequence; absent: one. */
  context_parallel?: number;
}

export interface OpenParams extends PlaceParams {
  stage_key: string;
  /** Hugging Face directory. */
  base_dir: string;
  /** Adapters and full weights applied to the base in fp32, oldest first, before the stage starts its own. */
  parents?: string[];
  /** The same for the weights a KL term is measured to; absent: where the stage starts. */
  reference_parents?: string[];
  /** Null trains all weights. */
  adapter: { lora_rank: number; lora_alpha?: number; lora_dropout?: number; target?: string | string[] } | null;
  resume_dir?: string;
  optimizer: {
    learning_rate: number;
    schedule?: 'constant' | 'cosine' | 'linear';
    warmup?: number;
    total_steps?: number;
    weight_decay?: number;
    betas?: [number, number];
    max_grad_norm?: number;
  };
  /** Of the base weights; `auto` is bfloat16 where the hardware multiplies it. Adapters and optimizer are fp32. */
  dtype: 'float32' | 'bfloat16' | 'auto';
  deterministic: boolean;
  seed: number;
  /** Absent: for micro-batches of more than 2,048 tokens. */
  activation_checkpointing?: boolean;
}

export interface OpenResult {
  step: number;
  parameters: number;
  trainable_parameters: number;
  /** Versions, dtype, device and threads. */
  made_with: Record<string, string>;
}

export interface StepResult {
  step: number;
  /** The step was taken before; these are its recorded metrics. */
  repeated: boolean;
  metrics: Record<string, number>;
}

/** The wire, method by method. Batches and weights go as paths, never over the socket. */
export interface TrainerMethods {
  ping: { params: object; result: TrainerState };
  open: { params: OpenParams; result: OpenResult };
  step: {
    params: { step_id: string; step: number; batch: string; loss: LossSpec | object; micro_batch_tokens?: number };
    result: StepResult;
  };
  score: {
    params: { batch: string; out: string; temperature: number; micro_batch_tokens?: number };
    result: { sequences: number; tokens: number };
  };
  beliefs: {
    params: { batch: string; out: string; temperature: number };
    result: { sequences: number; beliefs: number };
  };
  save: {
    params: { dir: string };
    result: { step: number; files: Record<'weights' | 'optimizer' | 'state', string> };
  };
  export: { params: { dir: string; export_dtype: 'bfloat16' | 'float32' }; result: { step: number; bytes: number } };
  close: { params: object; result: object };
}

export interface CallOptions {
  /** Stops the waiting, not the work: asking again with the same step_id finds its result. */
  signal?: AbortSignal;
  /** While waiting, each time the trainer answers a ping; `moved` says whether work was done since the last time. */
  onPing?: (state: TrainerState, moved: boolean) => void;
  /** Every 2 s when absent. */
  pingEveryMs?: number;
}

export interface StartTrainerOptions {
  python: string;
  /** Folder with the Python package `exp_trainer`. */
  packageDir: string;
  logDir: string;
  /** Part of the socket's name. */
  name: string;
  /** One process, started as it is, when absent. */
  processes?: Processes;
  launcher?: Launcher;
  /** Ends the waiting, and what was started. */
  signal?: AbortSignal;
  /** Every now and then while it starts, or its job waits for machines. */
  onWait?: () => void;
}

const PLAIN: Launcher = { command: ['{{command}}'] };
const ONE: Processes = { count: 1, machines: 1 };

const START_MS = 60_000;
const QUEUE_MS = 24 * 3_600_000;
/** Importing torch on a busy machine blocks the interpreter for seconds; a process that is gone is noticed at once. */
const PING_MS = 15_000;
const END_MS = 10_000;
const CANCEL_MS = 60_000;

/** Start a trainer in a session of its own, so that it outlives a worker that restarts. */
export async function startTrainer(
  options: StartTrainerOptions,
): Promise<{ lease: TrainerLease; client: TrainerClient }> {
  const job = `${options.name.slice(0, 24)}-${randomUUID().slice(0, 8)}`;
  const { launcher = PLAIN, processes = ONE, python } = options;
  const socket = launcher.remote ? join(options.logDir, `${job}.json`) : join(socketFolder(), `${job}.sock`);
  const launch = { python, socket, processes, job, port: await freePort() };
  const logFile = join(options.logDir, 'trainer.log');
  mkdirSync(options.logDir, { recursive: true });
  const log = openSync(logFile, 'a');
  const [program = python, ...given] = launchCommand(launcher, launch);
  const child = spawn(program, given, {
    detached: true,
    // Every sequence has another length. Memory given back after each and asked for again costs a fifth of a CPU step.
    env: { ...process.env, MALLOC_ARENA_MAX: '1', MALLOC_MMAP_MAX_: '0', MALLOC_TRIM_THRESHOLD_: String(2 ** 40) },
    stdio: ['ignore', log, log],
    cwd: options.packageDir,
  });
  closeSync(log);
  const pid = await pidOf(child);
  child.unref();
  const cancel = cancelCommand(launcher, launch);
  const startTime = readStat(pid)?.startTime ?? '';
  const lease = { pid, startTime, socket, boot: bootId(), ...(cancel && { cancel }) };
  // A job on other machines may wait for them.
  const limit = launcher.remote ? QUEUE_MS : START_MS;
  for (const deadline = Date.now() + limit; Date.now() < deadline && isRunning(lease); await delay(100)) {
    const client = await answering(socket);
    if (client) return { lease, client };
    if (options.signal?.aborted) break;
    options.onWait?.();
  }
  await endTrainer(lease);
  options.signal?.throwIfAborted();
  throw new ExpError('TRAINER_LOST', socket, `the trainer did not start; see ${logFile}`);
}

/** Attach to the process a lease names, if it still runs and answers. */
export async function adoptTrainer(lease: TrainerLease): Promise<TrainerClient | null> {
  const client = isRunning(lease) ? await answering(lease.socket) : null;
  if (client || isRunning(lease)) return client;
  try {
    unlinkSync(lease.socket);
  } catch {
    // it removed its socket itself
  }
  return null;
}

/**
 * End a trainer with all its processes on this machine; returns when /proc shows none of them. What runs elsewhere is
 * cancelled as its launcher says; a cancellation that fails throws, since the job may still run.
 */
export async function endTrainer({ pid, startTime, socket, cancel }: TrainerLease): Promise<void> {
  await endProcessGroup(pid, startTime, () => ranksAt(socket));
  const [program, ...given] = cancel ?? [];
  if (program === undefined) return;
  await promisify(execFile)(program, given, { timeout: CANCEL_MS }).catch((error: Error) => {
    throw new ExpError('TRAINER_LOST', socket, `its job could not be cancelled: ${error.message}`, { cause: error });
  });
}

/**
 * End a process and everything in its group; returns when /proc shows none of it. Zombies count as gone.
 * Does nothing to a stranger who has the pid by now. Throws when something outlives SIGKILL.
 *
 * @param others processes that belong to it and are not in its group: torchrun gives each rank a session of its own.
 */
export async function endProcessGroup(pid: number, startTime: string, others = (): number[] => []): Promise<void> {
  const lives = (): boolean => groupLives(pid, startTime) || others().length > 0;
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    if (groupLives(pid, startTime)) kill(-pid, signal);
    // torchrun passes SIGTERM on; what outlives it is ended one by one.
    else for (const other of others()) kill(other, signal);
    for (const deadline = Date.now() + END_MS; Date.now() < deadline; await delay(50)) {
      if (!lives()) return;
    }
  }
  throw new ExpError('TRAINER_LOST', `process group ${pid}`, 'it outlives SIGKILL');
}

function kill(pid: number, signal: 'SIGTERM' | 'SIGKILL'): void {
  try {
    process.kill(pid, signal);
  } catch {
    // gone between the look and the signal
  }
}

/** Talks to one trainer: newline-delimited JSON, answers matched by id. */
export class TrainerClient {
  readonly #socket: Socket;
  readonly #waiting = new Map<string, { resolve(result: unknown): void; reject(error: Error): void }>();
  #open = true;

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.unref();
    const lines = createInterface({ input: socket });
    lines.on('line', (line) => this.#answer(line));
    lines.on('error', () => this.#lost()); // it emits the socket's errors once more; unheard, one ends the worker
    socket.on('error', () => this.#lost());
    socket.on('close', () => this.#lost());
  }

  /** Throws ExpError: the trainer's own code, or TRAINER_LOST when the process is gone. */
  async call<M extends keyof TrainerMethods>(
    method: M,
    params: TrainerMethods[M]['params'],
    { signal, onPing, pingEveryMs = 2_000 }: CallOptions = {},
  ): Promise<TrainerMethods[M]['result']> {
    signal?.throwIfAborted();
    if (!this.#open) throw lost();
    const pinging = onPing && this.#pingEvery(pingEveryMs, onPing);
    const id = randomUUID();
    const stopWaiting = (): void => this.#waiting.get(id)?.reject(signal?.reason as Error);
    signal?.addEventListener('abort', stopWaiting);
    try {
      return await new Promise<TrainerMethods[M]['result']>((resolve, reject) => {
        this.#waiting.set(id, { resolve: resolve as (result: unknown) => void, reject });
        this.#socket.ref();
        this.#socket.write(`${JSON.stringify({ id, method, params })}\n`);
      });
    } finally {
      clearInterval(pinging);
      signal?.removeEventListener('abort', stopWaiting);
      this.#forget(id);
    }
  }

  /** Answered at once, also while a step runs. */
  async ping(): Promise<TrainerState> {
    const limit = AbortSignal.timeout(PING_MS);
    return this.call('ping', {}, { signal: limit }).catch((error: unknown) => {
      throw limit.aborted ? lost() : error;
    });
  }

  isAlive(): Promise<boolean> {
    return this.ping().then(
      () => true,
      () => false,
    );
  }

  /** Leave the trainer; what it does goes on. */
  disconnect(): void {
    this.#socket.destroy();
  }

  #pingEvery(intervalMs: number, onPing: NonNullable<CallOptions['onPing']>): NodeJS.Timeout {
    let last: number | undefined;
    return setInterval(() => {
      this.ping().then(
        (state) => {
          onPing(state, state.progress !== last);
          last = state.progress;
        },
        () => undefined, // no answer, nothing to tell; the call itself fails when the process is gone
      );
    }, intervalMs);
  }

  #answer(line: string): void {
    const { id, result, error } = JSON.parse(line) as {
      id: string;
      result?: unknown;
      error?: { code: string; message: string };
    };
    const waiting = this.#waiting.get(id);
    if (error) waiting?.reject(new ExpError(error.code, 'trainer', error.message));
    else waiting?.resolve(result);
  }

  #forget(id: string): void {
    this.#waiting.delete(id);
    if (this.#waiting.size === 0) this.#socket.unref();
  }

  #lost(): void {
    this.#open = false;
    for (const { reject } of this.#waiting.values()) reject(lost());
  }
}

const lost = (): ExpError => new ExpError('TRAINER_LOST', 'trainer', 'the trainer process does not answer');

async function answering(path: string): Promise<TrainerClient | null> {
  const socket = await dial(path);
  if (!socket) return null;
  const client = new TrainerClient(socket);
  if (await client.isAlive()) return client;
  client.disconnect();
  return null;
}

/** Null while nobody listens there. */
async function dial(path: string): Promise<Socket | null> {
  const address = path.endsWith('.json') ? await readAddress(path) : { path, token: null };
  if (!address) return null;
  const { token, ...place } = address;
  return new Promise((resolve) => {
    const dialling = connect(place);
    dialling.once('connect', () => {
      if (token !== null) dialling.write(`${token}\n`);
      resolve(dialling);
    });
    dialling.once('error', () => resolve(null));
  });
}

async function readAddress(file: string): Promise<{ host: string; port: number; token: string } | null> {
  try {
    return JSON.parse(await readFile(file, 'utf8'));
  } catch {
    return null; // not written yet
  }
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
  const { uid } = userInfo();
  const base = tmpdir().length > 40 ? '/tmp' : tmpdir();
  const folder = join(base, `exp-trainer-${uid}`);
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  // In a shared /tmp the name could have been taken by somebody else.
  const found = lstatSync(folder);
  if (!found.isDirectory() || found.uid !== uid) throw new ExpError('TRAINER_LOST', folder, 'belongs to another user');
  chmodSync(folder, 0o700);
  return folder;
}

function isRunning({ pid, startTime, boot }: TrainerLease): boolean {
  return boot === bootId() && readStat(pid)?.startTime === startTime;
}

/** The leader with its start time, or, when the leader is gone, members it left: their group's number is not reused. */
function groupLives(pid: number, startTime: string): boolean {
  const leader = readStat(pid);
  if (leader) return leader.startTime === startTime;
  return readdirSync('/proc').some((name) => /^\d+$/.test(name) && readStat(Number(name))?.group === pid);
}

/** Ranks name the socket on their command line, whatever session they are in; its name is never used twice. */
function ranksAt(socket: string): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name) && readStat(Number(name)) && commandOf(name).includes(socket))
    .map(Number);
}

/** Empty for anything but a trainer, and for one that is gone. */
function commandOf(pid: string): string[] {
  try {
    const command = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
    return command.includes('exp_trainer.server') ? command : [];
  } catch {
    return [];
  }
}

const bootId = (): string => readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();

/** Undefined for a process that is gone, or only a zombie. */
function readStat(pid: number): { group: number; startTime: string } | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // The name in parentheses may hold spaces and parentheses.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    if (fields[0] === 'Z' || fields[0] === 'X') return undefined;
    return { group: Number(fields[2]), startTime: fields[19] ?? '' };
  } catch {
    return undefined;
  }
}
