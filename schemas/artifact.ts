import { type Static, Type } from 'typebox';

/** SHA-256 of canonical bytes, lower-case hex. */
export const ContentHash = Type.String({ pattern: '^[0-9a-f]{64}$' });
export type ContentHash = Static<typeof ContentHash>;

/** Points at one published artifact; small enough for any workflow payload. */
export const ArtifactRef = Type.Object(
  {
    key: ContentHash,
    kind: Type.String(),
    generation: Type.Integer({ minimum: 1 }),
    digest: Type.String({ description: 'SHA-256 of the manifest without created_at, metrics and made_with.' }),
  },
  { additionalProperties: false },
);
export type ArtifactRef = Static<typeof ArtifactRef>;

/** One blob of an artifact, stored by its own hash. */
export const ArtifactFile = Type.Object(
  { name: Type.String(), sha256: ContentHash, bytes: Type.Integer({ minimum: 0 }) },
  { additionalProperties: false },
);
export type ArtifactFile = Static<typeof ArtifactFile>;

/** One point of a curve, exactly as MLflow will hold it: the timestamp is fixed when the value is first recorded. */
export const Metric = Type.Object(
  { name: Type.String(), step: Type.Integer(), value: Type.Number(), timestamp_ms: Type.Integer() },
  { additionalProperties: false },
);
export type Metric = Static<typeof Metric>;

/** Says what a key produced: the files, what was read, what it was made with. Written last. */
export const Manifest = Type.Object(
  {
    api_version: Type.Literal('exp/v1'),
    key: ContentHash,
    kind: Type.String(),
    files: Type.Array(ArtifactFile),
    /** Digests of the artifacts this one was made from. */
    inputs: Type.Array(Type.Object({ node: Type.String(), key: ContentHash, digest: Type.String() })),
    /** What the kind promises its readers (counts, locations, summaries); small. */
    body: Type.Record(Type.String(), Type.Unknown()),
    metrics: Type.Array(Metric),
    made_with: Type.Record(Type.String(), Type.String()),
    created_at: Type.String(),
  },
  { additionalProperties: false },
);
export type Manifest = Static<typeof Manifest>;

export interface CorpusBody {
  corpus_key: string;
  pages: number;
  bytes: number;
  dropped: {
    exact_duplicates: number;
    near_duplicates: number;
    repeated_urls: number;
    over_limit: number;
    bad_rows: number;
  };
  sources: { name: string; kind: string; licence: string; provenance: string; pages: number }[];
  /** SHA-256 over (url, page hash) in url order; verified live against PostgreSQL before reuse. */
  fingerprint: string;
}

export interface IndexFingerprint {
  embedder: string;
  embedder_sha256: string;
  precision: string;
  dimension: number;
  chunk: { tokens: number; overlap: number };
  corpus_digest: string;
}

export interface IndexBody {
  collection: string;
  chunks: number;
  fingerprint: IndexFingerprint;
}

export interface TasksBody {
  tasks: number;
  splits: Record<string, number>;
  mix: Record<string, { asked: number; realised: number }>;
  dropped: Record<string, number>;
}

export interface TrajectoriesBody {
  trajectories: number;
  /** Instances after resampling. */
  instances: number;
  tokens: number;
  masked_share: number;
  dropped: Record<string, number>;
}

export interface ProfileBody {
  tasks: number;
  rollouts: number;
  never: number;
  sometimes: number;
  always: number;
  kept: number;
  /** Rollouts that were not sampled, because they could no longer change what is kept. */
  saved: number;
  /** Digest of the weights that were measured. */
  checkpoint: string;
  /** Share of each capability among the profiled tasks and among the kept ones. */
  mix: Record<string, { before: number; after: number }>;
}

/**
 * Body of `sft` and `rl` artifacts. Files: adapter.safetensors (model.safetensors where all weights were trained),
 * optimizer.safetensors, trainer_state.json.
 */
export interface CheckpointBody {
  /** Registry name and weights digest of the base model at the root of the chain. */
  model: string;
  model_sha256: string;
  /** Blob hash of full weights that stand in place of the base's; absent where nothing but adapters was trained. */
  weights?: string;
  /** Blob hashes of the adapters, merged in this order; an artifact's own adapter is the last. */
  adapters: string[];
  step: number;
  stop_reason: string;
}

export interface BenchmarkBody {
  benchmark: string;
  after: string;
  questions: number;
  samples: number;
  protocol: Record<string, unknown>;
  /** `avg_at_2`, `pass_at_2` … each with its 95 % bootstrap interval over questions. */
  results: Record<string, { value: number; low: number; high: number }>;
  baselines: Record<string, { value: number; low: number; high: number }>;
  answer_in_observation: number;
  /** The first metric, over the questions of each capability, and of templates that training showed or did not show. */
  groups: Record<string, { questions: number; value: number; low: number; high: number }>;
  /** Samples without an answer: wrong, and counted. */
  unfinished: number;
  /** Samples that something outside the policy broke: neither right nor wrong. */
  masked: number;
  /** Means over samples: turns, calls of each tool, tokens; shares of malformed actions and of each termination. */
  tool_use: Record<string, number>;
}
