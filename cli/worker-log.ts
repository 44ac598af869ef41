/** What the workers on this machine wrote about a run: lines that carry the key of one of its nodes. */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { basename, join } from 'node:path';
import type { Plan } from '../schemas/plan.ts';
import { WORKERS } from '../services/programs.ts';
import { isNamed, type LogEntry, nodeNames } from './run-history.ts';
import { oneLine } from './terminal.ts';

/** Of each log, at most its newest part is read. */
const READ_AT_MOST = 16 * 1024 * 1024;

export interface WorkerLogQuery {
  home: string;
  run: string;
  plan: Plan;
  since: Date;
  node?: string;
}

/** Entries of all workers' logs, oldest first; none where workers run elsewhere. */
export function readWorkerLogs({ home, run, plan, since, node }: WorkerLogQuery): LogEntry[] {
  const names = nodeNames(plan);
  const nameIn = (line: string): string | undefined => {
    for (const [match] of line.matchAll(/[0-9a-f]{64}/g)) if (names.has(match)) return names.get(match);
    return line.includes(run) ? 'run' : undefined;
  };
  const entries = WORKERS.flatMap((worker) => readLines(join(home, 'logs', `${worker}.log`))).flatMap((line) => {
    const where = nameIn(line.text);
    const at = new Date(line.text.slice(0, 24));
    if (where === undefined || Number.isNaN(at.getTime()) || at < since) return [];
    if (node !== undefined && !isNamed(where, node)) return [];
    const text = oneLine(line.text.slice(24).replaceAll(/[0-9a-f]{52}(?=[^0-9a-f]|$)/g, ''));
    return [
      {
        at,
        where,
        text: `${line.worker}: ${text}`,
        mark: null,
        trouble: /^\s*(WARN|ERROR)/.test(line.text.slice(24)),
        id: line.id,
      },
    ];
  });
  return entries.sort((a, b) => a.at.getTime() - b.at.getTime());
}

function readLines(path: string): { worker: string; text: string; id: string }[] {
  let descriptor: number;
  try {
    descriptor = openSync(path, 'r');
  } catch {
    return []; // that worker never ran here
  }
  try {
    const { size } = fstatSync(descriptor);
    const from = Math.max(0, size - READ_AT_MOST);
    const buffer = Buffer.alloc(size - from);
    readSync(descriptor, buffer, 0, buffer.length, from);
    const worker = basename(path, '.log');
    return buffer
      .toString('utf8')
      .split('\n')
      .map((text) => ({ worker, text, id: `${worker}/${text}` }));
  } finally {
    closeSync(descriptor);
  }
}
