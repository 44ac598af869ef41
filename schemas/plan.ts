import { type Static, Type } from 'typebox';
import { ContentHash } from './artifact.ts';

export const NODE_KINDS = [
  'corpus',
  'index',
  'tasks',
  'trajectories',
  'profile',
  'sft',
  'rl',
  'benchmark',
  'report',
] as const;
export const NodeKind = Type.Unsafe<(typeof NODE_KINDS)[number]>({ type: 'string', enum: NODE_KINDS });
export type NodeKind = (typeof NODE_KINDS)[number];

/** A vertex of the plan. `kind` decides which activity runs it; `parameters` is what its key was made from. */
export const PlanNode = Type.Object(
  {
    id: Type.String({
      description: 'corpus, index, tasks, cold_start.trajectories, cold_start, stage1.profile, held_out.base …',
    }),
    kind: NodeKind,
    kind_version: Type.Integer({ minimum: 1 }),
    key: ContentHash,
    /** Ids of the nodes whose artifacts this one reads. */
    inputs: Type.Array(Type.String()),
    /** Everything that decides the result. */
    parameters: Type.Record(Type.String(), Type.Unknown()),
    /** Files read directly, by content. */
    files: Type.Array(Type.Object({ path: Type.String(), sha256: ContentHash })),
    seed: Type.Union([Type.Integer(), Type.Null()], { description: 'Only stochastic kinds have one.' }),
    /** What may change without changing the result: absolute paths, retries, resources. Not in the key. */
    unkeyed: Type.Record(Type.String(), Type.Unknown()),
    nonce: Type.Optional(
      Type.String({ description: 'Makes the key another one, so that the node runs again (`exp rerun --from`).' }),
    ),
  },
  { additionalProperties: false },
);
export type PlanNode = Static<typeof PlanNode>;

const bound = Type.Union([Type.Number(), Type.Null()]);

/** What must hold before stages that start from a stage begin. It decides no result, so it is in no key. */
export const PlanGate = Type.Object(
  {
    /** The stage, and the id of its node. */
    name: Type.String(),
    /** Null where only a person is asked. `benchmark` is the node that measures it. */
    metric: Type.Union([
      Type.Object(
        { name: Type.String(), benchmark: Type.String(), at_least: bound, at_most: bound },
        { additionalProperties: false },
      ),
      Type.Null(),
    ]),
    on_fail: Type.Unsafe<'stop' | 'ask'>({ type: 'string', enum: ['stop', 'ask'] }),
    /** Whether a person is asked even when the metric holds. */
    approve: Type.Boolean(),
    /** Ids of the nodes that wait. */
    blocks: Type.Array(Type.String()),
  },
  { additionalProperties: false },
);
export type PlanGate = Static<typeof PlanGate>;

export const PlanArm = Type.Object(
  {
    name: Type.String(),
    seed: Type.Integer(),
    /** What sets this arm apart from the spec, by dotted path; null for what it unsets. */
    changes: Type.Record(Type.String(), Type.Unknown()),
    nodes: Type.Array(PlanNode),
    /** Absent where there are none. */
    gates: Type.Optional(Type.Array(PlanGate)),
  },
  { additionalProperties: false },
);
export type PlanArm = Static<typeof PlanArm>;

/** All that is needed to plan the same spec again; paths are absolute. */
export const MadeFrom = Type.Object(
  {
    spec_path: Type.String(),
    overlays: Type.Array(Type.String()),
    overrides: Type.Array(Type.String()),
    label: Type.Union([Type.String(), Type.Null()]),
  },
  { additionalProperties: false },
);
export type MadeFrom = Static<typeof MadeFrom>;

export const Plan = Type.Object(
  {
    api_version: Type.Literal('exp/v1'),
    run_key: ContentHash,
    name: Type.String(),
    profile: Type.String(),
    spec_path: Type.String(),
    /** The resolved spec, as frozen for this plan. */
    spec: Type.Record(Type.String(), Type.Unknown()),
    tracking: Type.Object({ mlflow_experiment: Type.String() }),
    /** Plans made before this was recorded have none. */
    made_from: Type.Optional(MadeFrom),
    arms: Type.Array(PlanArm),
  },
  { additionalProperties: false },
);
export type Plan = Static<typeof Plan>;
