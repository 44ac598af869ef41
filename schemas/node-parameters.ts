/**
 * What `parameters` and `unkeyed` of a plan node hold, by kind. Everything is explicit: an executor has no
 * defaults of its own. Optional parts of a spec that were left out are null here. Keys are sorted, so no
 * result can depend on the order in which a spec was written.
 */
import type { AlgorithmName, IgpoSettings, LossAggregation } from './algorithms.ts';
import type { NodeKind, PlanNode } from './plan.ts';
import type { Capability, TaskFormat } from './task.ts';

/** Stands where a digest is not known yet (model not made, file not there); such a plan is not submitted. */
export const UNKNOWN_DIGEST = 'unknown';

/** A model of the profile's registry. `sha256` names its weights, or is `UNKNOWN_DIGEST`. */
export interface PolicyParameters {
  model: string;
  sha256: string;
}

export interface TrainedPolicyParameters extends PolicyParameters {
  /** Number format of the base weights while training; adapters and optimizer are always float32. */
  dtype: 'float32' | 'bfloat16';
}

export interface AgentParameters {
  tools: string[];
  /** Completions before the forced answer. */
  max_turns: number;
  /** Tokens one completion may have. */
  max_turn_tokens: number;
  /** Tokens one observation may have. */
  observation_tokens: number;
  /** Results one search call returns, over all its queries. */
  search_results: number;
  context_management: 'none' | 'drop_observations' | 'summarize';
  /** The first answer ends the trajectory. */
  terminate_on_answer: boolean;
  deny_urls: 'none' | 'from_task';
  /** Share of calls that go wrong, by tool and way; null when none shall. */
  faults: Record<string, Record<string, number>> | null;
}

export interface SamplingParameters {
  temperature: number;
  top_p: number;
}

export interface RewardParameters {
  outcome: 'exact_match' | 'f1' | 'judge';
  /** The reward of a trajectory with invalid format is minus this. */
  format_penalty: number;
  /** Only with `outcome: judge`. */
  judge: JudgeParameters | null;
}

export interface JudgeParameters extends PolicyParameters {
  /** Of a verdict: with the slots {question}, {reference} and {answer}. */
  prompt: string;
  temperature: number;
  max_tokens: number;
}

/** A LoRA adapter on all linear layers; `null` where all weights are trained. */
export interface AdapterParameters {
  lora_rank: number;
  lora_alpha: number;
  lora_dropout: number;
}

export interface KeepParameters {
  min_passes: number;
  max_passes: number;
}

/** The same rule for groups of another size: the bounds as shares of `of` rollouts. */
export interface GroupKeepParameters extends KeepParameters {
  of: number;
}

/** Null on the side that has no limit. */
export interface HealthParameters {
  limits: Record<string, { min: number | null; max: number | null }>;
  /** Steps in a row. */
  for: number;
  on_breach: 'pause' | 'back_to_best';
}

/** Kept tasks by the mean length of their trajectories. */
export interface BucketParameters {
  by: 'trajectory_tokens';
  edges: number[];
  /** One for each bucket; null when all count the same. */
  weights: number[] | null;
}

export interface ChunkParameters {
  tokens: number;
  overlap: number;
}

interface SourceBase {
  licence: string;
  provenance: string;
}
export interface PageFields {
  /** Column that holds the URL; where a row has none, its URL is `doc:<id>`. */
  url: string;
  id: string;
  title: string;
  text: string;
}
/** `path` is as the spec wrote it; the absolute path or glob is in `unkeyed.paths`, by source name. */
export type CorpusSource =
  | (SourceBase & { kind: 'installed_packages'; ecosystems: ('npm' | 'python')[] })
  | (SourceBase & { kind: 'jsonl' | 'parquet'; fields: PageFields; limit: number | null })
  | (SourceBase & { kind: 'html' | 'markdown' | 'wet'; limit: number | null });

export interface CorpusParameters {
  sources: Record<string, CorpusSource>;
  limit: { pages: number | null; chunks: number | null };
  near_duplicates: { threshold: number } | null;
  /** How chunks are counted for `limit.chunks`; null when that is not used, so that chunking is free to change. */
  chunk: (ChunkParameters & { tokenizer: { model: string; sha256: string } }) | null;
}

export interface IndexParameters {
  embedder: { model: string; sha256: string; precision: 'fp32' | 'fp16' | 'int8'; dimension: number };
  chunk: ChunkParameters;
  dense: { type: 'hnsw' | 'flat' | 'diskann'; metric: 'cosine' | 'ip' | 'l2' };
  sparse: 'bm25' | 'none';
  fusion: { kind: 'rrf'; k: number } | { kind: 'weighted'; dense: number; sparse: number };
}

export interface TaskFields {
  id: string;
  question: string;
  answer: string;
  aliases: string;
  /** Column with ids of evidence pages; their URLs are `doc:<id>`. */
  gold_ids: string;
  deny_urls: string;
  capability: string;
}
export type TaskSource =
  | { kind: 'generated'; from: 'corpus'; count: number; seed: number }
  | (SourceBase & {
      kind: 'jsonl' | 'parquet';
      format: TaskFormat;
      fields: TaskFields;
      limit: number | null;
      seed: number;
      /** How the capability is found when no column names it; null when one does. The prompt has the slot {question}. */
      capability: { judge: JudgeParameters } | { column: string; map: Record<string, Capability> } | null;
    });

export interface TasksParameters {
  sources: Record<string, TaskSource>;
  /** Share of each capability among the tasks of each source; null when no mix is asked for. */
  mix: Record<string, number> | null;
  /** Share of each split; they sum to 1. */
  splits: Record<string, number>;
  limit: number | null;
  /** Sets that no task of `splits` may overlap with; their digests are among the node's files. */
  decontaminate: { against: Record<string, TaskFields>; method: 'ngram'; n: number; splits: string[] } | null;
}

export interface ResampleParameters {
  by: 'turns';
  /** In rising order; the last band has no end. `weight` is how many copies an instance of the band gets. */
  bands: { up_to: number | null; weight: number }[];
}

interface TrajectoriesBase {
  count: number | null;
  resample: ResampleParameters | null;
  /** Null: found out from the first record. */
  format: 'messages' | 'sharegpt' | 'webdancer' | 'redsearcher' | 'literesearcher' | null;
  clean: {
    tools: string[];
    drop_repeated_calls: boolean;
    require_valid_format: boolean;
    require_correct: boolean;
    /** Column with somebody's verdict on the answer; null: the reference decides. */
    verdict: string | null;
  } | null;
  agent: AgentParameters;
  context_length: number;
  /** Whose tokenizer and chat template the trajectories are rendered with. */
  model: { name: string; sha256: string };
  /** Split the tasks are taken from. */
  split: string;
}
export interface ImportParameters extends TrajectoriesBase, SourceBase {
  source: 'import';
}
export type TrajectoriesParameters = (TrajectoriesBase & { source: 'demonstrations' }) | ImportParameters;

export interface OptimizerParameters {
  learning_rate: number;
  schedule: 'constant' | 'linear' | 'cosine';
  /** Share of all steps. */
  warmup: number;
  weight_decay: number;
  betas: [number, number];
  max_grad_norm: number;
}

export interface SftParameters {
  /** `batch` counts instances an optimizer step. */
  optimizer: OptimizerParameters & { batch: number; epochs: number };
  context_length: number;
  adapter: AdapterParameters | null;
  policy: TrainedPolicyParameters;
  loss: 'token_mean' | 'seq_mean_token_mean';
}

export interface ProfileParameters {
  /** How many tasks are profiled, chosen by the node's seed from `split`; null means all. */
  tasks: number | null;
  split: string;
  rollouts: number;
  keep: KeepParameters;
  /** Sample a task no further once its side is decided. */
  stop_decided: boolean;
  /** Draw kept tasks so that the capabilities have the shares they had before. */
  keep_mix: boolean;
  buckets: BucketParameters | null;
  agent: AgentParameters;
  context_length: number;
  sampling: SamplingParameters;
  reward: RewardParameters;
  policy: PolicyParameters;
}

export interface AlgorithmParameters {
  name: AlgorithmName;
  clip: { low: number; high: number; dual: number | null };
  /** To the weights the stage starts from, or to those of the stage `reference`. */
  kl: { coefficient: number; estimator: 'k1' | 'k2' | 'k3'; reference: string | null } | null;
  /** Weight of the entropy, which is rewarded. */
  entropy: number;
  loss: LossAggregation;
  importance: { level: 'token' | 'sequence'; truncate: number; veto: number | null } | null;
  /** Divide by the group's standard deviation, as GRPO does. */
  normalize_std: boolean;
  /** Falls off the outcome over the last `buffer` tokens of the context, down to `-penalty`; null for nothing. */
  overlong: { buffer: number; penalty: number } | null;
  /** Only with `igpo`. */
  igpo: IgpoSettings | null;
}

/** What samples and trains an rl stage. Of verl, the version and the engine it samples with decide the result too. */
export type BackendParameters = { name: 'exp' } | { name: 'verl'; version: string; engine: 'vllm' | 'sglang' };

export interface RlParameters {
  backend: BackendParameters;
  algorithm: AlgorithmParameters;
  rollout: {
    group_size: number;
    prompts_per_step: number;
    temperature: number;
    top_p: number;
    /** Rounds of sampling a step may add to replace groups that are dropped. */
    refills: number;
    max_staleness: number;
    /** Part of a batch after which the rest is asked for answers; null for never. */
    cutoff: number | null;
  };
  /** `minibatch` counts prompts (whole groups) an optimizer update. */
  optimizer: OptimizerParameters & { minibatch: number };
  until: {
    steps: number | null;
    epochs: number | null;
    plateau: { metric: string; patience: number; min_delta: number } | null;
  };
  /** Within the stage: a benchmark, its protocol, and how often. */
  evaluate: {
    benchmark: string;
    every: number;
    /** What is best, and what a plateau is of: `eval/internal/avg_at_3`. */
    metric: string;
    /** Node that holds the questions. */
    questions: string;
    protocol: Omit<BenchmarkParameters, 'benchmark' | 'after'>;
  } | null;
  health: HealthParameters | null;
  /** Steps after which pass rates are measured again, as the profile measured them. */
  refresh_every: number | null;
  /** Online filter of groups; null without `difficulty`. */
  keep: GroupKeepParameters | null;
  agent: AgentParameters;
  context_length: number;
  reward: RewardParameters;
  adapter: AdapterParameters | null;
  policy: TrainedPolicyParameters;
  tasks: { split: string };
}

export interface BenchmarkParameters {
  benchmark: string;
  /** `base` or the stage whose checkpoint is measured. */
  after: string;
  /** `seed` chooses the questions: the same ones for every checkpoint. `limit` null means all. */
  dataset: { split: string; limit: number | null; seed: number };
  samples: number;
  metrics: string[];
  agent: AgentParameters;
  context_length: number;
  sampling: SamplingParameters;
  policy: PolicyParameters;
  reward: RewardParameters;
}

export interface ReportParameters {
  /** Ids of the benchmark nodes, sorted; the report shows them in this order. */
  benchmarks: string[];
}

export interface NodeParameters {
  corpus: CorpusParameters;
  index: IndexParameters;
  tasks: TasksParameters;
  trajectories: TrajectoriesParameters;
  profile: ProfileParameters;
  sft: SftParameters;
  rl: RlParameters;
  benchmark: BenchmarkParameters;
  report: ReportParameters;
}

/** What does not decide the result, so is not in the key. */
export interface Unkeyed {
  /** Source name → absolute path or glob (for `installed_packages`: the checkout whose packages are read). */
  paths?: Record<string, string>;
  /** Source name → records it must have. */
  expect?: Record<string, number>;
  resources?: { gpu: number; nodes: number; context_parallel: number };
  /** `rl` and `sft`: steps between durable checkpoints, and how many are kept. */
  checkpoint?: { every: number; keep: { last: number; best?: number } };
  /** Where the judge is, and what happens while it does not answer. */
  judge?: {
    url: string | { env: string };
    api_key?: { env: string } | { file: string };
    retries: number;
    on_failure: 'retry_later' | 'fail';
  };
  /** What computes beliefs; only with `igpo`. */
  beliefs?: 'trainer' | 'engine';
  /** The run whose artifact stands for this node, by `reuse`. */
  reused_from?: string;
  /** Names of what made this key unknown. */
  unknown?: string[];
}

/** A plan node whose kind, and so whose parameters, are known. */
export type NodeOf<K extends NodeKind> = Omit<PlanNode, 'kind' | 'parameters' | 'unkeyed'> & {
  kind: K;
  parameters: NodeParameters[K];
  unkeyed: Unkeyed;
};

/** Narrow a stored node. Throws when a caller was given a node of another kind: a bug, not a user's mistake. */
export function nodeOf<K extends NodeKind>(kind: K, node: PlanNode): NodeOf<K> {
  if (node.kind !== kind) throw new Error(`${node.id} is a ${node.kind} node, not ${kind}`);
  return node as unknown as NodeOf<K>;
}
