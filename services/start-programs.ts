/** Start programs and wait, within bounds, until each is ready to be used. */
import { setTimeout as sleep } from 'node:timers/promises';
import { ExpError } from '../schemas/errors.ts';
import type { Connections } from './connections.ts';
import { logTail } from './log-tail.ts';
import { logPath, type ServiceName } from './programs.ts';
import { probe, READY_WITHIN } from './readiness.ts';
import type { SupervisorClient } from './supervisor-rpc.ts';

export interface StartOptions {
  home: string;
  /** Return while the engine still loads; who needs it waits for it. */
  waitForEngine?: boolean;
  report(line: string): void;
  signal?: AbortSignal;
}

export async function startAndWait(
  supervisor: SupervisorClient,
  names: readonly ServiceName[],
  connections: Connections,
  options: StartOptions,
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
  { home, report, signal }: StartOptions,
): Promise<void> {
  const began = performance.now();
  const seconds = (): number => (performance.now() - began) / 1000;
  const starts = new Set<number>();
  let reason = '';
  let noted = 0;
  while (seconds() < READY_WITHIN[name]) {
    signal?.throwIfAborted();
    const state = await supervisor.program(name);
    if (state.start > 0) starts.add(state.start);
    const CRASHES_ENDURED = 4;
    if (state.statename === 'FATAL' || starts.size > CRASHES_ENDURED) {
      reason = state.spawnerr || 'it ends again and again';
      break;
    }
    try {
      if (state.statename !== 'RUNNING') throw new Error(state.statename.toLowerCase());
      await probe(name, { connections, startedAt: state.start * 1000 });
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
  throw notReady(name, home, `is not ready after ${Math.round(seconds())} s: ${reason}`);
}

function notReady(name: ServiceName, home: string, message: string): ExpError {
  const log = logPath(home, name);
  const tail = logTail(log, 12);
  const isFull = tail.some((line) => /No space left on device|database or disk is full/.test(line));
  const lines = [message, `last lines of ${log}:`, ...tail.map((line) => `  ${line}`)];
  return new ExpError(isFull ? 'STORAGE_FULL' : 'SERVICE_NOT_READY', name, lines.join('\n'));
}
