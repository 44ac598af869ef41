/** `exp`: finds the verb and runs it. Verbs are imported only when asked for, so that `exp --help` is quick. */
import { ExitCode, ExpError } from '../schemas/errors.ts';
import type { Command, CommandIo } from './command.ts';

interface Verb {
  name: string;
  summary: string;
  load(): Promise<{ command: Command }>;
}

/** In the order a newcomer meets them. */
const VERBS: readonly Verb[] = [
  {
    name: 'validate',
    summary: 'Check a spec; every problem at file:line:col.',
    load: () => import('./commands/validate.ts'),
  },
  {
    name: 'plan',
    summary: 'Show what a spec would run, and what it would reuse.',
    load: () => import('./commands/plan.ts'),
  },
  {
    name: 'submit',
    summary: 'Run a spec; starts the services when they are not up.',
    load: () => import('./commands/submit.ts'),
  },
  { name: 'status', summary: 'Show where a run is.', load: () => import('./commands/status.ts') },
  { name: 'watch', summary: 'Follow a run live.', load: () => import('./commands/watch.ts') },
  { name: 'logs', summary: 'Show the logs of a run or a service.', load: () => import('./commands/logs.ts') },
  { name: 'list', summary: 'List the runs.', load: () => import('./commands/list.ts') },
  {
    name: 'pause',
    summary: 'Hold a run back; what is in flight is finished.',
    load: () => import('./commands/pause.ts'),
  },
  { name: 'continue', summary: 'Let a paused run go on.', load: () => import('./commands/continue.ts') },
  {
    name: 'budget',
    summary: 'Show what a run has spent, and set its bounds.',
    load: () => import('./commands/budget.ts'),
  },
  { name: 'approve', summary: 'Answer a gate that asks.', load: () => import('./commands/approve.ts') },
  { name: 'cancel', summary: 'Stop a run.', load: () => import('./commands/cancel.ts') },
  { name: 'resume', summary: 'Go on with a run that ended early.', load: () => import('./commands/resume.ts') },
  {
    name: 'rerun',
    summary: 'Run a node of a run again, and all that depends on it.',
    load: () => import('./commands/rerun.ts'),
  },
  { name: 'fork', summary: 'Run the spec of a run with changes.', load: () => import('./commands/fork.ts') },
  { name: 'why', summary: 'Say why a node of a run ran or was reused.', load: () => import('./commands/why.ts') },
  { name: 'diff', summary: 'Show how two runs or specs differ.', load: () => import('./commands/diff.ts') },
  {
    name: 'compare',
    summary: 'Compare arms and runs, question by question, with a control.',
    load: () => import('./commands/compare.ts'),
  },
  {
    name: 'report',
    summary: 'Write a run as one HTML page: results, curves, timeline, trajectories.',
    load: () => import('./commands/report.ts'),
  },
  {
    name: 'ask',
    summary: 'Ask a checkpoint one question, with a live trace.',
    load: () => import('./commands/ask.ts'),
  },
  {
    name: 'world',
    summary: 'Build, search, visit and evaluate a world of pages.',
    load: () => import('./commands/world.ts'),
  },
  {
    name: 'trajectory',
    summary: 'See what an import of trajectories would train on.',
    load: () => import('./commands/trajectory.ts'),
  },
  {
    name: 'advantages',
    summary: 'Compute the advantages of IGPO, turn by turn, for groups of rollouts.',
    load: () => import('./commands/advantages.ts'),
  },
  {
    name: 'artifacts',
    summary: 'List, show and verify artifacts.',
    load: () => import('./commands/artifacts.ts'),
  },
  { name: 'gc', summary: 'Remove what no kept run needs.', load: () => import('./commands/gc.ts') },
  { name: 'schema', summary: 'Print the JSON Schema of a document.', load: () => import('./commands/schema.ts') },
  { name: 'up', summary: 'Start the services of this machine.', load: () => import('./commands/up.ts') },
  { name: 'down', summary: 'Stop them all.', load: () => import('./commands/down.ts') },
  { name: 'doctor', summary: 'Say what is wrong, and what to do.', load: () => import('./commands/doctor.ts') },
  {
    name: 'setup',
    summary: 'Make what the first call makes: packages, build, Python, models.',
    load: () => import('./commands/setup.ts'),
  },
];

function help(): string {
  const width = Math.max(...VERBS.map(({ name }) => name.length));
  return [
    'exp: durable, comparable experiments for training deep-research agents.',
    '',
    'usage: exp <verb> [options]        exp <verb> --help',
    '',
    ...VERBS.map(({ name, summary }) => `  ${name.padEnd(width)}  ${summary}`),
    '',
    'exit codes: 0 done, 1 failed, 2 invalid input, 3 gate failed, 4 budget, 5 done with quarantined items,',
    '            69 service unreachable',
  ].join('\n');
}

/** Both streams may be pipes to a reader that left (`exp list | head`): that is no failure of ours. */
function processIo(): CommandIo {
  const interrupted = new AbortController();
  const onSignal = (): void => {
    if (interrupted.signal.aborted) process.exit(130);
    interrupted.abort();
  };
  process.on('SIGINT', onSignal).on('SIGTERM', onSignal);
  process.stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? 0 : 1));
  return {
    out: (text) => void process.stdout.write(`${text}\n`),
    err: (text) => void process.stderr.write(`${text}\n`),
    isTTY: process.stdout.isTTY === true,
    ...(process.stdout.columns !== undefined && { columns: process.stdout.columns }),
    env: process.env,
    signal: interrupted.signal,
  };
}

/** Errors of a strict `parseArgs` are the user's. */
const isUsageError = (error: unknown): error is Error =>
  error instanceof TypeError && String((error as NodeJS.ErrnoException).code).startsWith('ERR_PARSE_ARGS');

/** PostgreSQL lacks a table or column: `exp up`, and every worker at its start, adds what is new. */
const isOlderSchema = (error: unknown): boolean =>
  error instanceof Error && ['42P01', '42703'].includes(String((error as NodeJS.ErrnoException).code));

const UNAVAILABLE = new Set(['SERVICES_DOWN', 'SERVICE_UNREACHABLE', 'SERVICE_NOT_READY', 'WORLD_UNAVAILABLE']);
const FAILED = new Set(['SETUP_FAILED', 'STORAGE_FULL', 'RUN_FAILED', 'NODE_FAILED', 'ENGINE_BUSY']);

function exitCodeOf(code: string): number {
  if (UNAVAILABLE.has(code)) return ExitCode.unavailable;
  return FAILED.has(code) ? ExitCode.runFailed : ExitCode.invalidInput;
}

async function runVerb(verb: Verb, argv: readonly string[], io: CommandIo): Promise<number> {
  try {
    const { command } = await verb.load();
    const flags = argv.slice(0, argv.includes('--') ? argv.indexOf('--') : undefined);
    if (flags.includes('--help') || flags.includes('-h')) {
      io.out([`usage: exp ${command.usage}`, command.summary, ...(command.help ? ['', command.help] : [])].join('\n'));
      return ExitCode.done;
    }
    return await command.run(argv, io);
  } catch (error) {
    if (io.signal.aborted) {
      io.err(`exp ${verb.name}: interrupted`);
      return 130;
    }
    if (error instanceof ExpError) {
      io.err(error.message);
      return exitCodeOf(error.code);
    }
    if (isUsageError(error)) {
      io.err(`exp ${verb.name}: USAGE: ${error.message.split('. ')[0]}; see \`exp ${verb.name} --help\``);
      return ExitCode.invalidInput;
    }
    if (isOlderSchema(error)) {
      io.err(`exp ${verb.name}: SERVICES_OLD: the services were started by an older version; run: exp up`);
      return ExitCode.unavailable;
    }
    io.err(`exp ${verb.name}: INTERNAL: ${error instanceof Error ? error.message : String(error)}`);
    if (process.env.EXP_DEBUG) io.err(String((error as Error).stack));
    else io.err('this is a fault of exp; EXP_DEBUG=1 shows where');
    return ExitCode.runFailed;
  }
}

async function unknownVerb(name: string, io: CommandIo): Promise<number> {
  const { closest, distance } = (await import('fastest-levenshtein')).default;
  const near = closest(
    name,
    VERBS.map((verb) => verb.name),
  );
  const hint = distance(name, near) <= 2 ? ` (did you mean ${near}?)` : '';
  io.err(`exp: USAGE: there is no verb ${JSON.stringify(name.slice(0, 40))}${hint}; see \`exp --help\``);
  return ExitCode.invalidInput;
}

async function main(): Promise<number> {
  const [name, ...argv] = process.argv.slice(2);
  const io = processIo();
  if (name === undefined || name === '--help' || name === '-h' || name === 'help') {
    io.out(help());
    return ExitCode.done;
  }
  if (name === '--version') {
    const { readFileSync } = await import('node:fs');
    const { repoRoot } = await import('../services/home.ts');
    io.out((JSON.parse(readFileSync(`${repoRoot()}/package.json`, 'utf8')) as { version: string }).version);
    return ExitCode.done;
  }
  const verb = VERBS.find((candidate) => candidate.name === name);
  return verb === undefined ? unknownVerb(name, io) : runVerb(verb, argv, io);
}

process.exitCode = await main();
