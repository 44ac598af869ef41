/** Following a run to its end: redraw on a terminal, lines on a pipe. Survives services that go away and come back. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { CommandIo } from './command.ts';
import { renderChanges, renderFrame, renderProgress, stampedLine } from './live-view.ts';
import { isOutage, type Stack } from './open-stack.ts';
import { describeEnd } from './run-results.ts';
import { exitCodeOf, RunReader, type RunState } from './run-state.ts';
import { detectTerminal, type Terminal } from './terminal.ts';

/** Twice a second. */
const REFRESH_MS = 500;
const PROGRESS_EVERY_MS = 15_000;
/** After this long without PostgreSQL the addresses are read again: `exp up` may have chosen other ports. */
const REOPEN_AFTER_MS = 10_000;
/** The shell's code for a program that Ctrl-C ended: the run goes on, and its outcome is not known. */
const DETACHED = 130;

export interface FollowOptions {
  run: string;
  stack: Stack;
  io: CommandIo;
  /** Opens the services anew, by the addresses of now. */
  reopen(): Promise<Stack | null>;
  /** Lines for humans; stderr when stdout carries JSON. */
  say(line: string): void;
  /** Draw and redraw; false prints lines. */
  live: boolean;
}

export interface Followed {
  /** Null when the caller detached before anything was read. */
  state: RunState | null;
  exitCode: number;
}

/** What shows states as they come. */
interface Display {
  /** `state` is null until one could be read. */
  show(state: RunState | null, trouble: string | null): void;
  /** Leave the last picture standing. */
  close(): void;
}

/** Show a run until it ends (its exit code) or until Ctrl-C detaches. */
export async function followRun(options: FollowOptions): Promise<Followed> {
  const { io, run, say } = options;
  const terminal = (): Terminal => detectTerminal(io);
  const display = options.live ? await liveDisplay(terminal, run) : lineDisplay(say);
  const watch = new ToleratingReader(options);
  let last: RunState | null = null;
  try {
    while (!io.signal.aborted) {
      last = (await watch.read()) ?? last;
      display.show(last, watch.trouble);
      if (last && last.status !== 'running' && watch.trouble === null) break;
      await sleep(REFRESH_MS, undefined, { signal: io.signal }).catch(() => {});
    }
    display.close();
    if (!last || last.status === 'running') {
      say(`detached; the run goes on. To come back: exp watch ${run}`);
      return { state: last, exitCode: DETACHED };
    }
    const lines = await describeEnd(watch.stack.store, last, terminal(), { withTimes: !options.live });
    for (const line of lines) say(line);
    return { state: last, exitCode: exitCodeOf(last.status) };
  } finally {
    display.close();
    await watch.close();
  }
}

/** Reads a run; an outage becomes `trouble` instead of an error, and in time a fresh connection. */
class ToleratingReader {
  readonly #options: FollowOptions;
  #reader: RunReader;
  #failingSince: number | null = null;
  stack: Stack;

  constructor(options: FollowOptions) {
    this.#options = options;
    this.stack = options.stack;
    this.#reader = new RunReader(options.stack, options.run);
  }

  get trouble(): string | null {
    if (this.#failingSince === null) return null;
    return `reconnecting (${Math.round((Date.now() - this.#failingSince) / 1000)} s): PostgreSQL does not answer; the run is safe`;
  }

  async read(): Promise<RunState | null> {
    try {
      const state = await this.#reader.read();
      this.#failingSince = null;
      return state;
    } catch (error) {
      if (!isOutage(error)) throw error;
      this.#failingSince ??= Date.now();
      if (Date.now() - this.#failingSince > REOPEN_AFTER_MS) await this.#reopen();
      return null;
    }
  }

  async #reopen(): Promise<void> {
    const fresh = await this.#options.reopen().catch(() => null);
    if (!fresh) return;
    await this.close();
    this.stack = fresh;
    this.#reader = new RunReader(fresh, this.#options.run);
  }

  /** Closes what was reopened; the caller's own stack is the caller's to close. */
  async close(): Promise<void> {
    if (this.stack !== this.#options.stack) await this.stack.close();
  }
}

/** Between these two a terminal that knows them shows nothing, so no half-drawn frame is seen; others ignore them. */
const BEGIN_FRAME = '\u001b[?2026h';
const END_FRAME = '\u001b[?2026l';

async function liveDisplay(terminal: () => Terminal, run: string): Promise<Display> {
  const { createLogUpdate } = await import('log-update');
  const { stdout } = process;
  const stream = new Proxy(stdout, {
    get(target, property) {
      if (property === 'write') return (text: string) => target.write(BEGIN_FRAME + text + END_FRAME);
      const value: unknown = Reflect.get(target, property, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
  const draw = createLogUpdate(stream);
  const hint = `Ctrl-C detaches, the run goes on · exp watch ${run}`;
  let tick = 0;
  let closed = false;
  return {
    show(state, trouble) {
      const frame = { now: new Date(), tick: tick++, trouble, hint: state?.status === 'running' ? hint : null };
      draw(state ? renderFrame(state, terminal(), frame).join('\n') : (trouble ?? ''));
    },
    close() {
      if (!closed) draw.done();
      closed = true;
    },
  };
}

/** State changes as they come; progress only now and then, so that a log stays readable. */
function lineDisplay(say: (line: string) => void): Display {
  let before: RunState | null = null;
  let troubleBefore: string | null = null;
  let progressAt = Date.now();
  let progressBefore = '';
  return {
    show(state, trouble) {
      const now = new Date();
      const words = (trouble ?? state?.trouble)?.replace(/ \(\d+ s\)/, '') ?? null;
      if (words !== troubleBefore) say(stampedLine(now, words ?? 'connected again'));
      troubleBefore = words;
      if (!state) return;
      const changes = renderChanges(before, state, now);
      before = state;
      for (const line of changes) say(line);
      if (now.getTime() - progressAt < PROGRESS_EVERY_MS) return;
      progressAt = now.getTime();
      const progress = renderProgress(state, now);
      const text = progress.map((line) => line.slice(21)).join('\n');
      if (text !== progressBefore) for (const line of progress) say(line);
      progressBefore = text;
    },
    close() {},
  };
}
