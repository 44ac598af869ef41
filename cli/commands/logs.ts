import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { ExpError } from '../../schemas/errors.ts';
import type { Plan } from '../../schemas/plan.ts';
import { home } from '../../services/home.ts';
import { logTail } from '../../services/log-tail.ts';
import { logPath, SERVICES } from '../../services/programs.ts';
import type { Command, CommandIo } from '../command.ts';
import { type Stack, withStack } from '../open-stack.ts';
import { isNamed, type LogEntry, nodeNames, readHistory } from '../run-history.ts';
import { findRun, type RunRow } from '../run-state.ts';
import { detectTerminal, paint, type Terminal } from '../terminal.ts';
import { readWorkerLogs } from '../worker-log.ts';

const POLL_MS = 2_000;

export const command: Command = {
  name: 'logs',
  summary: "Tell what happened in a run (what ran, failed, was tried again), or show the end of a service's log.",
  usage: 'logs RUN|latest [NODE] [-f] [--all] [--profile P] [--json]   or   logs SERVICE [-n LINES]',
  help: [
    `SERVICE is one of ${SERVICES.join(', ')}`,
    '  -f, --follow  go on until the run ends or Ctrl-C',
    '  --all         also the bookkeeping between the nodes',
  ].join('\n'),
  async run(argv, io) {
    const { values, positionals } = parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: {
        follow: { type: 'boolean', short: 'f', default: false },
        lines: { type: 'string', short: 'n', default: '50' },
        all: { type: 'boolean', default: false },
        profile: { type: 'string' },
        json: { type: 'boolean', default: false },
      },
    });
    const [wanted, node, ...more] = positionals;
    if (wanted === undefined || more.length > 0)
      throw new ExpError('USAGE', 'exp logs', 'wants a RUN (or `latest`), then perhaps one of its nodes');
    if ((SERVICES as readonly string[]).includes(wanted) && node === undefined)
      return showService(wanted, values.lines, io);
    return withStack(values.profile, async (stack) => {
      const row = await findRun(stack.pool, wanted);
      const plan = await stack.store.readJson<Plan>(row.plan_blob);
      if (node !== undefined) checkNode(plan, row, node);
      const query: Query = { row, plan, all: values.all, ...(node !== undefined && { node }) };
      await tell(stack, query, values.follow, io, entryPrinter(io, values.json));
      return 0;
    });
  },
};

interface Query {
  row: RunRow;
  plan: Plan;
  node?: string;
  all: boolean;
}

function showService(name: string, lines: string, io: CommandIo): number {
  const wanted = Number(lines);
  if (!Number.isSafeInteger(wanted) || wanted < 1)
    throw new ExpError('USAGE', 'exp logs', '-n wants a number of lines');
  const path = logPath(home(), name);
  const tail = logTail(path, wanted);
  io.err(tail.length > 0 ? path : `${path} is empty or not there: ${name} was never started here`);
  for (const line of tail) io.out(line);
  return 0;
}

function checkNode(plan: Plan, row: RunRow, node: string): void {
  const names = [...nodeNames(plan).values()];
  if (names.some((name) => isNamed(name, node))) return;
  throw new ExpError('NODE_UNKNOWN', `${row.id} ${node}`, `the run has no such node; it has ${names.join(', ')}`);
}

/** Everything so far; with `follow`, then what is new, until the run has ended and was read once more. */
async function tell(
  stack: Stack,
  query: Query,
  follow: boolean,
  io: CommandIo,
  print: (entry: LogEntry) => void,
): Promise<void> {
  const told = new Set<string>();
  for (;;) {
    const { status } = await findRun(stack.pool, query.row.id);
    for (const entry of await readAll(stack, query)) {
      if (!told.has(entry.id)) print(entry);
      told.add(entry.id);
    }
    if (!follow || status !== 'running' || io.signal.aborted) return;
    await sleep(POLL_MS, undefined, { signal: io.signal }).catch(() => {});
  }
}

async function readAll(stack: Stack, { row, plan, node, all }: Query): Promise<LogEntry[]> {
  const about = { run: row.id, plan, since: row.created_at, ...(node !== undefined && { node }) };
  const history = await readHistory(await stack.temporal(), { ...about, all });
  return [...history, ...readWorkerLogs({ ...about, home: home() })].sort((a, b) => a.at.getTime() - b.at.getTime());
}

function entryPrinter(io: CommandIo, json: boolean): (entry: LogEntry) => void {
  const terminal = detectTerminal(io);
  if (json) return ({ at, where, text, trouble }) => io.out(JSON.stringify({ at, where, text, trouble }));
  return (entry) => io.out(entryLine(entry, terminal));
}

function entryLine({ at, where, text, trouble }: LogEntry, terminal: Terminal): string {
  const time = paint(terminal, 'dim', `${at.toISOString().slice(0, 19)}Z`);
  return `${time} ${paint(terminal, 'bold', where)}  ${trouble ? paint(terminal, 'yellow', text) : text}`;
}
