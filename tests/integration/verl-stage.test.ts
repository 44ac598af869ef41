import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { MockActivityEnvironment } from '@temporalio/testing';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { PoolLedger } from '../../activities/adapters/pool-ledger.ts';
import { RayJobs } from '../../activities/adapters/ray-jobs.ts';
import type { NodeRef } from '../../activities/index.ts';
import { NodeProgress } from '../../activities/node-progress.ts';
import { PlanReader } from '../../activities/plan-reader.ts';
import { createVerlExportActivities } from '../../activities/verl-export.ts';
import { verlFolder } from '../../activities/verl-folder.ts';
import { createVerlPublishActivities } from '../../activities/verl-publish.ts';
import { createVerlSegmentActivities } from '../../activities/verl-segment.ts';
import type { Stack } from '../../cli/open-stack.ts';
import { loadTokenizer } from '../../environments/deep-research/prompt.ts';
import type { ArtifactRef, CheckpointBody } from '../../schemas/artifact.ts';
import type { Task } from '../../schemas/task.ts';
import { modelsDir, repoRoot } from '../../services/home.ts';
import { temporaryFolder } from '../temporary-folder.ts';
import { makeVerlEnvironment, verlBin } from '../verl/environment.ts';
import { rayProfile, verlPlan } from '../verl/node.ts';
import { type RayNode, startRay } from '../verl/ray.ts';
import { connectStore, startPostgres, type TestService } from './toy-services.ts';

/** A real Ray and a real PostgreSQL; in the place of verl, which needs GPUs, a program with its settings, files and habits. */
let ray: RayNode;
let postgres: TestService;
let stack: Stack;

beforeAll(async () => {
  await makeVerlEnvironment();
  [ray, postgres] = await Promise.all([startRay(), startPostgres()]);
  stack = await connectStore(postgres.address, temporaryFolder('exp-verl-store-'));
}, 600_000);

afterAll(async () => {
  await stack?.close();
  await Promise.all([ray?.stop(), postgres?.stop()]);
}, 60_000);

const tasks: Task[] = Array.from({ length: 12 }, (_, index) => ({
  task_id: `task-${index}`,
  question: `What licence has package ${'x'.repeat(index)}?`,
  answer: 'MIT',
  aliases: ['MIT License'],
  capability: 'direct_retrieval',
  split: index < 9 ? 'train' : 'held_out',
  source: 'made',
  evidence: [],
  deny_urls: [],
}));

let stages = 0;

/** A stage of a stored plan whose tasks are published; its activities, each attempt in an environment of its own. */
async function fixture({ steps, every }: { steps: number; every: number }) {
  stages += 1;
  const shared_dir = temporaryFolder("exp verl's shared ");
  const command = [verlBin('python'), join(repoRoot(), 'tests/verl/stand_in.py')];
  const profile = rayProfile({ address: ray.address, shared_dir, command });
  const { plan, problems } = await verlPlan({ until: { steps }, checkpoint: { every }, seed: stages }, profile);
  if (plan === null) throw new Error(JSON.stringify(problems));
  const nodes = plan.arms[0]?.nodes ?? [];
  const keyOf = (id: string): string => nodes.find((node) => node.id === id)?.key as string;
  const ref: NodeRef = {
    plan: await stack.store.putJson(plan),
    arm: 'main',
    id: 'on_ray',
    kind: 'rl',
    key: keyOf('on_ray'),
  };
  ref.arm = plan.arms[0]?.name as string;
  const lines = join(shared_dir, 'tasks.jsonl');
  writeFileSync(lines, tasks.map((task) => `${JSON.stringify(task)}\n`).join(''));
  const publish = (id: string, kind: string, files: Record<string, string>) =>
    stack.store.publish({ key: keyOf(id), kind, inputs: [], files, body: {}, metrics: [] });
  await publish('tasks', 'tasks', { 'tasks.jsonl': lines });
  await publish('index', 'index', {});
  const base = join(shared_dir, 'base');
  mkdirSync(base);
  writeFileSync(join(base, 'config.json'), '{}');

  const progress = new NodeProgress(stack.pool);
  await progress.started(ref);
  const plans = new PlanReader(stack.store);
  const tokenizer = await loadTokenizer(join(modelsDir(), 'smollm2-135m-instruct'));
  const deps = {
    plans,
    store: stack.store,
    progress,
    pools: new PoolLedger(stack.pool),
    merged: { directory: () => Promise.reject(new Error('nothing was trained before')) },
    tokenizers: { load: async () => tokenizer },
    worlds: { open: async () => ({ search: vi.fn(), visit: vi.fn(), close: async () => {} }) },
    spend: { hold: async () => {}, mayGoOn: async () => ({ kind: 'admitted' }) as never },
    modelDir: () => base,
    packageDir: join(repoRoot(), 'trainer'),
    servingDtype: 'bfloat16' as const,
    work: join(shared_dir, 'work'),
    ray: { jobs: ray.jobs, cluster: profile.ray as NonNullable<typeof profile.ray> },
  };
  const activities = {
    ...createVerlExportActivities(deps),
    ...createVerlSegmentActivities(deps),
    ...createVerlPublishActivities(deps),
  };
  const folder = verlFolder(deps.ray.cluster, ref.key);
  const id = `exp-${ref.key.slice(0, 12)}`;
  const segment = (number: number, until: number) => {
    const environment = new MockActivityEnvironment();
    return { environment, done: environment.run(activities.runVerlSegment, { node: ref, segment: number, until }) };
  };
  return {
    ref,
    id,
    folder,
    segment,
    metrics: () => progress.metrics(ref.key),
    exported: () => new MockActivityEnvironment().run(activities.exportVerl, ref) as Promise<{ ends: number[] }>,
    publish: (step: number) =>
      new MockActivityEnvironment().run(activities.publishVerl, { node: ref, step }) as Promise<ArtifactRef>,
  };
}

const logOf = (id: string): Promise<string> => ray.jobs.logs(id);
const untilStep = (path: string) => vi.waitFor(() => expect(existsSync(path)).toBe(true), { timeout: 60_000 });

test('a stage is trained in segments, and its weights, metrics and settings are published', async () => {
  const { ref, id, folder, segment, exported, publish, metrics } = await fixture({ steps: 12, every: 1 });

  const { ends } = await exported();
  expect(ends).toEqual([10, 12]);
  for (const [number, until] of ends.entries()) await segment(number, until).done;
  expect(await logOf(`${id}-1`)).toContain('from step 10 to 12');
  const artifact = await publish(12);

  const manifest = await stack.store.manifest(artifact);
  const body = manifest.body as unknown as CheckpointBody & { weights: string };
  expect(body).toMatchObject({ model: 'smollm2-135m-instruct', adapters: [], step: 12, stop_reason: 'steps' });
  expect(body.weights).toBe(manifest.files.find(({ name }) => name === 'model.safetensors')?.sha256);
  expect(manifest.files.map(({ name }) => name)).toEqual([
    'model.safetensors',
    ...[`verl/${id}-0.log`, `verl/${id}-0.metrics.jsonl`, `verl/${id}-1.log`, `verl/${id}-1.metrics.jsonl`],
    ...['verl/overrides-0.json', 'verl/overrides-1.json'],
  ]);
  expect(
    readFileSync(await stack.store.openBlob(body.weights))
      .subarray(-8)
      .readDoubleLE(),
  ).toBe(12);
  expect(manifest.made_with).toMatchObject({ verl: '0.9.1', engine: 'vllm' });
  const loss = (await metrics()).filter(({ name }) => name === 'train/loss');
  expect(loss.map(({ step, value }) => [step, value])).toEqual(
    Array.from({ length: 12 }, (_, at) => [at + 1, 1 / (at + 1)]),
  );
  expect(manifest.metrics.map(({ name }) => name)).toContain('verl/val-core/x/mean_at_4');
  expect(existsSync(folder.root)).toBe(false);
  expect(await publish(12)).toEqual(artifact);
  expect(ref.key).toBe(manifest.key);
});

test('a job that dies is followed by one that goes on from the last checkpoint, and its repeated steps count once', async () => {
  const { id, folder, segment, exported, metrics } = await fixture({ steps: 12, every: 5 });
  await exported();
  writeFileSync(join(folder.root, 'FAIL_AT'), '7');

  await segment(0, 12).done;

  expect((await ray.jobs.find(`${id}-0`))?.status).toBe('FAILED');
  expect(await logOf(`${id}-0-1`)).toContain('from step 5 to 12');
  const rewards = (await metrics()).filter(({ name }) => name === 'rollout/reward');
  // The stand-in's reward says from which step its job began: 6 and 7 are those of the job whose checkpoint holds them.
  expect(rewards.map(({ step, value }) => [step, value])).toEqual([
    ...[1, 2, 3, 4, 5].map((step) => [step, step / 100]),
    ...[6, 7, 8, 9, 10, 11, 12].map((step) => [step, 5 + step / 100]),
  ]);
});

test('a job that always dies fails the stage, with its last words', async () => {
  const { folder, segment, exported } = await fixture({ steps: 3, every: 5 });
  await exported();
  writeFileSync(join(folder.root, 'FAIL_AT'), 'no number');
  await expect(segment(0, 3).done).rejects.toThrow(/VERL: verl stopped at step 0 of 3: .*ValueError/);
});

test('a job that runs is adopted by the attempt after a worker was shut down', async () => {
  const { id, folder, segment, exported } = await fixture({ steps: 8, every: 5 });
  await exported();
  writeFileSync(join(folder.root, 'SECONDS'), '1');
  const first = segment(0, 8);
  const ended = expect(first.done).rejects.toThrow();
  await untilStep(folder.metrics(`${id}-0`));
  first.environment.cancel('WORKER_SHUTDOWN');
  await ended;
  expect((await ray.jobs.find(`${id}-0`))?.status).toBe('RUNNING');

  await segment(0, 8).done;

  expect((await logOf(`${id}-0`)).match(/from step/g)).toHaveLength(1);
  expect(await ray.jobs.find(`${id}-0-1`)).toBeNull();
});

test('a cancelled segment ends its job; taken up again, it goes on from the last checkpoint', async () => {
  const { id, folder, segment, exported } = await fixture({ steps: 6, every: 2 });
  await exported();
  writeFileSync(join(folder.root, 'SECONDS'), '1');
  const first = segment(0, 6);
  const ended = expect(first.done).rejects.toThrow();
  await untilStep(join(folder.checkpoints, 'global_step_2'));
  first.environment.cancel('CANCELLED');
  await ended;
  expect((await ray.jobs.find(`${id}-0`))?.status).toBe('STOPPED');

  writeFileSync(join(folder.root, 'SECONDS'), '0');
  await segment(0, 6).done;

  expect(await logOf(`${id}-0-1`)).toMatch(/from step [24] to 6/);
});

test('submitted twice at once, a job runs once and gets its arguments as they were', async () => {
  const words = [`it's "quoted" $HOME \`x\``, "a='b c'", '', '\\'];
  const command = [
    verlBin('python'),
    '-c',
    'import sys, os, json; print(json.dumps([*sys.argv[1:], os.environ["EXP_X"]]))',
    ...words,
  ];
  const submission = { id: 'exp-words-0', command, env: { EXP_X: 'from outside' } };
  await Promise.all([ray.jobs.submit(submission), ray.jobs.submit(submission)]);
  await vi.waitFor(async () => expect((await ray.jobs.find('exp-words-0'))?.status).toBe('SUCCEEDED'), {
    timeout: 60_000,
    interval: 300,
  });
  const said = (await logOf('exp-words-0')).split('\n').filter((line) => line.startsWith('['));
  expect(said.map((line) => JSON.parse(line) as unknown)).toEqual([[...words, 'from outside']]);
});

test('a wrong token is an answer, a Ray that is away is an outage, an unknown job is none', async () => {
  const wrong = new RayJobs({ address: ray.address, token: 'another' });
  await expect(wrong.find('x')).rejects.toThrow(/RAY: looking at x: 40[13]/);
  await expect(new RayJobs({ address: 'http://127.0.0.1:9' }).find('x')).rejects.toThrow(
    /UNAVAILABLE: Ray does not answer/,
  );
  expect(await ray.jobs.find('nobody')).toBeNull();
  await ray.jobs.stop('nobody');
});
