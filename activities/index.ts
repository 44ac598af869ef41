/** Interfaces only: all that workflows see of the activities. Inputs and results are references, never data. */
import type { ArtifactRef } from '../schemas/artifact.ts';
import type { Checkpoint } from '../schemas/checkpoint.ts';
import type { NodeKind, PlanGate } from '../schemas/plan.ts';
import type { Refusal } from './adapters/spend-ledger.ts';
import type { Bounds } from './budget.ts';
import type { StopReason } from './stage-course.ts';

export type { Bounds, Refusal };

/** A node of a stored plan. The activity loads parameters itself, by `plan` (blob hash) and `arm`. */
export interface NodeRef {
  plan: string;
  arm: string;
  id: string;
  kind: NodeKind;
  key: string;
}

/** What the arm workflow needs of a node: order, not parameters. */
export interface NodeSkeleton extends NodeRef {
  inputs: string[];
  /** What must hold before nodes that name this one in `gates` begin. */
  gate?: PlanGate;
  /** Stages whose gates this node waits for. */
  gates?: string[];
}

export interface NodeOutcome {
  id: string;
  key: string;
  status: 'done' | 'failed' | 'cancelled' | 'skipped' | 'gate_failed';
  artifact?: ArtifactRef;
  reused?: boolean;
  error?: { code: string; message: string };
}

/** How one execution of a node ended. A paused one is no outcome: the node goes on with another when it may. */
export type NodeEnding = Omit<NodeOutcome, 'status'> & {
  status: NodeOutcome['status'] | 'paused';
  /** Runs whose budget paused it. */
  refusals?: readonly Refusal[];
  /** What is beyond its limits, which pauses every run that waits for it. */
  unhealthy?: string;
};

/** A prepared fan-out: `request` is a blob of rollout specs, split into `batches` activities. */
export interface RolloutRequest {
  request: string;
  trajectories: number;
  batches: number;
  /** Others like this one follow: what is asked for is larger than one history, or one file of specs, should be. */
  followed?: boolean;
  /** What these find decides whether another round is sampled. */
  more?: boolean;
}

/** What is sampled: by a node that samples once, for a step of an rl stage, or beside its steps. */
export interface SamplingRequest {
  node: NodeRef;
  step: number;
  /** Counts refills of a step, and rounds of a profile. */
  round: number;
  checkpoint: Checkpoint;
  /** Within an rl stage, at the checkpoint after `step`: its benchmark, or pass rates anew. */
  purpose?: 'evaluation' | 'refresh';
  /** Of a step: other prompts in the place of dropped groups, after the `start` that were asked for before. */
  refill?: { start: number; count: number };
  /** Of a profile: what the rounds before found. */
  shards?: RolloutShard[];
  /** Which part of what this round asks for, from 0, and what the parts before it found. */
  part?: { number: number; shards: RolloutShard[] };
}

/** Sealed shard of trajectories: a Parquet blob and what the next decision needs of it. */
export interface RolloutShard {
  blob: string;
  trajectories: number;
  failed: number;
  /** The blob is a JSON list of shards: workflows do not carry thousands. */
  isList?: true;
}

/** Task queue `<prefix>-cpu`. */
export interface CpuActivities {
  loadSkeleton(input: { plan: string; arm: string }): Promise<NodeSkeleton[]>;
  listArms(input: { plan: string }): Promise<{ arms: string[] }>;
  requestNode(input: { node: NodeRef; subscriber: string }): Promise<void>;
  leaveNode(input: { key: string; subscriber: string }): Promise<void>;
  findArtifact(node: NodeRef): Promise<ArtifactRef | null>;
  /** A number of a published artifact; null when it has none of this name. */
  readMetric(input: { artifact: ArtifactRef; metric: string }): Promise<number | null>;
  corpus(node: NodeRef): Promise<ArtifactRef>;
  buildIndex(node: NodeRef): Promise<ArtifactRef>;
  tasks(node: NodeRef): Promise<ArtifactRef>;
  demonstrations(node: NodeRef): Promise<ArtifactRef>;
  /** Write the rollout specs of a profile, a benchmark, or one rl step. Deterministic: same input, same blob. */
  prepareRollouts(input: SamplingRequest): Promise<RolloutRequest>;
  /** One in the place of many. */
  listShards(input: { shards: RolloutShard[] }): Promise<RolloutShard>;
  publishProfile(input: { node: NodeRef; shards: RolloutShard[] }): Promise<ArtifactRef>;
  publishBenchmark(input: { node: NodeRef; shards: RolloutShard[] }): Promise<ArtifactRef>;
  report(node: NodeRef): Promise<ArtifactRef>;
  /** Weights a node samples from or starts training with. */
  resolveCheckpoint(node: NodeRef): Promise<Checkpoint>;
  trackRunStarted(input: { run: string; plan: string }): Promise<void>;
  trackNode(input: { run: string; plan: string; arm: string; outcome: NodeOutcome }): Promise<void>;
  trackArm(input: { run: string; arm: string; status: string }): Promise<void>;
  finishRun(input: { run: string; status: string }): Promise<void>;
  nodeStarted(node: NodeRef): Promise<void>;
  nodeEnded(input: {
    node: NodeRef;
    status: NodeEnding['status'];
    detail: string;
    subscribers?: string[];
  }): Promise<void>;
  /** Bounds in the place of those of the run's spec. */
  setBudget(input: { run: string; bounds: Bounds }): Promise<void>;
}

/** Task queue `<prefix>-rollout`. */
export interface RolloutActivities {
  /** Take the engine for a checkpoint; waits its turn. */
  acquireEngine(input: { checkpoint: Checkpoint; holder: string }): Promise<{ epoch: number }>;
  releaseEngine(input: { holder: string }): Promise<void>;
  rolloutBatch(input: {
    node: NodeRef;
    step: number;
    request: string;
    batch: number;
    checkpoint: Checkpoint;
    holder: string;
  }): Promise<RolloutShard>;
}

/** Trainer of a stage, as published by `holdTrainer`. */
export interface TrainerHold {
  taskQueue: string;
  epoch: number;
}

/** Task queue `<prefix>-gpu`. */
export interface GpuActivities {
  /** Keep a trainer process alive for a stage and signal `trainerHeld` to the workflow; ends when cancelled. */
  holdTrainer(input: { node: NodeRef; workflowId: string }): Promise<void>;
}

/** Task queue `<prefix>-gpu@<host>`, where the process lives. */
export interface TrainerActivities {
  /** Where the stage of `steps` stands in the step ledger: its last saved step, and the weights after it. */
  openTrainer(input: { node: NodeRef; epoch: number; steps: number }): Promise<{
    step: number;
    checkpoint: Checkpoint;
    /** Weights that sample the next step, where those are older. */
    sampler?: Checkpoint;
  }>;
  /** One optimizer step of `steps`; idempotent by (stage key, step). */
  trainStep(input: { node: NodeRef; epoch: number; step: number; steps: number }): Promise<{ checkpoint: Checkpoint }>;
  /** Measure beliefs in the reference answers with the weights before `step`; returns a blob for `planRlStep`. */
  scoreBeliefs(input: {
    node: NodeRef;
    epoch: number;
    step: number;
    steps: number;
    shards: RolloutShard[];
  }): Promise<{ beliefs: string }>;
  publishStage(input: { node: NodeRef; epoch: number; step: number; reason: string }): Promise<ArtifactRef>;
  closeTrainer(input: { node: NodeRef; epoch: number }): Promise<void>;
}

/** How an rl stage goes on after a step. */
export type StageMove =
  | {
      do: 'train';
      /** The step after the next is sampled while the next one trains. */
      ahead?: boolean;
    }
  /** Measure the benchmark of the stage at this checkpoint. */
  | { do: 'evaluate' }
  /** Measure pass rates at this checkpoint and choose the pool anew. */
  | { do: 'refresh' }
  /** Until a person says so. */
  | { do: 'pause'; reason: string }
  /** Publish the checkpoint of `step`. */
  | { do: 'end'; step: number; reason: StopReason };

/** Task queue `<prefix>-cpu`: what an rl or sft stage does between steps. */
export interface StageActivities {
  /** Write every SFT batch to the step ledger; returns how many steps there are. */
  planSft(node: NodeRef): Promise<{ steps: number }>;
  /** Score, filter, compute advantages over the whole batch, and record the step's batch in the ledger. */
  planRlStep(input: {
    node: NodeRef;
    step: number;
    shards: RolloutShard[];
    /** What `scoreBeliefs` returned for them, where the trainer measures beliefs. */
    beliefs?: string[];
    checkpoint: Checkpoint;
    /** No refill follows: the batch is recorded even if every advantage in it is zero. */
    last: boolean;
  }): Promise<{
    usable: boolean;
    /** Groups the step is short of, when it is not usable yet. */
    missing?: number;
  }>;
  stagePlan(node: NodeRef): Promise<StagePlan>;
  /** Decide by what is recorded of the stage what comes after `step`. */
  nextMove(input: { node: NodeRef; step: number; steps: number; ends: 'steps' | 'epochs' }): Promise<StageMove>;
  /** Score an evaluation within the stage: points of its curves at `step`. */
  recordEvaluation(input: { node: NodeRef; step: number; shards: RolloutShard[] }): Promise<void>;
  /** Choose the training pool anew, by pass rates measured after `step`. */
  refreshPool(input: { node: NodeRef; step: number; shards: RolloutShard[] }): Promise<void>;
  /** Write down that a pause for health was told, so that steps are counted anew when the run goes on. */
  noteHealthPause(input: { node: NodeRef; step: number }): Promise<void>;
  /** Write down that the stage ended while rollouts of `step` were under way or done: nothing trains on them. */
  noteDropped(input: { node: NodeRef; step: number; steps: number }): Promise<void>;
  /** Write what verl reads of the stage to the disk shared with its cluster; the steps at which its segments end. */
  exportVerl(node: NodeRef): Promise<{ ends: number[] }>;
  /** Let verl train up to step `until`: one job of Ray, submitted once, followed to its end, ended when cancelled. */
  runVerlSegment(input: { node: NodeRef; segment: number; until: number }): Promise<void>;
  /** Publish the checkpoint of `step` as the stage's. */
  publishVerl(input: { node: NodeRef; step: number }): Promise<ArtifactRef>;
}

export interface StagePlan {
  steps: number;
  /** What `steps` comes from. */
  ends: 'steps' | 'epochs';
  /** Rounds of sampling a step may add. */
  refills: number;
  /** More than the number of steps decides how the stage goes on, or steps are sampled ahead: ask `nextMove`. */
  looks: boolean;
  /** What measures beliefs, where the algorithm has any. */
  beliefs?: 'trainer' | 'engine';
  /** Absent where the stage was planned before there was a choice. */
  backend?: 'exp' | 'verl';
}
