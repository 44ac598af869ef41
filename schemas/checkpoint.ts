import { type Static, Type } from 'typebox';
import { ContentHash } from './artifact.ts';

/**
 * The weights of a policy: a base model, or full weights that a stage trained in its place, and the adapters merged
 * onto them, in order. `digest` is SHA-256 of canonical {model_sha256, weights?, adapters}, so it names the weights
 * and nothing else.
 */
export const Checkpoint = Type.Object(
  {
    digest: ContentHash,
    model: Type.String({ description: 'Registry name of the base model.' }),
    model_sha256: ContentHash,
    /** Blob of full weights that stand in place of the base model's. */
    weights: Type.Optional(ContentHash),
    adapters: Type.Array(ContentHash),
  },
  { additionalProperties: false },
);
export type Checkpoint = Static<typeof Checkpoint>;

/** Blobs of what is applied to the base model, in this order. */
export const linksOf = ({ weights, adapters }: { weights?: string | undefined; adapters: string[] }): string[] =>
  weights === undefined ? adapters : [weights, ...adapters];
