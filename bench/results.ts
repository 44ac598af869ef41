/** Results of benchmarks: one JSON file each, and `bench/RESULTS.md` made from all of them. */
import { execFileSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { cpus, loadavg, totalmem } from 'node:os';
import { join } from 'node:path';
import { python, repoRoot } from '../services/home.ts';

export type Row = Record<string, unknown>;

/** Under which figures were taken. */
export interface Circumstances {
  machine: { cpu: string; cores: number; memory_gib: number };
  versions: { node: string; python: string };
  /** Processes that wanted a core before it began; figures of a busy machine say little. */
  load_before: number;
  date: string;
  /** With `+` where files differed from it. */
  commit: string;
}

export interface Result extends Circumstances {
  name: string;
  compares: string;
  /** Of the program. */
  args: readonly string[];
  rows: Row[];
}

const folder = join(repoRoot(), 'bench/results');
const document = join(repoRoot(), 'bench/RESULTS.md');

export function circumstances(): Circumstances {
  const ask = (command: string, ...args: string[]): string =>
    execFileSync(command, args, { cwd: repoRoot(), encoding: 'utf8' }).trim();
  const changed = ask('git', 'status', '--porcelain', '--untracked-files=no', ':!bench/results', ':!bench/RESULTS.md');
  return {
    machine: { cpu: cpus()[0]?.model ?? 'unknown', cores: cpus().length, memory_gib: Math.round(totalmem() / 2 ** 30) },
    versions: { node: process.versions.node, python: ask(python(), '--version').replace('Python ', '') },
    load_before: Number((loadavg()[0] ?? 0).toFixed(2)),
    date: new Date().toISOString().slice(0, 10),
    commit: `${ask('git', 'rev-parse', '--short', 'HEAD')}${changed === '' ? '' : '+'}`,
  };
}

/** Keeps a result in the place of the one before, and makes the document again. */
export function writeResult(result: Result): void {
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, `${result.name}.json`), `${JSON.stringify(result, null, 2)}\n`);
  const kept = readdirSync(folder)
    .filter((file) => file.endsWith('.json'))
    .sort()
    .map((file) => JSON.parse(readFileSync(join(folder, file), 'utf8')) as Result);
  writeFileSync(document, documentOf(kept));
}

export function documentOf(results: readonly Result[]): string {
  const sections = results.flatMap((result) => [`## ${result.name}`, '', ...sectionOf(result), '']);
  return [
    '# Results of the benchmarks',
    '',
    'Made by `npm run bench` from `bench/results/`. Absolute figures of one small machine are hints; ratios are the result.',
    '',
    ...sections,
  ]
    .join('\n')
    .replace(/\n+$/, '\n');
}

function sectionOf({ compares, args, machine, versions, load_before, date, commit, rows }: Result): string[] {
  const { cpu, cores, memory_gib } = machine;
  const given = args.length > 0 ? `; arguments \`${args.join(' ')}\`` : '';
  return [
    `Measured: ${compares}${given}.`,
    '',
    `${date}, commit ${commit}; ${cpu}, ${cores} cores, ${memory_gib} GiB, load before ${load_before}; Node ${versions.node}, Python ${versions.python}.`,
    '',
    ...tableOf(rows),
  ];
}

/** Markdown; rows that follow each other and have the same columns are one table. */
export function tableOf(rows: readonly Row[]): string[] {
  return rows.flatMap((row, index) => {
    const columns = Object.keys(row);
    const line = `| ${columns.map((column) => cell(row[column])).join(' | ')} |`;
    const before = rows[index - 1];
    if (before !== undefined && Object.keys(before).join() === columns.join()) return [line];
    const right = columns.map((column) => (typeof row[column] === 'number' ? '---:' : '---'));
    return [...(index > 0 ? [''] : []), `| ${columns.join(' | ')} |`, `| ${right.join(' | ')} |`, line];
  });
}

function cell(value: unknown): string {
  const text = typeof value === 'string' ? value : (JSON.stringify(value) ?? '');
  return text.replaceAll('|', '\\|').replaceAll('\n', ' ');
}
