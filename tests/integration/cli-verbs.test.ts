import { spawn } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Command, CommandIo } from '../../cli/command.ts';
import { command as cancel } from '../../cli/commands/cancel.ts';
import { command as list } from '../../cli/commands/list.ts';
import { command as resume } from '../../cli/commands/resume.ts';
import { command as status } from '../../cli/commands/status.ts';
import { command as submit } from '../../cli/commands/submit.ts';
import { ExpError } from '../../schemas/errors.ts';
import { repoRoot } from '../../services/home.ts';
import { writeProfile, writeSpec } from './toy-profile.ts';
import { freePort, startPostgres, startTemporal, type TestService } from './toy-services.ts';

/** No worker runs here: what a submit promises does not need one. */
let folder: string;
let postgres: TestService;
let temporal: TestService;
let profile: string;
let pool: pg.Pool;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'exp-verbs-'));
  process.env['EXP_HOME'] = join(folder, 'home');
  postgres = await startPostgres();
  temporal = await startTemporal();
  profile = writeProfile(folder, { postgres: postgres.address, temporal: temporal.address });
  pool = new pg.Pool({ connectionString: postgres.address });
});

afterAll(async () => {
  await pool?.end();
  await Promise.all([postgres?.stop(), temporal?.stop()]);
  await rm(folder, { recursive: true, force: true });
});

interface Answer {
  exitCode: number;
  out: string[];
  err: string[];
  error?: ExpError;
}

async function exp(command: Command, ...argv: string[]): Promise<Answer> {
  const [out, err]: string[][] = [[], []];
  const io: CommandIo = {
    out: (text) => void out?.push(text),
    err: (text) => void err?.push(text),
    isTTY: false,
    env: {},
    signal: new AbortController().signal,
  };
  try {
    return { exitCode: await command.run([...argv, '--profile', profile], io), out: out ?? [], err: err ?? [] };
  } catch (error) {
    if (!(error instanceof ExpError)) throw error;
    return { exitCode: -1, out: out ?? [], err: err ?? [], error };
  }
}

const lastJson = ({ out }: Answer) => JSON.parse(out.at(-1) ?? '') as Record<string, unknown>;

test('submit --json ends with {run, status}; a second one attaches; status --json lists every node', async () => {
  const spec = writeSpec(folder, 'shape');
  const first = await exp(submit, spec, '--json');
  expect(first.exitCode).toBe(0);
  expect(Object.keys(lastJson(first))).toEqual(['run', 'status']);
  expect(lastJson(first)['status']).toBe('running');
  expect(first.out).toHaveLength(1);
  const run = lastJson(first)['run'] as string;
  expect(run).toMatch(/^shape-\d{6}-[0-9a-f]{6}$/);
  expect(lastJson(await exp(submit, spec, '--json'))).toEqual({ run, status: 'running' });

  const answer = lastJson(await exp(status, run, '--json'));
  expect(answer).toMatchObject({ run, status: 'running', mlflow_url: null });
  const nodes = answer['nodes'] as Record<string, unknown>[];
  expect(nodes.map(({ id }) => id)).toContain('cold_start.trajectories');
  for (const node of nodes) {
    expect(Object.keys(node)).toEqual(expect.arrayContaining(['id', 'kind', 'key', 'status', 'attempts']));
    expect(node).toMatchObject({ status: 'waiting', attempts: 0, key: expect.stringMatching(/^[0-9a-f]{64}$/) });
  }
});

test('submit shows the plan it runs, and how to follow the run', async () => {
  const { out } = await exp(submit, writeSpec(folder, 'shown'));
  const text = out.join('\n');
  expect(text).toMatch(/corpus +corpus +[0-9a-f]{12} +run/);
  expect(text).toMatch(/to follow it: exp watch shown-\d{6}-[0-9a-f]{6}$/);
});

test('a label makes another run of the same spec', async () => {
  const spec = writeSpec(folder, 'labelled');
  const [plain, labelled] = [
    lastJson(await exp(submit, spec, '--json')),
    lastJson(await exp(submit, spec, '--label', 'b', '--json')),
  ];
  expect(plain['run']).not.toBe(labelled['run']);
});

test('an invalid spec is exit 2 with all its problems, and leaves no run', async () => {
  const spec = writeSpec(folder, 'invalid');
  writeFileSync(spec, readFileSync(spec, 'utf8').replace('max_turns', 'max_trns').replace('seed: 17', 'seed: x'));
  const { exitCode, err } = await exp(submit, spec);
  expect(exitCode).toBe(2);
  expect(err.join('\n')).toMatch(/invalid\.yaml:3:\d+: TYPE/);
  expect(err.join('\n')).toMatch(/invalid\.yaml:\d+:\d+: UNKNOWN_FIELD.*max_turns/);
  expect((await pool.query("select 1 from runs where name = 'invalid'")).rowCount).toBe(0);
});

test('what the profile lacks is refused with the list, and leaves no run', async () => {
  const spec = writeSpec(folder, 'lacking');
  const { error, err } = await exp(submit, spec, 'policy.base=no-such-model');
  expect(error?.code).toBe('MISSING_INPUT');
  expect(err.join('\n')).toContain('no-such-model');
});

test('list shows runs newest first, as JSON too', async () => {
  const { runs } = lastJson(await exp(list, '--json')) as { runs: { run: string; status: string }[] };
  expect(runs[0]?.run).toMatch(/^labelled-/);
  expect((await exp(list)).out.join('\n')).toMatch(/labelled-\S+ +running/);
});

test('cancel closes a run that was recorded and never started; resume starts it', async () => {
  const { run } = lastJson(await exp(submit, writeSpec(folder, 'unstarted'), '--json'));
  await pool.query("update runs set id = 'ghost-260101-000000' where id = $1", [run]);
  const cancelled = await exp(cancel, 'ghost-260101-000000', '--json');
  expect(lastJson(cancelled)).toEqual({ run: 'ghost-260101-000000', status: 'cancelled' });

  expect(lastJson(await exp(resume, 'ghost', '--json'))).toEqual({ run: 'ghost-260101-000000', status: 'running' });
  const { rows } = await pool.query("select status, ended_at from runs where id = 'ghost-260101-000000'");
  expect(rows).toEqual([{ status: 'running', ended_at: null }]);
});

test('resume refuses while another run of the same spec is active', async () => {
  const spec = writeSpec(folder, 'rival');
  const { run } = lastJson(await exp(submit, spec, '--json'));
  await pool.query("update runs set status = 'failed', ended_at = now() where id = $1", [run]);
  const second = lastJson(await exp(submit, spec, '--json'));
  expect(second['run']).not.toBe(run);
  const { error } = await exp(resume, run as string);
  expect(error?.code).toBe('RUN_ACTIVE');
  expect(error?.message).toContain(second['run'] as string);
});

test('an unknown run is an answer, not a crash', async () => {
  expect((await exp(status, 'nosuchrun')).error?.code).toBe('RUN_UNKNOWN');
});

test('with Temporal away, submit says so within its deadline and leaves nothing half-made', async () => {
  const elsewhere = writeProfile(await mkdtemp(join(folder, 'away-')), {
    postgres: postgres.address,
    temporal: `127.0.0.1:${await freePort()}`,
  });
  const spec = writeSpec(folder, 'away');
  const began = performance.now();
  const { error } = await exp(
    { ...submit, run: (argv, io) => submit.run([...argv.slice(0, -1), elsewhere], io) },
    spec,
  );

  expect(error?.code).toBe('SERVICE_UNREACHABLE');
  expect(performance.now() - began).toBeLessThan(20_000);
  expect((await pool.query("select 1 from runs where name = 'away'")).rowCount).toBe(0);
});

test('with PostgreSQL away, every verb says so', async () => {
  const elsewhere = writeProfile(await mkdtemp(join(folder, 'gone-')), {
    postgres: `postgresql://exp@127.0.0.1:${await freePort()}/exp`,
    temporal: temporal.address,
  });
  for (const verb of [status, list, cancel]) {
    const { error } = await exp(
      { ...verb, run: (argv, io) => verb.run([...argv.slice(0, -1), elsewhere], io) },
      ...(verb === list ? [] : ['latest']),
    );
    expect(error?.code).toBe('SERVICES_DOWN');
  }
});

test('eight processes at once get one run; a service that is away is exit 69, a bad flag exit 2', async () => {
  const spec = writeSpec(folder, 'processes');
  const answers = await Promise.all(
    Array.from({ length: 8 }, () => execute(['submit', spec, '--json', '--profile', profile])),
  );
  expect(new Set(answers.map(({ code }) => code))).toEqual(new Set([0]));
  expect(new Set(answers.map(({ stdout }) => stdout)).size).toBe(1);

  const away = writeProfile(await mkdtemp(join(folder, 'off-')), {
    postgres: `postgresql://exp@127.0.0.1:${await freePort()}/exp`,
    temporal: temporal.address,
  });
  expect((await execute(['submit', spec, '--profile', away])).code).toBe(69);
  expect((await execute(['list', '--profle', profile])).code).toBe(2);
});

/** The built program, as a user starts it. */
const MAIN = join(process.env['EXP_TEST_DIST'] ?? join(repoRoot(), 'dist'), 'cli', 'main.js');

function execute(argv: string[]): Promise<{ code: number | null; stdout: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [MAIN, ...argv], { stdio: ['ignore', 'pipe', 'ignore'] });
    let stdout = '';
    child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString()));
    child.on('error', reject).on('exit', (code) => resolve({ code, stdout }));
  });
}
