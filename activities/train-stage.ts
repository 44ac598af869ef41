import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { Context } from '@temporalio/activity';
import type { CheckpointBody } from '../schemas/artifact.ts';
import { type Checkpoint, linksOf } from '../schemas/checkpoint.ts';
import { ExpError } from '../schemas/errors.ts';
import { type AdapterParameters, type NodeOf, nodeOf, type Unkeyed } from '../schemas/node-parameters.ts';
import type { PlanNode } from '../schemas/plan.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import { linkBlob } from './adapters/blob-store.ts';
import type { MergedWeights } from './adapters/merged-weights.ts';
import type { SpendLedger } from './adapters/spend-ledger.ts';
import type { LedgerStep, SavedState, StepLedger } from './adapters/step-ledger.ts';
import type { TrainerHost } from './adapters/trainer-host.ts';
import type { PlaceParams, TrainerClient, TrainerMethods } from './adapters/trainer-process.ts';
import { BudgetRefusal } from './budget.ts';
import { heartbeatWhile } from './heartbeat.ts';
import type { NodeRef, TrainerActivities } from './index.ts';
import { letGo } from './let-go.ts';
import { lossOfAlgorithm } from './loss-of-algorithm.ts';
import type { NodeProgress } from './node-progress.ts';
import type { PlanReader } from './plan-reader.ts';
import { checkpointOf, parentCheckpoint, referenceCheckpoint } from './resolve-checkpoint.ts';
import { type ScoreBeliefsDeps, scoreBeliefs } from './score-beliefs.ts';
import { samplesAhead } from './stage-course.ts';

export interface TrainStageDeps {
  plans: PlanReader;
  store: ArtifactStore;
  ledger: StepLedger;
  spend: SpendLedger;
  progress: NodeProgress;
  merged: MergedWeights;
  host: TrainerHost;
  /** Scratch space. */
  work: string;
  tokenizers: ScoreBeliefsDeps['tokenizers'];
  /** Hugging Face directory of a base model of the registry. */
  modelDir(model: string): string;
  /** How this profile trains: decided by the machine. */
  trainer: { threads: number; micro_batch_tokens: number };
}

export const createTrainStageActivities = (deps: TrainStageDeps): TrainerActivities => ({
  /** Where the stage stands: the last step that is in the ledger as done, its weights, and those that sample the next. */
  async openTrainer({ node: ref, steps }) {
    const saved = await deps.ledger.lastSaved(ref.key);
    const step = saved?.step ?? 0;
    const checkpoint = await checkpointAfter(deps, ref, saved?.saved ?? null);
    const node = await deps.plans.node(ref);
    const isAhead = node.kind === 'rl' && step < steps && samplesAhead(nodeOf('rl', node).parameters, step + 1);
    return { step, checkpoint, ...(isAhead && { sampler: await weightsAfter(deps, ref, step - 1) }) };
  },

  async trainStep({ node: ref, epoch, step, steps }) {
    const { ledger, host } = deps;
    const planned = await ledger.get(ref.key, step);
    if (!planned) throw new ExpError('PLAN', `${ref.id} step ${step}`, 'the step has no batch in the ledger');
    if (planned.status === 'done' && planned.saved)
      return { checkpoint: await checkpointAfter(deps, ref, planned.saved) };

    const admission = await deps.spend.mayGoOn(ref.key);
    if (admission.kind === 'refused') throw new BudgetRefusal(ref.id, admission.refusals);
    if (ref.kind === 'rl') await deps.progress.record(ref.key, step, await stalenessOf(deps, ref, planned));
    const client = await host.client(ref.key, epoch);
    return heartbeatWhile(client, async () => {
      await bringTo(deps, ref, client, step - 1, steps);
      const { loss, seconds } = await takeStep(deps, ref, client, planned);
      const said = `loss ${loss?.toPrecision(3)}, ${Math.round(seconds ?? 0)} s a step`;
      await deps.progress.report(ref.key, step, steps, said);
      const saved = (await savesAfter(deps, ref, step)) ? await save(deps, client) : null;
      await host.assertHeld(ref.key, epoch);
      await ledger.done(ref.key, step, saved);
      const checkpoint = await checkpointAfter(deps, ref, saved);
      if (ref.kind === 'rl') await exportMerged(deps, client, checkpoint);
      if (ref.kind === 'rl') await letGo(deps, ref, steps);
      return { checkpoint };
    });
  },

  async scoreBeliefs({ node: ref, epoch, step, steps, shards }) {
    const client = await deps.host.client(ref.key, epoch);
    return heartbeatWhile(client, async () => {
      await bringTo(deps, ref, client, step - 1, steps);
      return { beliefs: await scoreBeliefs(deps, ref, shards, (request) => callTrainer(client, 'beliefs', request)) };
    });
  },

  async publishStage({ node: ref, epoch, step, reason }) {
    const { store, ledger, host, plans, progress } = deps;
    const last = await ledger.lastSaved(ref.key, step);
    if (last?.step !== step || !last.saved) throw new ExpError('CHECKPOINT', ref.id, `step ${step} was not saved`);
    const { digest: _, ...weights } = await checkpointAfter(deps, ref, last.saved);
    const body: CheckpointBody = { ...weights, step, stop_reason: reason };
    const { adapter } = stageOf(await plans.node(ref)).parameters;
    await host.assertHeld(ref.key, epoch);
    return store.publish({
      key: ref.key,
      kind: ref.kind,
      inputs: await plans.lineage(ref),
      files: {
        [weightsFile(adapter)]: await store.openBlob(last.saved.adapter),
        'optimizer.safetensors': await store.openBlob(last.saved.optimizer),
        'trainer_state.json': await store.openBlob(last.saved.trainer_state),
      },
      body,
      metrics: await progress.metrics(ref.key),
      made_with: await trainedWith(store, last.saved),
    });
  },

  async closeTrainer({ node, epoch }) {
    await deps.host.end(node.key, epoch);
  },
});

/** What computed the weights, as the trainer wrote it down beside them. */
async function trainedWith(store: ArtifactStore, { trainer_state }: SavedState): Promise<Record<string, string>> {
  const { made_with } = await store.readJson<{ made_with: Record<string, string> }>(trainer_state);
  return made_with;
}

async function checkpointAfter({ plans }: TrainStageDeps, ref: NodeRef, saved: SavedState | null): Promise<Checkpoint> {
  const parent = await parentCheckpoint(plans, ref);
  if (saved === null) return parent;
  const { adapter } = stageOf(await plans.node(ref)).parameters;
  // Full weights replace all that was there before them.
  if (adapter === null) return checkpointOf({ ...parent, weights: saved.adapter, adapters: [] });
  return checkpointOf({ ...parent, adapters: [...parent.adapters, saved.adapter] });
}

/** Weights after a step whose state is kept; after none, those the stage starts from. */
async function weightsAfter(deps: TrainStageDeps, ref: NodeRef, step: number): Promise<Checkpoint> {
  const saved = step > 0 ? ((await deps.ledger.get(ref.key, step))?.saved ?? null) : null;
  if (step > 0 && saved === null) throw new ExpError('CHECKPOINT', `${ref.id} step ${step}`, 'its state was not kept');
  return checkpointAfter(deps, ref, saved);
}

/**
 * Steps between the weights that sampled a batch and those it trains, found by their digests. Throws STALENESS when they
 * are further apart than the stage allows.
 */
async function stalenessOf(
  deps: TrainStageDeps,
  ref: NodeRef,
  { step, sampled_with }: LedgerStep,
): Promise<{ 'rl/staleness': number }> {
  const { max_staleness } = nodeOf('rl', await deps.plans.node(ref)).parameters.rollout;
  for (let behind = 0; behind <= max_staleness && behind < step; behind++) {
    const { digest } = await weightsAfter(deps, ref, step - 1 - behind);
    if (digest === sampled_with) return { 'rl/staleness': behind };
  }
  throw new ExpError(
    'STALENESS',
    `${ref.id} step ${step}`,
    `its batch was sampled with ${sampled_with.slice(0, 12)}, which no step within \`max_staleness: ${max_staleness}\` gave`,
  );
}

/** As `save` of the trainer names them. */
const weightsFile = (adapter: AdapterParameters | null): string =>
  adapter === null ? 'model.safetensors' : 'adapter.safetensors';

/** Make the process stand right after `step`: open it from the last saved state and replay the batches since. */
async function bringTo(
  deps: TrainStageDeps,
  ref: NodeRef,
  client: TrainerClient,
  step: number,
  steps: number,
): Promise<void> {
  const { ledger } = deps;
  const standing = await client.ping();
  // A step that a lost attempt asked for may have finished meanwhile; asking again returns its recorded result.
  if (standing.stage_key === ref.key && (standing.step === step || standing.step === step + 1)) return;
  const last = step > 0 ? await ledger.lastSaved(ref.key, step) : null;
  await open(deps, ref, client, steps, last);
  for (const replayed of await ledger.between(ref.key, last?.step ?? 0, step))
    await takeStep(deps, ref, client, replayed);
}

/** Who cancels does not wait for the work: the process ends with its hold, and who asks again finds the result. */
const callTrainer = <M extends keyof TrainerMethods>(
  client: TrainerClient,
  method: M,
  params: TrainerMethods[M]['params'],
): Promise<TrainerMethods[M]['result']> =>
  client.call(method, params, { signal: Context.current().cancellationSignal });

const stageOf = (node: PlanNode) => node as unknown as NodeOf<'sft' | 'rl'>;

async function open(
  deps: TrainStageDeps,
  ref: NodeRef,
  client: TrainerClient,
  steps: number,
  last: LedgerStep | null,
): Promise<void> {
  const { plans, trainer, store, work } = deps;
  const node = await plans.node(ref);
  const parent = await parentCheckpoint(plans, ref);
  const reference = await referenceCheckpoint(plans, ref);
  const filesOf = (checkpoint: Checkpoint) => Promise.all(linksOf(checkpoint).map((sha256) => store.openBlob(sha256)));
  const { optimizer, adapter, policy } = stageOf(node).parameters;
  await mkdir(work, { recursive: true });
  const resume = last?.saved ? await mkdtemp(join(work, 'resume-')) : null;
  try {
    if (resume && last?.saved) {
      await linkBlob(await store.openBlob(last.saved.adapter), join(resume, weightsFile(adapter)));
      await linkBlob(await store.openBlob(last.saved.optimizer), join(resume, 'optimizer.safetensors'));
      await linkBlob(await store.openBlob(last.saved.trainer_state), join(resume, 'trainer_state.json'));
    }
    await callTrainer(client, 'open', {
      stage_key: ref.key,
      // The chain of what was trained, not the merged directory: that one is rounded for serving.
      base_dir: deps.modelDir(parent.model),
      parents: await filesOf(parent),
      ...(reference && { reference_parents: await filesOf(reference) }),
      adapter,
      optimizer: { ...optimizer, total_steps: steps },
      dtype: policy.dtype,
      ...placeOf(node, trainer),
      deterministic: true,
      seed: node.seed ?? 0,
      ...(resume && { resume_dir: resume }),
    });
  } finally {
    if (resume) await rm(resume, { recursive: true, force: true });
  }
}

/** Tokens that a GPU computes at once: enough to hide the gathering of a layer's weights behind its products. */
const GPU_TOKENS = 32_768;

/** Tokens of a micro-batch; a longer sequence is one of its own. */
function rowTokens({ unkeyed }: PlanNode, trainer: TrainStageDeps['trainer']): number {
  const { gpu = 0, context_parallel = 1 } = (unkeyed as Unkeyed).resources ?? {};
  return gpu > 0 ? GPU_TOKENS * context_parallel : trainer.micro_batch_tokens;
}

/** How the stage's processes divide what they are given. */
function placeOf({ unkeyed }: PlanNode, { threads }: TrainStageDeps['trainer']): PlaceParams {
  const { gpu = 0, nodes = 1, context_parallel = 1 } = (unkeyed as Unkeyed).resources ?? {};
  if (gpu === 0) return { threads };
  return { threads: Math.max(1, Math.floor((threads * nodes) / gpu)), device: 'cuda', context_parallel };
}

async function takeStep(
  deps: TrainStageDeps,
  ref: NodeRef,
  client: TrainerClient,
  planned: LedgerStep,
): Promise<Record<string, number>> {
  const { plans, store, progress, trainer } = deps;
  const node = await plans.node(ref);
  const { metrics } = await callTrainer(client, 'step', {
    step_id: `${ref.key}/${planned.step}`,
    step: planned.step,
    batch: await store.openBlob(planned.batch_blob),
    loss: lossOf(node),
    micro_batch_tokens: rowTokens(node, trainer),
  });
  const named = Object.fromEntries(Object.entries(metrics).map(([name, value]) => [`train/${name}`, value]));
  await progress.record(ref.key, planned.step, named);
  return metrics;
}

/** What the trainer is told of the algorithm: a loss, never its name. */
function lossOf(node: PlanNode): object {
  if (node.kind === 'sft') return { kind: 'cross_entropy', aggregation: nodeOf('sft', node).parameters.loss };
  return lossOfAlgorithm(nodeOf('rl', node).parameters.algorithm);
}

/** Every rl step is served, so it is saved; sft saves now and then, and at its end. */
async function savesAfter({ plans, ledger }: TrainStageDeps, ref: NodeRef, step: number): Promise<boolean> {
  if (ref.kind === 'rl') return true;
  const { checkpoint } = stageOf(await plans.node(ref)).unkeyed;
  return step % (checkpoint?.every ?? 1) === 0 || (await ledger.get(ref.key, step + 1)) === null;
}

async function save({ store, work }: TrainStageDeps, client: TrainerClient): Promise<SavedState> {
  await mkdir(work, { recursive: true });
  const folder = await mkdtemp(join(work, 'save-'));
  try {
    const dir = join(folder, 'state');
    const { files } = await callTrainer(client, 'save', { dir });
    return {
      adapter: await store.putBlob(join(dir, files.weights)),
      optimizer: await store.putBlob(join(dir, 'optimizer.safetensors')),
      trainer_state: await store.putBlob(join(dir, 'trainer_state.json')),
    };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** The running process already holds the merged weights in memory: quicker than merging them from files. */
async function exportMerged({ merged }: TrainStageDeps, client: TrainerClient, checkpoint: Checkpoint): Promise<void> {
  await callTrainer(client, 'export', { dir: merged.path(checkpoint), export_dtype: merged.dtype });
}
