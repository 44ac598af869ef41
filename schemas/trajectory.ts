import { type Static, Type } from 'typebox';

/** Why a trajectory ended. Limits name themselves; `failed` has a failure_class. */
export const Termination = Type.Union([
  Type.Literal('answer'),
  Type.Literal('max_turns'),
  Type.Literal('context'),
  Type.Literal('cutoff'),
  Type.Literal('failed'),
]);
export type Termination = 'answer' | 'max_turns' | 'context' | 'cutoff' | 'failed';
export type FailureClass = 'tool' | 'judge' | 'engine' | 'network' | 'budget';

/** Half-open range [start, end) of token_ids. Prompt and observation tokens have mask 0, action tokens mask 1. */
export const Span = Type.Object(
  {
    turn: Type.Integer(),
    kind: Type.Union([Type.Literal('prompt'), Type.Literal('action'), Type.Literal('observation')]),
    start: Type.Integer(),
    end: Type.Integer(),
    /** Tool called in an action, or that produced an observation; 'answer' and 'summary' for such turns; null when malformed. */
    tool: Type.Union([Type.String(), Type.Null()]),
    status: Type.Union([
      Type.Literal('ok'),
      Type.Literal('malformed'),
      Type.Literal('tool_error'),
      Type.Literal('forced'),
      /** Asks for a summary, because the context is full. */
      Type.Literal('summary'),
      /** Declared faults of tools. */
      Type.Literal('fault_empty'),
      Type.Literal('fault_error'),
      Type.Literal('fault_truncated'),
    ]),
    latency_ms: Type.Number(),
    cached: Type.Boolean(),
    /** Pages an observation held back because the task denies them (leak guard). */
    denied: Type.Integer({ minimum: 0 }),
    /** Checkpoint digest that sampled the action; '' elsewhere. */
    weight_version: Type.String(),
  },
  { additionalProperties: false },
);
export type Span = Static<typeof Span>;

export const Message = Type.Object({ role: Type.String(), content: Type.String() }, { additionalProperties: false });
export type Message = Static<typeof Message>;

export const Sampling = Type.Object(
  {
    temperature: Type.Number({ minimum: 0 }),
    top_p: Type.Number({ exclusiveMinimum: 0, maximum: 1 }),
    seed: Type.Integer(),
  },
  { additionalProperties: false },
);
export type Sampling = Static<typeof Sampling>;

/** What a judge said of an answer; `reply` is for people to read. */
export const Verdict = Type.Object({ correct: Type.Boolean(), reply: Type.String() }, { additionalProperties: false });
export type Verdict = Static<typeof Verdict>;

/**
 * The canonical trajectory, or one branch of it; one Parquet row (zstd). All arrays over tokens have the length of
 * token_ids. Branches of a trajectory are rows with one trajectory_id, in order, each a training sample; what the next
 * one keeps of those before it is part of its prompt, so a sampled token has mask 1 in one row. Outcome, score, answer
 * and termination are the trajectory's and stand in every row; spans, messages and reward.turns are the branch's own.
 */
export const Trajectory = Type.Object(
  {
    trajectory_id: Type.String(),
    task_id: Type.String(),
    group_id: Type.String(),
    sample: Type.Integer(),
    branch: Type.Integer(),
    checkpoint: Type.String(),
    sampling: Sampling,
    token_ids: Type.Array(Type.Integer()),
    mask: Type.Array(Type.Integer({ minimum: 0, maximum: 1 })),
    /** Behaviour logprobs in nats, after temperature; 0 where mask is 0. */
    logprobs: Type.Array(Type.Number()),
    spans: Type.Array(Span),
    reward: Type.Object({ outcome: Type.Number(), turns: Type.Array(Type.Union([Type.Number(), Type.Null()])) }),
    score: Type.Object({
      exact_match: Type.Number(),
      f1: Type.Number(),
      format_valid: Type.Boolean(),
      answer_in_observation: Type.Boolean(),
    }),
    /** Null where no judge is asked. */
    judge: Type.Union([Verdict, Type.Null()]),
    /** One per token; empty until advantages are computed. */
    advantages: Type.Array(Type.Number()),
    /**
     * Before each turn: mean log-probability of the reference answer, in nats; null where it was not measured. Empty when
     * nothing was measured while rolling out.
     */
    beliefs: Type.Array(Type.Union([Type.Number(), Type.Null()])),
    termination: Termination,
    failure_class: Type.Union([Type.String(), Type.Null()]),
    answer: Type.Union([Type.String(), Type.Null()]),
    /** For display only; never tokenised again. */
    messages: Type.Array(Message),
  },
  { additionalProperties: false },
);
export type Trajectory = Static<typeof Trajectory>;
