/**
 * `npm test [-- suite…]`: every suite in order, then one table of what ran and what was skipped.
 * A skip that tests/allowed-skips.json does not name is a failure, and so is a suite in which nothing ran.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Table from 'cli-table3';
import { python, repoRoot } from '../services/home.ts';
import { type AbsentPart, absentParts } from './absent-parts.ts';
import { runCommand } from './subprocess.ts';
import { readJunitReport, readVitestReport, type SuiteReport } from './test-reports.ts';

interface Suite {
  name: string;
  /** Longest a suite may take on two busy cores. */
  minutes: number;
  command(reportPath: string): { command: string; args: string[]; cwd: string };
  read(report: string): SuiteReport;
}

interface SuiteResult extends SuiteReport {
  name: string;
  seconds: number;
  /** Why the suite failed as a whole, beyond its tests. */
  problems: string[];
}

const root = repoRoot();

const vitestSuite = (name: string, minutes: number): Suite => ({
  name,
  minutes,
  command: (reportPath) => ({
    command: process.execPath,
    args: [
      join(root, 'node_modules/vitest/vitest.mjs'),
      ...['run', '--project', name, '--reporter=default', '--reporter=json', `--outputFile.json=${reportPath}`],
    ],
    cwd: root,
  }),
  read: (report) => readVitestReport(report, root),
});

const SUITES: Suite[] = [
  vitestSuite('unit', 10),
  {
    name: 'trainer',
    minutes: 15,
    command: (reportPath) => ({
      command: python(),
      args: ['-m', 'pytest', '-q', '-p', 'no:cacheprovider', `--junitxml=${reportPath}`],
      cwd: join(root, 'trainer'),
    }),
    read: readJunitReport,
  },
  vitestSuite('integration', 30),
  vitestSuite('replay', 5),
  vitestSuite('e2e', 20),
];

async function main(): Promise<number> {
  const asked = process.argv.slice(2);
  const unknown = asked.filter((name) => !SUITES.some((suite) => suite.name === name));
  if (unknown.length > 0) {
    console.error(`no such suite: ${unknown.join(', ')}; there are ${SUITES.map(({ name }) => name).join(', ')}`);
    return 2;
  }
  const folder = mkdtempSync(join(tmpdir(), 'exp-tests-'));
  const results: SuiteResult[] = [];
  try {
    for (const suite of SUITES) {
      if (asked.length === 0 || asked.includes(suite.name)) results.push(await runSuite(suite, folder));
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  return summarize(results);
}

async function runSuite(suite: Suite, folder: string): Promise<SuiteResult> {
  console.log(`\n── ${suite.name} ${'─'.repeat(60 - suite.name.length)}`);
  const reportPath = join(folder, `${suite.name}.report`);
  const { command, args, cwd } = suite.command(reportPath);
  const ended = await runCommand(command, args, {
    cwd,
    timeoutMs: suite.minutes * 60_000,
    output: 'inherit',
    // Empty is unset: services that tests start shall not compile all they import at every start.
    env: { CI: 'true', PYTHONDONTWRITEBYTECODE: '', ...(!process.stdout.isTTY && { NO_COLOR: '1' }) },
  });
  const text = await readFile(reportPath, 'utf8').catch(() => null);
  const report = text === null ? { passed: 0, failed: 0, skips: [] } : suite.read(text);
  return { name: suite.name, seconds: ended.seconds, ...report, problems: problemsOf(suite, ended, report) };
}

function problemsOf(suite: Suite, ended: { code: number; timedOut: boolean }, report: SuiteReport): string[] {
  if (ended.timedOut) return [`${suite.name}: not finished after ${suite.minutes} minutes`];
  const problems = unexpectedSkips(suite.name, report.skips);
  if (report.passed + report.failed === 0) problems.push(`${suite.name}: nothing was executed`);
  else if (ended.code !== 0 && report.failed === 0) problems.push(`${suite.name}: ended with code ${ended.code}`);
  return problems;
}

/** Skips must be exactly those whose missing part is missing here. */
function unexpectedSkips(suite: string, skips: readonly string[]): string[] {
  const allowed = JSON.parse(readFileSync(join(root, 'tests/allowed-skips.json'), 'utf8')) as {
    skips: { suite: string; test: string; needs: AbsentPart }[];
  };
  const absent = absentParts();
  const expected = new Set(
    allowed.skips.filter((skip) => skip.suite === suite && absent.has(skip.needs)).map(({ test }) => test),
  );
  return [
    ...skips.filter((test) => !expected.has(test)).map((test) => `${suite}: skipped, but not allowed to be: ${test}`),
    ...[...expected]
      .filter((test) => !skips.includes(test))
      .map((test) => `${suite}: expected to be skipped, but was not: ${test}`),
  ];
}

function summarize(results: readonly SuiteResult[]): number {
  const sum = (count: (result: SuiteResult) => number): number =>
    results.reduce((total, result) => total + count(result), 0);
  const table = new Table({
    head: ['suite', 'executed', 'passed', 'failed', 'skipped', 'seconds'],
    colAligns: ['left', 'right', 'right', 'right', 'right', 'right'],
    style: { head: [], border: [], compact: true },
  });
  for (const { name, passed, failed, skips, seconds } of results) {
    table.push([name, passed + failed, passed, failed, skips.length, seconds.toFixed(1)]);
  }
  console.log(`\n${table.toString()}`);
  for (const { skips } of results) for (const skip of skips) console.log(`skipped: ${skip}`);
  const problems = results.flatMap((result) => result.problems);
  for (const problem of problems) console.log(`PROBLEM: ${problem}`);

  const failed = sum((result) => result.failed) + problems.length;
  console.log(
    `${sum((result) => result.passed)} passed, ${failed} failed, ${sum(({ skips }) => skips.length)} skipped`,
  );
  return failed === 0 ? 0 : 1;
}

process.exitCode = await main();
