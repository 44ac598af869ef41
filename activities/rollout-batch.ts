import { setMaxListeners } from 'node:events';
import { createReadStream } from 'node:fs';
import { mkdir, mkdtemp, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { Context } from '@temporalio/activity';
import type { Pool } from 'pg';
import {
  assembleTrajectory,
  type Branches,
  RolloutFailure,
  runTrajectory,
  type TrajectoryInput,
  type TurnRecord,
} from '../environments/deep-research/agent-loop.ts';
import { believer } from '../environments/deep-research/beliefs.ts';
import type { Tokenizer, ToolName } from '../environments/deep-research/prompt.ts';
import type { World } from '../environments/environment.ts';
import { ExpError } from '../schemas/errors.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import type { EngineLease, EnginePool } from './adapters/engine.ts';
import { trajectoryColumns, writeParquet } from './adapters/parquet.ts';
import type { SpendLedger } from './adapters/spend-ledger.ts';
import type { TurnJournal } from './adapters/turn-journal.ts';
import { mostOf } from './budget.ts';
import { charged, type Taken } from './charged.ts';
import type { NodeRef, RolloutActivities, RolloutShard } from './index.ts';
import type { Judges } from './judges.ts';
import type { RequestHeader, RolloutSpec } from './prepare-rollouts.ts';

export interface RolloutDeps {
  pool: Pool;
  engines: EnginePool;
  journal: TurnJournal;
  spend: SpendLedger;
  store: Pick<ArtifactStore, 'putBlob' | 'openBlob'>;
  worlds: { open(node: NodeRef): Promise<World> };
  judges: Pick<Judges, 'open'>;
  /** Tokenizers by registry name of the base model. */
  tokenizers: { load(model: string): Promise<Tokenizer> };
  progress(key: string, done: number, total: number, detail: string): Promise<void>;
  /** Scratch space. */
  work: string;
}

type Batch = Parameters<RolloutActivities['rolloutBatch']>[0];

const HEARTBEAT_MS = 2_000;
/** Longest time without a token, a turn or a poll during which work still counts as moving: a long prefill on a busy CPU. */
const STALL_MS = 300_000;
const RENEW_MS = 20_000;
/** Attempts at one trajectory before it is recorded as failed. */
const ATTEMPTS = 3;

export const createRolloutActivities = (deps: RolloutDeps): RolloutActivities => ({
  /** Take the engine for a checkpoint and give it the weights; waits its turn. Again by the same holder: the same lease. */
  async acquireEngine({ checkpoint, holder }) {
    return whileMoving(async (moved) => {
      const { cancellationSignal } = Context.current();
      const { epoch } = await deps.engines.acquire(checkpoint, holder, { signal: cancellationSignal, onTokens: moved });
      return { epoch };
    });
  },

  async releaseEngine({ holder }) {
    await deps.engines.release(holder);
  },

  /**
   * Run all trajectories of one batch at once and seal them as one Parquet shard.
   *
   * Runs again after a crash: a sealed batch is returned as it is; of an unsealed one each trajectory goes on after
   * its last journaled turn. Throws ENGINE_UNAVAILABLE, WORLD_UNAVAILABLE, LEASE_LOST on outages: those score nothing;
   * BUDGET when no run that waits for it has room for the batch.
   */
  async rolloutBatch(batch) {
    return whileMoving(async (moved) => {
      const sealed = await findShard(deps, batch);
      if (sealed !== null) return sealed;
      const request = await readRequest(await deps.store.openBlob(batch.request), batch.batch);
      const unit = {
        node: batch.node,
        unit: unitOf(batch),
        most: mostOf(request.specs),
        signal: Context.current().cancellationSignal,
        waiting: moved,
      };
      const trajectories = await charged(deps.spend, unit, (taken) => sampleBatch(deps, batch, request, moved, taken));
      const shard = await sealShard(deps, batch, trajectories);
      await deps.journal.drop(trajectories.map(([{ trajectory_id }]) => trajectory_id));
      return shard;
    });
  },
});

/** The name under which a batch is charged: what its shard is sealed under. */
const unitOf = ({ request, batch, checkpoint }: Batch): string =>
  `rollouts ${request.slice(0, 12)}/${batch} at ${checkpoint.digest.slice(0, 12)}`;

const addTurn = (taken: Taken, { token_ids, observation }: TurnRecord): void => {
  taken.tokens += token_ids.length;
  if (observation?.tool) taken.tool_calls += 1;
};

/** The lines of one batch, and how many trajectories there are: in the whole request, and before and after its part. */
async function readRequest(path: string, batch: number) {
  const specs: RolloutSpec[] = [];
  let header: RequestHeader | null = null;
  let row = 0;
  for await (const line of createInterface({ input: createReadStream(path) })) {
    if (line === '') continue;
    if (header === null) {
      header = JSON.parse(line) as RequestHeader;
      continue;
    }
    const { batch_size: size } = header;
    if (row >= batch * size && row < (batch + 1) * size) specs.push(JSON.parse(line) as RolloutSpec);
    row += 1;
  }
  return { specs, before: header?.before ?? 0, total: header?.total ?? row };
}

async function sampleBatch(
  deps: RolloutDeps,
  batch: Batch,
  { specs, ...of }: Awaited<ReturnType<typeof readRequest>>,
  moved: () => void,
  taken: Taken,
): Promise<Branches[]> {
  const { node, checkpoint, holder } = batch;
  const { cancellationSignal } = Context.current();
  // One trajectory that meets an outage ends the batch: the others would meet it too.
  const ending = new AbortController();
  const signal = AbortSignal.any([cancellationSignal, ending.signal]);
  setMaxListeners(0, signal); // one for each trajectory
  const meter = new Meter(deps, batch, of);
  const call = {
    signal,
    onTokens: (count: number) => {
      moved();
      meter.tokens += count;
    },
  };

  // The workflow has acquired it; this finds that lease, or takes a new one where it had run out.
  const lease = await deps.engines.acquire(checkpoint, holder, call);
  const renewing = setInterval(() => void lease.renew().catch(() => {}), RENEW_MS);
  const reporting = setInterval(() => void meter.report().catch(() => {}), HEARTBEAT_MS);
  try {
    const tokenizer = await deps.tokenizers.load(checkpoint.model);
    const world = specs.some(({ agent }) => agent.tools.length > 0) ? await deps.worlds.open(node) : NO_WORLD;
    const grade = await deps.judges.open(node);
    const journaled = await journaledTurns(deps.journal, specs, checkpoint.digest);
    for (const record of [...journaled.values()].flat()) addTurn(taken, record);
    // As shares: 0.56 of 25 is more than 14 in binary, and 14 / 25 is 0.56.
    const isCutOff = ({ cutoff }: RolloutSpec) => cutoff !== null && meter.done / specs.length >= cutoff;
    const rollouts = specs.map(async (spec) => {
      const records = [...(journaled.get(spec.trajectory_id) ?? [])];
      const input = trajectoryInput(spec, { tokenizer, world, lease, checkpoint: checkpoint.digest, call });
      const onTurn = async (record: TurnRecord) => {
        await deps.journal.append(spec.trajectory_id, record);
        records.push(record);
        addTurn(taken, record);
        meter.turns += 1;
        moved();
      };
      const run = { ...input, onTurn, isCutOff: () => isCutOff(spec) };
      const trajectory = await grade(await withRetries(run, records), input.task, signal);
      meter.done += 1;
      moved();
      return trajectory;
    });
    for (const rollout of rollouts) rollout.catch((error: unknown) => ending.abort(error));
    const settled = await Promise.allSettled(rollouts);
    // What ended the batch is the first failure, not the aborts that followed from it.
    if (ending.signal.aborted) throw ending.signal.reason;
    cancellationSignal.throwIfAborted();
    const trajectories = settled.map((outcome) => (outcome as PromiseFulfilledResult<Branches>).value);
    refuseOutage(node, trajectories);
    return trajectories;
  } finally {
    clearInterval(renewing);
    clearInterval(reporting);
    await meter.report().catch(() => {});
    meter.stop();
  }
}

/** Turns recorded for these weights. Turns of other weights (a stage that was made anew) are forgotten. */
async function journaledTurns(
  journal: TurnJournal,
  specs: readonly RolloutSpec[],
  checkpoint: string,
): Promise<Map<string, TurnRecord[]>> {
  const turns = await journal.load(specs.map(({ trajectory_id }) => trajectory_id));
  const foreign = [...turns]
    .filter(([, records]) => records.some(({ weight_version }) => weight_version !== checkpoint))
    .map(([id]) => id);
  if (foreign.length > 0) await journal.drop(foreign);
  for (const id of foreign) turns.delete(id);
  return turns;
}

function trajectoryInput(
  spec: RolloutSpec,
  {
    tokenizer,
    world,
    lease,
    checkpoint,
    call,
  }: {
    tokenizer: Tokenizer;
    world: World;
    lease: EngineLease;
    checkpoint: string;
    call: Parameters<EngineLease['sampler']>[1] & { signal: AbortSignal };
  },
): TrajectoryInput {
  const { agent, reward } = spec;
  return {
    trajectory_id: spec.trajectory_id,
    group_id: spec.group_id,
    sample_index: spec.sample,
    checkpoint,
    task: agent.deny_urls === 'none' ? { ...spec.task, deny_urls: [] } : spec.task,
    world,
    sample: lease.sampler(tokenizer.stopIds, call),
    tokenizer,
    tools: agent.tools as ToolName[],
    limits: {
      maxTurns: agent.max_turns,
      maxTurnTokens: agent.max_turn_tokens,
      observationTokens: agent.observation_tokens,
      searchResults: agent.search_results,
      contextLength: spec.context_length,
    },
    contextManagement: agent.context_management,
    faults: agent.faults,
    sampling: { ...spec.sampling, seed: spec.seed },
    ...(spec.beliefs && { believe: believer(tokenizer, spec.task.answer, spec.beliefs, lease.scorer(call)) }),
    reward: { outcome: reward.outcome, format_penalty: reward.format_penalty },
    signal: call.signal,
  };
}

/** A trajectory that something broke for is tried again from its last turn, and then recorded as failed: it is data. */
async function withRetries(input: TrajectoryInput, records: TurnRecord[]): Promise<Branches> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await runTrajectory({ ...input, resumeFrom: [...records] });
    } catch (error) {
      if (!(error instanceof RolloutFailure) || isOutage(error)) throw error;
      if (attempt === ATTEMPTS || error.failureClass === 'budget')
        return assembleTrajectory(input, records, error.failureClass);
      await sleep(500 * 2 ** attempt * (0.5 + Math.random()), undefined, input.signal ? { signal: input.signal } : {});
    }
  }
}

/** Whether the cause is known to be no trouble of this trajectory: what it names would fail every other one too. */
function isOutage(error: unknown): boolean {
  if (error instanceof ExpError) return error.code !== 'ENGINE_REQUEST';
  return error instanceof Error && error.cause !== undefined && isOutage(error.cause);
}

/** When most of a batch failed for the same reason, the reason is not the trajectories. */
function refuseOutage(node: NodeRef, trajectories: readonly Branches[]): void {
  const broken = trajectories.filter(([{ failure_class }]) => failure_class !== null && failure_class !== 'budget');
  if (broken.length * 2 <= trajectories.length) return;
  throw new ExpError(
    'UNAVAILABLE',
    node.id,
    `${broken.length} of ${trajectories.length} trajectories failed by ${broken[0]?.[0].failure_class}: something is down`,
  );
}

async function findShard(
  { pool, store }: RolloutDeps,
  { request, batch, checkpoint }: Batch,
): Promise<RolloutShard | null> {
  const { rows } = await pool.query<RolloutShard>(
    'select blob, trajectories, failed from rollout_shards where request = $1 and batch = $2 and checkpoint_digest = $3',
    [request, batch, checkpoint.digest],
  );
  const [shard] = rows;
  if (shard === undefined) return null;
  // Shards are working data: one that was collected since is sampled again.
  const isThere = await store
    .openBlob(shard.blob)
    .then((path) => stat(path))
    .then(
      () => true,
      () => false,
    );
  return isThere ? shard : null;
}

/** The first shard of a batch wins; who comes later takes that one. */
async function sealShard(deps: RolloutDeps, batch: Batch, trajectories: readonly Branches[]): Promise<RolloutShard> {
  await mkdir(deps.work, { recursive: true });
  const folder = await mkdtemp(join(deps.work, 'rollouts-'));
  try {
    const path = join(folder, 'shard.parquet');
    await writeParquet(path, trajectories.flat(), trajectoryColumns);
    const blob = await deps.store.putBlob(path);
    const failed = trajectories.filter(([{ failure_class }]) => failure_class !== null).length;
    await deps.pool.query(
      `insert into rollout_shards (request, batch, checkpoint_digest, blob, trajectories, failed, node_key)
       values ($1, $2, $3, $4, $5, $6, $7) on conflict do nothing`,
      [batch.request, batch.batch, batch.checkpoint.digest, blob, trajectories.length, failed, batch.node.key],
    );
    return (await findShard(deps, batch)) ?? { blob, trajectories: trajectories.length, failed };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Trajectories of the request in batches that are sealed. */
async function sealedTrajectories({ pool }: RolloutDeps, { request, checkpoint }: Batch): Promise<number> {
  const { rows } = await pool.query<{ sealed: string | null }>(
    'select sum(trajectories) as sealed from rollout_shards where request = $1 and checkpoint_digest = $2',
    [request, checkpoint.digest],
  );
  return Number(rows[0]?.sealed ?? 0);
}

/** What `exp watch` shows of a request at work: the sum over its batches in this process. */
class Meter {
  static readonly #running = new Set<Meter>();
  done = 0;
  turns = 0;
  tokens = 0;
  readonly #started = Date.now();
  readonly #deps: RolloutDeps;
  readonly #batch: Batch;
  readonly #of: { before: number; total: number };

  constructor(deps: RolloutDeps, batch: Batch, of: { before: number; total: number }) {
    this.#deps = deps;
    this.#batch = batch;
    this.#of = of;
    Meter.#running.add(this);
  }

  async report(): Promise<void> {
    const { node, step, request } = this.#batch;
    const { before, total } = this.#of;
    const sealed = await sealedTrajectories(this.#deps, this.#batch);
    const together = [...Meter.#running].filter((meter) => meter.#batch.request === request);
    const sum = (count: (meter: Meter) => number): number => together.reduce((all, meter) => all + count(meter), 0);
    const perSecond = sum((meter) => meter.tokens / Math.max(1, (Date.now() - meter.#started) / 1000));
    const of = node.kind === 'rl' ? `step ${step}: ` : '';
    const detail = `${of}${sum(({ turns }) => turns)} turns, ${Math.round(perSecond)} tokens/s`;
    await this.#deps.progress(node.key, before + sealed + sum(({ done }) => done), total, detail);
  }

  /** Before the batch is sealed, so that nothing is counted twice. */
  stop(): void {
    Meter.#running.delete(this);
  }
}

/** Heartbeat every 2 s, as long as something moved not too long ago: work that hangs is found out. */
async function whileMoving<T>(work: (moved: () => void) => Promise<T>): Promise<T> {
  const context = Context.current();
  let movedAt = Date.now();
  const timer = setInterval(() => {
    if (Date.now() - movedAt < STALL_MS) context.heartbeat();
  }, HEARTBEAT_MS);
  try {
    return await work(() => {
      movedAt = Date.now();
    });
  } finally {
    clearInterval(timer);
  }
}

/** For batches without tools: whoever asks it anyway has a bug. */
const NO_WORLD: World = {
  search: () => Promise.reject(new Error('a closed-book rollout searched')),
  visit: () => Promise.reject(new Error('a closed-book rollout visited')),
  close: () => Promise.resolve(),
};
