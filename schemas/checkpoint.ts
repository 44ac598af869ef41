import { type Static, Type } from 'typebox';
import { ContentHash } from './artifact.ts';

/**
 * The weights of a policy: a base model and the adapters merged onto it, in order.
 * `digest` is SHA-256 of canonical {model_sha256, adapters}, so it names the weights and nothing else.
 */
export const Checkpoint = Type.Object(
  {
    digest: ContentHash,
    model: Type.String({ description: 'Registry name of the base model.' }),
    model_sha256: ContentHash,
    adapters: Type.Array(ContentHash),
  },
  { additionalProperties: false },
);
export type Checkpoint = Static<typeof Checkpoint>;
