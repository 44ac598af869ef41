/**
 * What a report is made from: data alone, so that collecting it knows no page and the page knows no service.
 * Nodes are named as in `exp logs`: by their id, with the arm before it where arms have different nodes of that id.
 */
import type { BenchmarkBody, CorpusBody, ProfileBody, TasksBody, TrajectoriesBody } from '../../schemas/artifact.ts';
import type { HEALTH_METRICS } from '../../schemas/health-metrics.ts';

/** A curve that the trainer or the rollouts of a stage record: what the page asks for by name must be one. */
export type StageMetric = (typeof HEALTH_METRICS)[number];

export interface RunReport {
  run: ReportedRun;
  arms: ReportedArm[];
  /** Distinct nodes: one that arms share stands here once. In plan order. */
  nodes: ReportedNode[];
  licences: Licence[];
  corpora: { node: string; body: Pick<CorpusBody, 'pages' | 'bytes' | 'dropped'> }[];
  tasks: { node: string; body: TasksBody }[];
  demonstrations: { node: string; body: TrajectoriesBody }[];
  /** Curves of the stages that train. */
  curves: StageCurves[];
  profiles: PassRates[];
  /** What sampling used, by node; closed-book samples have no tools and are not counted among the others. */
  usage: Usage[];
  cost: CostLine[];
  currency: string;
  benchmarks: ReportedBenchmark[];
  /** Arms beside the control; empty for a run of one arm. */
  comparisons: ArmComparison[];
  events: TimelineEvent[];
  trajectories: TrajectoryIndex;
  /** What could not be read, or was left out, in words. */
  notes: string[];
}

export interface ReportedRun {
  id: string;
  name: string;
  description: string;
  status: string;
  profile: string;
  run_key: string;
  spec_path: string;
  /** The resolved spec as YAML, secrets redacted. */
  spec: string;
  /** Milliseconds since the epoch, as everywhere here. */
  created_ms: number;
  ended_ms: number | null;
  mlflow_url: string | null;
}

export interface ReportedArm {
  name: string;
  seed: number;
  status: string;
  /** What sets it apart, as text by dotted path. */
  changes: Record<string, string>;
}

export interface ReportedNode {
  name: string;
  kind: string;
  kind_version: number;
  key: string;
  seed: number | null;
  status: string;
  /** Arms that have it; all of them for most. */
  arms: string[];
  /** Names of the nodes it reads. */
  inputs: string[];
  /** How often its work was begun. */
  attempts: number;
  started_ms: number | null;
  ended_ms: number | null;
  detail: string;
  error: string | null;
  /** Null where nothing is published. */
  artifact: { digest: string; generation: number; bytes: number; made_with: Record<string, string> } | null;
}

export interface Licence {
  used_as: string;
  name: string;
  licence: string;
  provenance: string;
}

export interface StageCurves {
  node: string;
  kind: string;
  /** By metric: points as [step, value], steps rising. */
  metrics: Record<string, [step: number, value: number][]>;
}

export interface PassRates {
  node: string;
  body: ProfileBody;
  /** Rollouts of a task where none was masked. */
  rollouts: number;
  /** Tasks by number of passes, 0 … rollouts. */
  before: number[];
  after: number[];
}

/** A trajectory that something outside the policy broke is neither right nor wrong. */
export const OUTCOMES = ['right', 'wrong', 'unfinished', 'broken'] as const;
export type Outcome = (typeof OUTCOMES)[number];

export interface Usage {
  node: string;
  context_length: number;
  outcomes: Record<Outcome, number>;
  /** Trajectories by the share of the context they filled, in equal bins over [0, 1], by outcome. */
  context: Record<Outcome, number[]>;
  /** Actions by what they called (`answer`, `malformed` too), by outcome of their trajectory. */
  actions: Record<Outcome, Record<string, number>>;
  terminations: Record<string, number>;
}

/** What one node used in this run. Reused nodes used nothing. */
export interface CostLine {
  node: string;
  trajectories: number;
  /** Of prompts, observations and actions: what an engine read and wrote. */
  tokens: number;
  /** Those the policy wrote. */
  action_tokens: number;
  tool_calls: number;
  seconds: number;
  gpus: number;
  /** At the prices of the profile, in its currency. */
  price: number;
}

export interface Interval {
  value: number;
  low: number;
  high: number;
}

export interface ReportedBenchmark {
  name: string;
  /** Names as in `results`: `avg_at_2`. */
  metrics: string[];
  questions: number;
  samples: number;
  rows: { node: string; arms: string[]; body: Omit<BenchmarkBody, 'protocol'> }[];
  /** Of the first row; rows of other protocols are told in `notes`. */
  protocol: Record<string, unknown>;
  /** Published numbers, as shares, with the world they were measured in. */
  references: { name: string; protocol: string; value: number }[];
}

export interface ArmComparison {
  benchmark: string;
  metric: string;
  control: string;
  rows: {
    name: string;
    differs: Record<string, string>;
    seeds: number;
    after: string;
    value: Interval;
    /** Null for the control. */
    paired: {
      difference: Interval;
      p_value: number;
      questions: number;
      wins: number;
      losses: number;
      ties: number;
    } | null;
  }[];
  refused: { name: string; reason: string }[];
  missing: string[];
}

/** As in cli/run-history.ts, which a page cannot import. */
export type EventMark = 'crash' | 'retry' | 'failure';

export interface TimelineEvent {
  /** The node, `run` or an arm. */
  where: string;
  at_ms: number;
  mark: EventMark;
  text: string;
}

/** One column each, all of the same length: enough to filter and sort without any trajectory's text. */
export interface TrajectoryIndex {
  /** How many the run has, and how many of them are in the report. */
  total: number;
  embedded: number;
  /** Trajectories a chunk holds: number i is in chunk floor(i / chunk_size). */
  chunk_size: number;
  /** Node names, with ` (closed book)` behind the samples that had no tools. */
  sources: string[];
  tasks: { id: string; question: string; capability: string }[];
  terminations: string[];
  failures: string[];
  columns: {
    id: string[];
    /** Positions in the lists above. */
    source: number[];
    task: number[];
    outcome: number[];
    termination: number[];
    /** −1 for none. */
    failure: number[];
    /** Optimizer step; 0 where there is none. */
    step: number[];
    turns: number[];
    tokens: number[];
    reward: number[];
  };
}

/** The element that holds a chunk: gzipped JSON, in base64. */
export const chunkId = (chunk: number): string => `trajectories-${chunk}`;

/** One trajectory as the reader shows it; lies compressed in a chunk until it is opened. */
export interface ShownTrajectory {
  id: string;
  task_id: string;
  question: string;
  /** The reference answer and its other spellings; null where the task is not known any more. */
  reference: string | null;
  aliases: string[];
  capability: string;
  evidence: string[];
  answer: string | null;
  outcome: Outcome;
  reward: number;
  score: { exact_match: number; f1: number; format_valid: boolean; answer_in_observation: boolean };
  termination: string;
  failure_class: string | null;
  checkpoint: string;
  temperature: number;
  top_p: number;
  seed: number;
  prompt_tokens: number;
  turns: ShownTurn[];
}

export interface ShownTurn {
  turn: number;
  action: string;
  action_tokens: number;
  /** The tool called, `answer`, or null when malformed. */
  tool: string | null;
  status: string;
  latency_ms: number;
  reward: number | null;
  /** Mean over the turn's tokens; null where the trajectory was not trained on. */
  advantage: number | null;
  observation: {
    text: string;
    tokens: number;
    status: string;
    latency_ms: number;
    cached: boolean;
    denied: number;
  } | null;
}
