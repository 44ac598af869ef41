import { type Static, Type } from 'typebox';

/** The five atomic capabilities of LiteResearcher (arXiv names them so). */
export const CAPABILITIES = [
  'direct_retrieval',
  'aggregation',
  'enumeration',
  'cross_verification',
  'statistics',
] as const;
export const Capability = Type.Union(CAPABILITIES.map((name) => Type.Literal(name)));
export type Capability = (typeof CAPABILITIES)[number];

/** Shapes in which questions are published. */
export const TASK_FORMATS = ['columns', 'literesearcher'] as const;
export type TaskFormat = (typeof TASK_FORMATS)[number];

/** A question with its reference answer. */
export const Task = Type.Object(
  {
    task_id: Type.String(),
    question: Type.String(),
    answer: Type.String(),
    /** Other spellings that count as correct. */
    aliases: Type.Array(Type.String()),
    capability: Type.Union([Capability, Type.Literal('unknown')]),
    split: Type.String(),
    source: Type.String(),
    /** URLs of the pages the answer is derived from; for generated tasks, each one is necessary. */
    evidence: Type.Array(Type.String()),
    deny_urls: Type.Array(Type.String()),
    /** Generated tasks: the template, and what a scripted expert must look up. Absent on imported tasks. */
    template: Type.Optional(Type.String()),
    lookups: Type.Optional(Type.Array(Type.Object({ query: Type.String(), url: Type.String(), field: Type.String() }))),
  },
  { additionalProperties: false },
);
/** The names of a mapped union are lost to inference, so they are put back. */
export type Task = Omit<Static<typeof Task>, 'capability'> & { capability: Capability | 'unknown' };
