import { rmSync, writeFileSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import type { Command, CommandIo } from '../../cli/command.ts';
import { command as artifacts } from '../../cli/commands/artifacts.ts';
import { command as diff } from '../../cli/commands/diff.ts';
import { command as fork } from '../../cli/commands/fork.ts';
import { command as plan } from '../../cli/commands/plan.ts';
import { command as rerun } from '../../cli/commands/rerun.ts';
import { command as submit } from '../../cli/commands/submit.ts';
import { command as why } from '../../cli/commands/why.ts';
import { openProfile, openStack, type Stack } from '../../cli/open-stack.ts';
import { allNodes, findRun, RunReader } from '../../cli/run-state.ts';
import { startRun } from '../../cli/start-run.ts';
import { ExpError } from '../../schemas/errors.ts';
import type { Plan } from '../../schemas/plan.ts';
import { writeProfile, writeSpec } from './toy-profile.ts';
import { freshSalt, startToyWorker, toyPlan } from './toy-run.ts';
import { startPostgres, startTemporal, type TestService } from './toy-services.ts';

let folder: string;
let postgres: TestService;
let temporal: TestService;
let profile: string;
let stack: Stack;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'exp-reuse-'));
  process.env['EXP_HOME'] = join(folder, 'home');
  postgres = await startPostgres();
  temporal = await startTemporal();
  profile = writeProfile(folder, { postgres: postgres.address, temporal: temporal.address });
  stack = (await openStack(openProfile(profile).profile)) as Stack;
});

afterAll(async () => {
  await stack?.close();
  await Promise.all([postgres?.stop(), temporal?.stop()]);
  await rm(folder, { recursive: true, force: true });
});

interface Answer {
  exitCode: number;
  text: string;
  json: Record<string, unknown>;
  error: ExpError | null;
}

async function exp(command: Command, ...argv: string[]): Promise<Answer> {
  const [out, err]: [string[], string[]] = [[], []];
  const io: CommandIo = {
    out: (text) => void out.push(text),
    err: (text) => void err.push(text),
    isTTY: false,
    env: {},
    signal: new AbortController().signal,
  };
  let exitCode = -1;
  let error: ExpError | null = null;
  try {
    exitCode = await command.run([...argv, '--profile', profile], io);
  } catch (thrown) {
    if (!(thrown instanceof ExpError)) throw thrown;
    error = thrown;
  }
  const text = [...out, ...err].join('\n');
  const json = argv.includes('--json') ? JSON.parse(out.at(-1) ?? '{}') : {};
  return { exitCode, text, json, error };
}

/** Submit and end the run, which no worker takes up; its id. */
async function ended(...argv: string[]): Promise<string> {
  const { json } = await exp(submit, ...argv, '--json');
  const run = json['run'] as string;
  await stack.pool.query(`update runs set status = 'failed', ended_at = now() where id = $1`, [run]);
  await (await stack.temporal()).workflow.getHandle(`run/${run}`).terminate('by the test');
  return run;
}

/** A spec of its own folder, whose pages a test may change. */
async function specIn(name: string): Promise<string> {
  return writeSpec(await mkdtemp(join(folder, 'spec-')), name);
}

interface PlannedNode {
  id: string;
  reason: string;
  since?: { run: string };
}

const nodesIn = ({ json }: Answer) => new Map((json['nodes'] as PlannedNode[]).map((node) => [node.id, node]));

/** First come the tests whose runs a worker ends: it would take up every other one too. */
async function untilEnded(run: string) {
  const reader = new RunReader(stack, run);
  return vi.waitFor(
    async () => {
      const state = await reader.read();
      expect(state.status).not.toBe('running');
      return state;
    },
    { timeout: 30_000, interval: 300 },
  );
}

test('a rerun executes a node and what depends on it again, and reuses what comes before', async () => {
  const salt = freshSalt();
  const chain = toyPlan(
    'chain',
    {
      control: [
        { id: 'tasks', kind: 'tasks', salt },
        { id: 'sft_data', kind: 'trajectories', inputs: ['tasks'], salt },
        { id: 'report', kind: 'report', inputs: ['sft_data'], salt },
      ],
    },
    { profile: 'toy' },
  );
  const worker = await startToyWorker(stack);
  try {
    const first = await startRun(stack, chain);
    await untilEnded(first.run);
    expect((await exp(rerun, first.run)).error?.code).toBe('USAGE');
    const { json, text } = await exp(rerun, first.run, '--from', 'sft_data', '--json');
    expect(text).toContain(`a rerun was asked for, since ${first.run}`);
    const state = await untilEnded(json['run'] as string);

    expect(allNodes(state).map(({ id, status }) => [id, status])).toEqual([
      ['tasks', 'reused'],
      ['sft_data', 'done'],
      ['report', 'done'],
    ]);
    expect(Object.fromEntries(worker.begun)).toEqual({ tasks: 1, sft_data: 2, report: 2 });
    expect((await exp(why, json['run'] as string, 'sft_data')).text).toContain('a rerun was asked for');
    expect((await exp(why, json['run'] as string, 'tasks')).text).toContain('was reused');
    expect((await exp(why, first.run, 'tasks')).text).toMatch(/tasks of .* ran\n/);

    const listed = await exp(artifacts, 'ls', '--run', json['run'] as string, '--json');
    const kinds = (listed.json['artifacts'] as { kind: string }[]).map(({ kind }) => kind);
    expect(kinds.sort()).toEqual(['report', 'tasks', 'trajectories']);
    const tasks = chain.arms[0]?.nodes[0]?.key as string;
    const shown = await exp(artifacts, 'show', tasks.slice(0, 20), '--json');
    expect((shown.json['runs'] as { run: string }[]).map(({ run }) => run)).toEqual([json['run'], first.run]);
  } finally {
    await worker.stop();
  }
});

test('artifacts are listed in pages by key; verify finds a flipped bit and a manifest that is gone', async () => {
  const file = join(folder, 'rates.jsonl');
  await writeFile(file, '{"task_id":"a","passes":2}\n');
  const publish = (key: string) =>
    stack.store.publish({
      key,
      kind: 'profile',
      inputs: [],
      files: { 'pass_rates.jsonl': file },
      body: {},
      metrics: [],
    });
  const keys = ['a', 'b', 'c'].map((letter) => letter.repeat(64));
  for (const key of keys) await publish(key);

  const page = await exp(artifacts, 'ls', '--kind', 'profile', '--limit', '2', '--json');
  expect((page.json['artifacts'] as { key: string }[]).map(({ key }) => key)).toEqual(keys.slice(0, 2));
  const rest = await exp(artifacts, 'ls', '--kind', 'profile', '--after', page.json['next'] as string, '--json');
  expect((rest.json['artifacts'] as { key: string }[]).map(({ key }) => key)).toEqual(keys.slice(2));
  expect((await exp(artifacts, 'verify', '--all')).exitCode).toBe(0);

  const { files } = await stack.store.manifest(keys[0] as string);
  const blob = await stack.store.openBlob(files[0]?.sha256 as string);
  const bytes = await readFile(blob);
  bytes[3] = (bytes[3] as number) ^ 1;
  await writeFile(blob, bytes);
  const broken = await exp(artifacts, 'verify', keys[0] as string);
  expect(broken.exitCode).toBe(1);
  expect(broken.text).toContain('file pass_rates.jsonl');
  expect(broken.text).toContain('is damaged');

  const { rows } = await stack.pool.query<{ manifest_blob: string }>(
    'select manifest_blob from artifacts where key = $1',
    [keys[1]],
  );
  rmSync(await stack.store.openBlob(rows[0]?.manifest_blob as string));
  const checks = (await exp(artifacts, 'verify', '--all', '--json')).json as { broken: number };
  expect(checks.broken).toBe(3);
  expect((await exp(artifacts, 'verify', keys[1] as string)).text).toContain('its manifest');
});

test('plan says which leaf changed since the nearest earlier run; why and diff name it too', async () => {
  const spec = await specIn('leaves');
  expect(nodesIn(await exp(plan, spec, '--json')).get('corpus')?.reason).toBe('no artifact has this key');
  const first = await ended(spec);

  const planned = nodesIn(await exp(plan, spec, 'agent.max_turns=3', '--json'));
  expect(planned.get('held_out.base')?.reason).toBe(`agent.max_turns: 4 → 3, since ${first}`);
  expect(planned.get('held_out.base')?.since).toMatchObject({ run: first, changes: [{ before: 4, after: 3 }] });
  expect(planned.get('corpus')?.reason).toContain(`${first} asked for it too`);
  expect(planned.get('cold_start')?.reason).toBe(`input cold_start.trajectories changed, since ${first}`);

  const second = await ended(spec, 'agent.max_turns=3');
  const explained = await exp(why, second, 'held_out.base');
  expect(explained.text).toContain(`agent.max_turns: 4 → 3, since ${first}`);
  expect(explained.text).toContain('no artifact is there');
  expect((await exp(why, second, 'held_out.base', '--json')).json).toMatchObject({
    key: { kind: 'benchmark', inputs: [{ id: 'tasks' }, { id: 'index' }] },
    made: null,
    since: { run: first },
  });
  expect((await exp(why, second, 'nosuch')).error?.code).toBe('NODE_UNKNOWN');

  const compared = await exp(diff, first, second, '--json');
  expect(compared.json['spec']).toEqual([{ path: 'agent.max_turns', before: 4, after: 3 }]);
  const nodes = compared.json['nodes'] as { id: string; shared: boolean }[];
  expect(nodes.filter(({ shared }) => shared).map(({ id }) => id)).toEqual(['corpus', 'index', 'tasks']);
  expect((await exp(diff, first, spec)).text).toContain('spec: the same');
});

test('a stored plan runs as it is, and is refused by the name of the file that changed', async () => {
  const spec = await specIn('stored');
  const file = join(folder, 'stored.json');
  expect((await exp(plan, spec, 'agent.max_turns=2', '-o', file)).exitCode).toBe(0);

  const { json } = await exp(submit, file, '--json');
  const { plan_blob } = await findRun(stack.pool, json['run'] as string);
  const stored = JSON.parse(await readFile(file, 'utf8')) as Plan;
  expect(await stack.store.readJson<Plan>(plan_blob)).toEqual(stored);
  expect((await exp(submit, file, 'agent.max_turns=3')).error?.code).toBe('USAGE');

  writeFileSync(join(spec, '..', 'pages.jsonl'), '{"url":"https://a.example/","title":"A","text":"beta"}\n');
  const stale = await exp(submit, file);
  expect(stale.error?.code).toBe('STALE_PLAN');
  expect(stale.error?.message).toMatch(/corpus: file pages\.jsonl: [0-9a-f]{12} → [0-9a-f]{12}$/);
  rmSync(spec);
  expect((await exp(submit, file)).error?.message).toMatch(/stored\.json: STALE_PLAN: .*stored\.yaml.* is gone/);
});

test('a fork is the run with what is named changed, while its file still says what it ran', async () => {
  const spec = await specIn('forked');
  const run = await ended(spec, 'agent.max_turns=2');
  const { json } = await exp(fork, run, 'policy.adapter.lora_rank=8', '--json');
  const { plan_blob } = await findRun(stack.pool, json['run'] as string);
  expect((await stack.store.readJson<Plan>(plan_blob)).spec).toMatchObject({
    agent: { max_turns: 2 },
    policy: { adapter: { lora_rank: 8 } },
  });
  expect((await exp(fork, run)).error?.code).toBe('USAGE');

  writeFileSync(spec, (await readFile(spec, 'utf8')).replace('batch: 8', 'batch: 4'));
  const changed = await exp(fork, run, 'policy.adapter.lora_rank=8');
  expect(changed.error?.code).toBe('SPEC_CHANGED');
  expect(changed.error?.message).toContain('curriculum.cold_start.optimizer.batch: 8 → 4');
});
