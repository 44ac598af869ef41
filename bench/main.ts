/**
 * Runs benchmarks and keeps what they measured: `npm run bench` all that take minutes, `npm run bench -- NAME [ARGUMENT …]`
 * one, with arguments for its program.
 *
 * A program prints one JSON object a line on stdout, a row of its table each; anything else goes to stderr. A program that
 * fails, or finds that outputs differ which should be equal, ends with another code than 0, and nothing is kept.
 */
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { repoRoot } from '../services/home.ts';
import { circumstances, type Row, tableOf, writeResult } from './results.ts';

interface Bench {
  /** What is measured, and beside what. */
  compares: string;
  program: string;
  args: readonly string[];
  /** A Python environment of the benchmark's own, and what makes it. */
  python?: { interpreter: string; madeBy: string };
  /** Whether it is among those that run when none is named. */
  takesMinutes: boolean;
}

const BENCHES: Record<string, Bench> = {
  plan: {
    compares: '`exp validate` of a spec with 1,000 arms, of the quickstart alone, and the start of `exp --help`',
    program: 'dist/bench/plan/arms.js',
    args: [],
    takesMinutes: true,
  },
  bad_inputs: {
    compares: 'what `exp validate` says of each bad spec, against what it should say, and what that costs',
    program: 'dist/bench/plan/bad-inputs.js',
    args: [],
    takesMinutes: true,
  },
  report: {
    compares: 'size of a report of 10,000 trajectories, and how soon a browser shows it',
    program: 'dist/bench/report/page.js',
    args: [],
    takesMinutes: true,
  },
  p7: {
    compares:
      'one GRPO step of the trainer and of TRL, on the same weights and 64 trajectories, gradients compared first',
    program: 'bench/trainer/p7.py',
    args: [],
    python: { interpreter: '.exp/venv-trl/bin/python', madeBy: 'bench/trainer/peer-environment.sh' },
    takesMinutes: true,
  },
  beliefs: {
    compares: 'beliefs by the engine and by the trainer: nats between them, and milliseconds by length of the context',
    program: 'dist/bench/learning/beliefs.js',
    args: [],
    takesMinutes: false,
  },
  fidelity: {
    compares: 'what trains and what was sampled: ids, and logprobs of engine and trainer',
    program: 'dist/bench/learning/fidelity/main.js',
    args: [],
    takesMinutes: false,
  },
  world: {
    compares:
      'searches and visits of a named world, one at a time and sixteen at once (arguments: NAME QUESTIONS.jsonl)',
    program: 'dist/bench/world/latency.js',
    args: [],
    takesMinutes: false,
  },
};

/** Load of a machine that does nothing else. */
const QUIET = 0.5;

const root = repoRoot();

async function main(): Promise<number> {
  const [asked, ...args] = process.argv.slice(2);
  if (asked !== undefined && !Object.hasOwn(BENCHES, asked)) {
    console.error(`no such benchmark: ${asked}; there are`);
    for (const [name, { compares }] of Object.entries(BENCHES)) console.error(`  ${name.padEnd(11)} ${compares}`);
    return 2;
  }
  const chosen = Object.entries(BENCHES).filter(([name, { takesMinutes }]) =>
    asked === undefined ? takesMinutes : name === asked,
  );
  const failed: string[] = [];
  for (const [name, bench] of chosen)
    if (!(await measure(name, { ...bench, args: [...bench.args, ...args] }))) failed.push(name);
  if (failed.length > 0) console.error(`failed: ${failed.join(', ')}`);
  return failed.length === 0 ? 0 : 1;
}

async function measure(name: string, bench: Bench): Promise<boolean> {
  console.error(`${name}: ${bench.compares}`);
  const { python } = bench;
  if (python !== undefined && !existsSync(join(root, python.interpreter))) {
    const made = await run(join(root, python.madeBy), [], (line) => console.error(line));
    if (made !== 0) return false;
  }
  const before = circumstances();
  if (before.load_before > QUIET)
    console.error(`the machine is busy (load ${before.load_before}): figures will be worse`);
  const rows: Row[] = [];
  const interpreter = python === undefined ? process.execPath : join(root, python.interpreter);
  const code = await run(interpreter, [join(root, bench.program), ...bench.args], (line) => {
    if (line.startsWith('{')) rows.push(JSON.parse(line) as Row);
    else console.error(line);
  });
  for (const line of tableOf(rows)) console.log(line);
  if (code !== 0) return false;
  writeResult({ name, compares: bench.compares, args: bench.args, ...before, rows });
  return true;
}

/** The exit code; each line of stdout as it comes. */
async function run(command: string, args: readonly string[], onLine: (line: string) => void): Promise<number> {
  const child = spawn(command, args, { cwd: root, stdio: ['ignore', 'pipe', 'inherit'] });
  const ended = new Promise<number>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code) => resolve(code ?? 1));
  });
  for await (const line of createInterface({ input: child.stdout })) onLine(line);
  return ended;
}

process.exitCode = await main();
