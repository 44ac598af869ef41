/** Stages that are handed to verl: what they may not ask for, and what they go without. */
import type { Experiment, Stage } from '../schemas/experiment.ts';
import type { NodeOf } from '../schemas/node-parameters.ts';
import type { PlanNode } from '../schemas/plan.ts';
import type { Profile } from '../schemas/profile.ts';
import { agentOf } from './stages.ts';

type RlStage = Extract<Stage, { kind: 'rl' }>;

/** Whether a stage is handed to verl. */
export const runsOnVerl = (stage: Stage): stage is RlStage & { backend: 'verl' } =>
  stage.kind === 'rl' && stage.backend === 'verl';

/** What `exp` promises of an rl stage and nobody can promise of one that verl runs; empty for every other node. */
export function withoutGuarantees(node: PlanNode): string[] {
  if (node.kind !== 'rl' || (node.unkeyed as { reused_from?: string }).reused_from !== undefined) return [];
  const { parameters, unkeyed } = node as unknown as NodeOf<'rl'>;
  if (parameters.backend?.name !== 'verl') return [];
  const every = unkeyed.checkpoint?.every ?? 1;
  return [
    'turn journal: what a crash of verl cuts off is sampled again from the first turn',
    `step ledger: after a failure verl goes on from its last checkpoint (one every ${every} steps); steps since then are sampled and trained again`,
    'replay: its batches are not kept, so its weights cannot be computed again bit for bit',
  ];
}

/** Whether a profile has where to hand a stage to. */
export const hasVerl = ({ capabilities, ray }: Profile): boolean =>
  ray !== undefined && capabilities.trainers.includes('verl');

/** What a spec can say and such a stage does not do. */
export function* unexecutedByVerl(
  experiment: Experiment,
  name: string,
  stage: RlStage,
): Generator<[path: string, what: string]> {
  const path = `curriculum.${name}`;
  const { algorithm, rollout, optimizer, until, evaluate, difficulty, checkpoint } = stage;
  if ((stage.resources?.gpu ?? 0) === 0) yield [`${path}.resources.gpu`, 'training without GPUs with backend verl'];
  if (experiment.policy.adapter !== undefined) yield ['policy.adapter', 'training an adapter with backend verl'];
  if (agentOf(experiment, stage).context_management !== 'none')
    yield [`${path}.agent.context_management`, 'context management with backend verl'];
  if (agentOf(experiment, stage).faults) yield [`${path}.agent.faults`, 'a faulty tool with backend verl'];
  if (stage.health) yield [`${path}.health`, 'limits on its health with backend verl'];
  if (difficulty?.buckets?.weights) yield [`${path}.difficulty.buckets.weights`, 'weighing buckets with backend verl'];
  if (algorithm.name === 'igpo') yield [`${path}.algorithm.name`, 'igpo with backend verl'];
  if (algorithm.kl && algorithm.kl.reference !== undefined && algorithm.kl.reference !== stage.from)
    yield [`${path}.algorithm.kl.reference`, 'a KL term to other weights than those the stage starts from'];
  if (algorithm.importance?.veto !== undefined)
    yield [`${path}.algorithm.importance.veto`, 'masking by a token ratio with backend verl'];
  if (rollout.max_staleness > 0)
    yield [`${path}.rollout.max_staleness`, 'overlapping rollouts with training with backend verl'];
  if (rollout.cutoff !== undefined) yield [`${path}.rollout.cutoff`, 'a cut-off of rollouts with backend verl'];
  if (optimizer.schedule === 'linear') yield [`${path}.optimizer.schedule`, 'a linear schedule with backend verl'];
  if (until.plateau) yield [`${path}.until.plateau`, 'ending on a plateau with backend verl'];
  if (evaluate) yield [`${path}.evaluate`, 'evaluating within a stage with backend verl'];
  if (difficulty?.refresh_every)
    yield [`${path}.difficulty.refresh_every`, 'measuring pass rates again within a stage with backend verl'];
  if (checkpoint.keep.best) yield [`${path}.checkpoint.keep.best`, 'keeping the best checkpoints with backend verl'];
}
