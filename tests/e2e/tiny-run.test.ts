import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { loadProfile } from '../../plan/profile.ts';
import { connections } from '../../services/connections.ts';
import { modelsDir, python, repoRoot } from '../../services/home.ts';
import { isLoopback, listeners } from '../../services/ports.ts';
import { stackProcesses } from '../../services/processes.ts';

/**
 * One small spec on the whole real stack: Temporal, PostgreSQL, Milvus Lite, MLflow, vLLM with random weights, the
 * trainer. Processes are killed on the way. The stack has a home of its own and is gone at the end.
 */
const SPEC = join(repoRoot(), 'tests', 'fixtures', 'specs', 'tiny.yaml');
let home: string;
let profilePath: string;
let pool: pg.Pool;

const run = promisify(execFile);
const exp = async (...args: string[]) => {
  const { stdout } = await run(join(repoRoot(), 'exp'), args, {
    env: { ...process.env, EXP_HOME: home, EXP_PROFILE: profilePath },
    maxBuffer: 2 ** 26,
  });
  return stdout;
};
const lastJson = (stdout: string) => JSON.parse(stdout.trim().split('\n').at(-1) as string);

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'exp-e2e-'));
  const policy = join(home, 'tiny');
  await run(python(), [
    join(repoRoot(), 'trainer', 'tests', 'tiny_policy.py'),
    '--tokenizer',
    join(modelsDir(), 'smollm2-135m-instruct'),
    '--out',
    policy,
  ]);
  profilePath = await writeProfile(policy);
  await exp('up');
  process.env['EXP_HOME'] = home;
  const { postgres } = await connections(loadProfile(profilePath, join(repoRoot(), 'profiles')));
  pool = new pg.Pool({ connectionString: postgres.url });
  pool.on('error', () => {});
}, 420_000);

afterAll(async () => {
  await pool?.end();
  await exp('down').catch(() => undefined);
  await rm(home, { recursive: true, force: true });
}, 120_000);

/** The local profile with the tiny policy in its registry and its engine. */
async function writeProfile(policy: string): Promise<string> {
  const sha256 = createHash('sha256')
    .update(await readFile(join(policy, 'model.safetensors')))
    .digest('hex');
  const local = await readFile(join(repoRoot(), 'profiles', 'local.yaml'), 'utf8');
  const text = local
    .replace('model: smollm2-135m-instruct', 'model: tiny')
    .replace(/kv_cache_gib: \d+/, 'kv_cache_gib: 1')
    .replace(
      '  models:\n',
      `  models:\n    tiny: { path: ${policy}, sha256: "${sha256}", format: safetensors, context_length: 4096, licence: none }\n`,
    );
  await mkdir(home, { recursive: true });
  const path = join(home, 'profile.yaml');
  await writeFile(path, text);
  return path;
}

interface NodeStatus {
  id: string;
  kind: string;
  key: string;
  status: string;
  attempts: number;
}
const statusOf = async (id: string): Promise<{ status: string; nodes: NodeStatus[]; mlflow_url: string }> =>
  lastJson(await exp('status', id, '--json'));

async function until<T>(what: string, look: () => Promise<T | undefined | false>, seconds = 300): Promise<T> {
  for (const deadline = Date.now() + seconds * 1000; Date.now() < deadline; await delay(500)) {
    const found = await look().catch(() => undefined);
    if (found) return found;
  }
  throw new Error(`${what}: not seen within ${seconds} s`);
}

/** Kill a service with SIGKILL, without a word: its leader, for its helpers may have lower pids where pids wrap around. */
function killService(service: string): void {
  const leader = stackProcesses(home).find((found) => found.service === service && found.pid === found.group);
  if (leader === undefined) throw new Error(`no process of ${service}`);
  process.kill(leader.pid, 'SIGKILL');
}

const rowsOf = async (query: string): Promise<number> => Number((await pool.query(query)).rows[0]?.count);

let id: string;

test('a run survives the kill of a worker while it indexes and while it samples, of its trainer and its engine', async () => {
  ({ run: id } = lastJson(await exp('submit', SPEC, '--json')));

  await until('a sealed shard of the index', async () => (await rowsOf('select count(*) from index_shards')) > 0);
  killService('worker-cpu');
  const trainer = await until('a trainer', async () => {
    const query = "select state from leases where resource like 'trainer/%' and state ? 'process'";
    const { rows } = await pool.query<{ state: { process: { pid: number } } }>(query);
    return rows[0]?.state.process.pid;
  });
  process.kill(trainer, 'SIGKILL');
  await until('a rollout turn', async () => (await rowsOf('select count(*) from turns')) > 0);
  killService('worker-rollout');
  await until('another rollout turn', async () => (await rowsOf('select count(*) from turns')) > 0);
  killService('engine');

  const ended = await until(
    'the end of the run',
    async () => {
      const state = await statusOf(id);
      return state.status !== 'running' && state;
    },
    600,
  );
  expect(ended.nodes.map(({ id: name, status }) => `${name} ${status}`)).toEqual(
    ended.nodes.map(({ id: name }) => `${name} done`),
  );
  expect(ended.status).toBe('done');
});

test('what was killed came back, and nothing else fell', async () => {
  const log = await readFile(join(home, 'logs', 'supervisord.log'), 'utf8');
  const fallen = [...log.matchAll(/exited: (\S+)/g)].map(([, service]) => service);
  expect(fallen.toSorted()).toEqual(['engine', 'worker-cpu', 'worker-rollout']);
});

test('no optimizer step is skipped or repeated, and each has one point in MLflow', async () => {
  const { nodes, mlflow_url } = await statusOf(id);
  const stage = nodes.find(({ id: name }) => name === 'stage1') as NodeStatus;
  const { rows: steps } = await pool.query('select step, status from steps where stage_key = $1 order by step', [
    stage.key,
  ]);
  expect(steps).toEqual([
    { step: 1, status: 'done' },
    { step: 2, status: 'done' },
  ]);

  const api = `${new URL(mlflow_url).origin}/api/2.0/mlflow`;
  const nodeRun = await until('the MLflow run of the stage', () => searchRun(api, stage.key));
  const history = (await (
    await fetch(`${api}/metrics/get-history?run_id=${nodeRun}&metric_key=train/loss`)
  ).json()) as {
    metrics: { step: number }[];
  };
  expect(history.metrics.map(({ step }) => Number(step))).toEqual([1, 2]);
});

async function searchRun(api: string, key: string): Promise<string | undefined> {
  const { experiments } = (await (await fetch(`${api}/experiments/search`, post({ max_results: 10 }))).json()) as {
    experiments: { experiment_id: string }[];
  };
  const body = {
    experiment_ids: experiments.map(({ experiment_id }) => experiment_id),
    filter: `tags.\`exp.key\` = '${key}'`,
  };
  const { runs } = (await (await fetch(`${api}/runs/search`, post(body))).json()) as {
    runs?: { info: { run_id: string; status: string } }[];
  };
  return runs?.find(({ info }) => info.status === 'FINISHED')?.info.run_id;
}

const post = (body: object) => ({
  method: 'POST',
  headers: { 'content-type': 'application/json' },
  body: JSON.stringify(body),
});

test('the plan says that everything will be reused, and a second submit does so', async () => {
  const plan = JSON.parse(await exp('plan', SPEC, '--json')) as { nodes: { id: string; action: string }[] };
  expect(plan.nodes.filter(({ action }) => action !== 'reuse')).toEqual([]);

  const again = lastJson(await exp('submit', SPEC, '--watch', '--json')) as { run: string; status: string };
  expect(again.status).toBe('done');
  expect(again.run).not.toBe(id);
  const { nodes } = await statusOf(again.run);
  expect(new Set(nodes.map(({ status }) => status))).toEqual(new Set(['reused']));
});

test('everything listens on loopback only', async () => {
  const { ports } = JSON.parse(await readFile(join(home, 'services.json'), 'utf8')) as {
    ports: Record<string, number>;
  };
  const ours = listeners().filter(({ port }) => Object.values(ports).includes(port));
  expect(ours.length).toBeGreaterThanOrEqual(Object.keys(ports).length);
  expect(ours.filter(({ address }) => !isLoopback(address))).toEqual([]);
});

test('after exp down nothing of the stack is left', async () => {
  await exp('down');
  expect(stackProcesses(home)).toEqual([]);
});
