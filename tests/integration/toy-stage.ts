/**
 * An rl stage whose policy and trainer are small: outcomes and metrics are what a test says. Everything that decides the
 * stage's course is real: workflows, ledgers, requests, pass rates, groups, evaluations, retention, pauses.
 */
import { mkdir, mkdtemp, readFile, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Context } from '@temporalio/activity';
import { Client, Connection } from '@temporalio/client';
import { bundleWorkflowCode, NativeConnection, Worker } from '@temporalio/worker';
import { trajectoryColumns, writeParquet } from '../../activities/adapters/parquet.ts';
import { PoolLedger } from '../../activities/adapters/pool-ledger.ts';
import { SpendLedger } from '../../activities/adapters/spend-ledger.ts';
import { StepLedger } from '../../activities/adapters/step-ledger.ts';
import { createEvaluateStageActivities } from '../../activities/evaluate-stage.ts';
import { toFailure } from '../../activities/failure.ts';
import { createHoldTrainerActivities } from '../../activities/hold-trainer.ts';
import type { RolloutActivities } from '../../activities/index.ts';
import { createNextMoveActivities } from '../../activities/next-move.ts';
import { NodeProgress } from '../../activities/node-progress.ts';
import { PlanReader } from '../../activities/plan-reader.ts';
import { createPlanRlStepActivities } from '../../activities/plan-rl-step.ts';
import { createPrepareRolloutsActivities, type RolloutSpec } from '../../activities/prepare-rollouts.ts';
import { createPublishProfileActivities } from '../../activities/publish-profile.ts';
import { createRefreshPoolActivities } from '../../activities/refresh-pool.ts';
import { createResolveCheckpointActivities } from '../../activities/resolve-checkpoint.ts';
import { createRunNodesActivities } from '../../activities/run-nodes.ts';
import { createTrainStageActivities } from '../../activities/train-stage.ts';
import type { Stack } from '../../cli/open-stack.ts';
import { contentKey } from '../../schemas/canonical.ts';
import type { Checkpoint } from '../../schemas/checkpoint.ts';
import type { ProfileParameters, RlParameters } from '../../schemas/node-parameters.ts';
import type { NodeKind, Plan, PlanNode } from '../../schemas/plan.ts';
import type { Task } from '../../schemas/task.ts';
import type { Trajectory } from '../../schemas/trajectory.ts';
import { freshSalt } from './toy-run.ts';

/** What the toy policy and the toy trainer do. */
export interface ToyStage {
  /** Whether a sample of a task is right, at the weights after `step`. */
  passes(task: string, sample: number, step: number): boolean;
  /** Metrics of an optimizer step, which lasts until they are known. */
  trains(step: number): Record<string, number> | Promise<Record<string, number>>;
  /** How long a request is sampled, where a test says so; a cancelled one is cut off. */
  samples?(name: string): Promise<void>;
}

export interface ToyRequest {
  /** `<step>`, `<step>.<refill>`, `<step>.eval`, `<step>.refresh`. */
  name: string;
  tasks: string[];
  trajectories: number;
  /** The step after which its weights stood. */
  sampler: number;
  /** What names its shard: a real batch with the name of a sealed one is not sampled again. */
  shard: string;
}

export interface StageWorker {
  /** What was sampled, in order; a request again after a restart stands here again. */
  requests: ToyRequest[];
  stop(): Promise<void>;
}

const AGENT: RlParameters['agent'] = {
  tools: ['search'],
  max_turns: 2,
  max_turn_tokens: 16,
  observation_tokens: 16,
  search_results: 1,
  context_management: 'none',
  terminate_on_answer: true,
  deny_urls: 'none',
  faults: null,
};
const COMMON = {
  agent: AGENT,
  context_length: 256,
  reward: { outcome: 'exact_match', format_penalty: 0, judge: null },
  policy: { model: 'toy', sha256: 'a'.repeat(64) },
} as const;

const PROFILE: ProfileParameters = {
  ...COMMON,
  tasks: null,
  split: 'train',
  rollouts: 4,
  keep: { min_passes: 1, max_passes: 3 },
  stop_decided: true,
  keep_mix: false,
  buckets: null,
  sampling: { temperature: 1, top_p: 1 },
};

const STAGE: RlParameters = {
  ...COMMON,
  backend: { name: 'exp' },
  policy: { ...COMMON.policy, dtype: 'float32' },
  algorithm: {
    name: 'grpo',
    clip: { low: 0.2, high: 0.2, dual: null },
    kl: null,
    entropy: 0,
    loss: 'token_mean',
    importance: null,
    normalize_std: true,
    overlong: null,
    igpo: null,
  },
  rollout: {
    group_size: 4,
    prompts_per_step: 2,
    temperature: 1,
    top_p: 1,
    refills: 2,
    max_staleness: 0,
    cutoff: null,
  },
  optimizer: {
    learning_rate: 1e-4,
    schedule: 'constant',
    warmup: 0,
    weight_decay: 0,
    betas: [0.9, 0.95],
    max_grad_norm: 1,
    minibatch: 2,
  },
  until: { steps: 4, epochs: null, plateau: null },
  evaluate: null,
  health: null,
  refresh_every: null,
  keep: { min_passes: 1, max_passes: 3, of: 4 },
  adapter: { lora_rank: 1, lora_alpha: 1, lora_dropout: 0 },
  tasks: { split: 'train' },
};

/** Half of the benchmark that a stage evaluates on: four questions, one sample each. */
export const evaluateEvery = (every: number): RlParameters['evaluate'] => ({
  benchmark: 'held_out',
  every,
  metric: 'eval/held_out/avg_at_1',
  questions: 'tasks',
  protocol: {
    ...COMMON,
    dataset: { split: 'held_out', limit: null, seed: 1 },
    samples: 1,
    metrics: ['avg@k'],
    sampling: { temperature: 1, top_p: 1 },
  },
});

export interface StagePlanOptions {
  tasks: readonly string[];
  heldOut?: readonly string[];
  profile?: Partial<ProfileParameters>;
  stage?: Partial<RlParameters>;
  checkpoint?: { every: number; keep: { last: number; best?: number } };
}

/** A plan of tasks, profile and stage; the tasks are published already. */
export async function stagePlan(stack: Stack, name: string, options: StagePlanOptions): Promise<Plan> {
  const salt = freshSalt();
  const node = (id: string, kind: NodeKind, inputs: string[], parameters: object, unkeyed: object = {}): PlanNode => ({
    id,
    kind,
    kind_version: 1,
    key: contentKey({ id, kind, parameters, salt } as never),
    inputs,
    parameters: parameters as PlanNode['parameters'],
    files: [],
    seed: 17,
    unkeyed: unkeyed as PlanNode['unkeyed'],
  });
  const nodes = [
    node('tasks', 'tasks', [], {}),
    node('stage.profile', 'profile', ['tasks'], { ...PROFILE, ...options.profile }),
    node('stage', 'rl', ['stage.profile', 'tasks'], { ...STAGE, ...options.stage }, { checkpoint: options.checkpoint }),
  ];
  const folder = await mkdtemp(join(tmpdir(), 'exp-stage-'));
  const path = join(folder, 'tasks.jsonl');
  const lines = [
    ...options.tasks.map((id) => taskOf(id, 'train')),
    ...(options.heldOut ?? ['h0', 'h1', 'h2', 'h3']).map((id) => taskOf(id, 'held_out')),
  ].map((task) => JSON.stringify(task));
  await writeFile(path, `${lines.join('\n')}\n`);
  const key = nodes[0]?.key as string;
  await stack.store.publish({ key, kind: 'tasks', inputs: [], files: { 'tasks.jsonl': path }, body: {}, metrics: [] });
  return {
    api_version: 'exp/v1',
    run_key: contentKey({ name, salt }),
    name,
    profile: 'local',
    spec_path: `${name}.yaml`,
    spec: { name },
    tracking: { mlflow_experiment: name },
    arms: [{ name: 'main', seed: 1, changes: {}, nodes }],
  };
}

const taskOf = (task_id: string, split: string): Task => ({
  task_id,
  question: `what is ${task_id}?`,
  answer: task_id,
  aliases: [],
  capability: Number(task_id.slice(1)) % 2 === 0 ? 'direct_retrieval' : 'aggregation',
  split,
  source: 'toy',
  evidence: [],
  deny_urls: [],
});

export async function startStageWorker(stack: Stack, toy: ToyStage): Promise<StageWorker> {
  const { address, namespace } = stack.connections.temporal;
  const connection = await NativeConnection.connect({ address });
  const clientConnection = await Connection.connect({ address });
  const client = new Client({ connection: clientConnection, namespace });
  const work = await mkdtemp(join(tmpdir(), 'exp-stage-work-'));
  const { pool, store } = stack;
  const plans = new PlanReader(store);
  const prices = { currency: 'USD', gpu_hour: 0, cpu_hour: 0, million_tokens: 0, thousand_tool_calls: 0 };
  const deps = {
    pool,
    store,
    plans,
    client,
    work,
    progress: new NodeProgress(pool),
    ledger: new StepLedger(pool),
    pools: new PoolLedger(pool),
    spend: new SpendLedger({ pool, plans, prices }),
    host: new ToyTrainer(toy) as never,
    merged: { path: () => work, dtype: 'float32' } as never,
    trainer: { threads: 1, micro_batch_tokens: 1024 },
    modelDir: () => work,
    tokenizers: {} as never,
    verifyLive: async () => true,
    taskQueue: 'exp-gpu@toy',
    partSize: 64,
  };
  const reporting = { ...deps, progress: deps.progress.report };
  const requests: ToyRequest[] = [];
  const setStatus = async ({ run, status }: { run: string; status: string }): Promise<void> => {
    await pool.query('update runs set status = $2, ended_at = now() where id = $1', [run, status]);
  };
  const cpu = {
    ...createRunNodesActivities(deps),
    ...createResolveCheckpointActivities(deps),
    ...createPrepareRolloutsActivities(deps),
    ...createPublishProfileActivities(reporting),
    ...createPlanRlStepActivities(deps),
    ...createEvaluateStageActivities(deps),
    ...createRefreshPoolActivities(deps),
    ...createNextMoveActivities(deps),
    trackRunStarted: async () => {},
    trackNode: async () => {},
    trackArm: async () => {},
    finishRun: setStatus,
  };
  const bundle = await bundleWorkflowCode({
    workflowsPath: fileURLToPath(new URL('../../workflows/index.ts', import.meta.url)),
  });
  const common = { connection, namespace, maxHeartbeatThrottleInterval: '200ms' } as const;
  const workers = await Promise.all([
    Worker.create({ ...common, taskQueue: 'exp-cpu', workflowBundle: bundle, activities: failing(cpu) }),
    Worker.create({ ...common, taskQueue: 'exp-rollout', activities: toyRollouts(stack, toy, work, requests) }),
    Worker.create({ ...common, taskQueue: 'exp-gpu', activities: { ...createHoldTrainerActivities(deps) } }),
    Worker.create({ ...common, taskQueue: deps.taskQueue, activities: failing(createTrainStageActivities(deps)) }),
  ]);
  const running = workers.map((worker) => worker.run());
  return {
    requests,
    async stop() {
      for (const worker of workers) worker.shutdown();
      await Promise.all(running);
      await Promise.all([connection.close(), clientConnection.close()]);
    },
  };
}

/** As the worker's interceptor does: an answer for the user is not tried again. */
function failing<T extends object>(activities: T): T {
  const wrapped = Object.entries(activities).map(([name, activity]) => [
    name,
    async (...input: unknown[]) => {
      try {
        return await (activity as (...args: unknown[]) => Promise<unknown>)(...input);
      } catch (error) {
        throw toFailure(error);
      }
    },
  ]);
  return Object.fromEntries(wrapped) as T;
}

function toyRollouts(stack: Stack, toy: ToyStage, work: string, requests: ToyRequest[]): RolloutActivities {
  return {
    acquireEngine: async () => ({ epoch: 1 }),
    releaseEngine: async () => {},
    async rolloutBatch({ request, batch, checkpoint }) {
      const [, ...lines] = (await readFile(await stack.store.openBlob(request), 'utf8')).trim().split('\n');
      const specs = lines.map((line) => JSON.parse(line) as RolloutSpec).slice(batch * 32, (batch + 1) * 32);
      const name = (specs[0]?.trajectory_id ?? '').split('/')[1] ?? '';
      const tasks = [...new Set(specs.map(({ task }) => task.task_id))];
      const sampler = await stepOf(stack, checkpoint);
      const shard = `${request}/${batch} at ${checkpoint.digest}`;
      requests.push({ name, tasks, trajectories: specs.length, sampler, shard });
      if (toy.samples) await whileBeating(toy.samples(name));
      const rows = specs.map((spec) =>
        trajectoryOf(spec, toy.passes(spec.task.task_id, spec.sample, sampler), checkpoint.digest),
      );
      const path = join(work, `${request.slice(0, 12)}-${batch}.parquet`);
      await writeParquet(path, rows, trajectoryColumns);
      return { blob: await stack.store.putBlob(path), trajectories: rows.length, failed: 0 };
    },
  };
}

/** The weights say after which step they stood; who samples with weights that were let go finds none. */
async function stepOf({ store }: Stack, { adapters }: Checkpoint): Promise<number> {
  const newest = adapters.at(-1);
  return newest === undefined ? 0 : JSON.parse(await readFile(await store.openBlob(newest), 'utf8')).step;
}

/** Only who beats hears that it is cancelled. */
async function whileBeating(work: Promise<void>): Promise<void> {
  const { heartbeat, cancelled } = Context.current();
  const beating = setInterval(() => heartbeat(), 100);
  try {
    await Promise.race([work, cancelled]);
  } finally {
    clearInterval(beating);
  }
}

function trajectoryOf(
  { trajectory_id, task, group_id, sample, sampling, seed }: RolloutSpec,
  right: boolean,
  checkpoint: string,
): Trajectory {
  const span = { turn: 0, status: 'ok', latency_ms: 0, cached: false, denied: 0, weight_version: '' } as const;
  return {
    trajectory_id,
    task_id: task.task_id,
    group_id,
    sample,
    branch: 0,
    checkpoint,
    sampling: { ...sampling, seed },
    token_ids: [1, 2, 3],
    mask: [0, 1, 1],
    logprobs: [0, -1, -1],
    spans: [
      { ...span, kind: 'prompt', start: 0, end: 1, tool: null },
      { ...span, kind: 'action', start: 1, end: 3, tool: 'answer' },
    ],
    reward: { outcome: right ? 1 : 0, turns: [] },
    score: { exact_match: right ? 1 : 0, f1: right ? 1 : 0, format_valid: true, answer_in_observation: false },
    judge: null,
    beliefs: [],
    advantages: [],
    termination: 'answer',
    failure_class: null,
    answer: right ? task.answer : 'x',
    messages: [],
  } as Trajectory;
}

/** Stands where the host of trainer processes does; saves files that name their step. */
class ToyTrainer {
  readonly #toy: ToyStage;
  #standing = { stage_key: '', step: 0 };

  constructor(toy: ToyStage) {
    this.#toy = toy;
  }

  acquire = async (): Promise<number> => 1;
  ensureProcess = async (): Promise<void> => {};
  assertHeld = async (): Promise<void> => {};
  end = async (): Promise<void> => {};

  client = async () => ({
    ping: async () => ({ ...this.#standing, busy: false, progress: 0 }),
    call: async (method: string, params: { stage_key?: string; resume_dir?: string; step?: number; dir?: string }) => {
      if (method === 'open') {
        const state = params.resume_dir && (await readFile(join(params.resume_dir, 'trainer_state.json'), 'utf8'));
        this.#standing = { stage_key: params.stage_key ?? '', step: state ? JSON.parse(state).step : 0 };
      }
      if (method === 'step') {
        const { step = 0 } = params;
        const metrics = await this.#toy.trains(step);
        this.#standing.step = step;
        return { metrics: { loss: 0, seconds: 0, ...metrics } };
      }
      if (method === 'save') return this.#save(params.dir ?? '');
      return {};
    },
  });

  async #save(dir: string): Promise<object> {
    await mkdir(dir, { recursive: true });
    const { step, stage_key } = this.#standing;
    const files = { weights: 'adapter.safetensors', optimizer: 'optimizer.safetensors', state: 'trainer_state.json' };
    for (const name of Object.values(files))
      await writeFile(join(dir, name), JSON.stringify({ name, stage_key, step, made_with: { toy: '1' } }));
    return { step, files };
  }
}
