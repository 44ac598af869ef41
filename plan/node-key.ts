/** The content key of a node: SHA-256 over all that decides its result. */
import { contentKey } from '../schemas/canonical.ts';
import type { PlanNode } from '../schemas/plan.ts';

export type KeyParts = Pick<PlanNode, 'kind' | 'kind_version' | 'parameters' | 'files' | 'seed' | 'nonce'>;

/** `inputs`: keys of the nodes it reads, in their order. */
export function nodeKey(
  { kind, kind_version, parameters, files, seed, nonce }: KeyParts,
  inputs: readonly string[],
): string {
  return contentKey({
    kind,
    kind_version,
    parameters,
    inputs,
    files: files.map(({ sha256 }) => sha256),
    seed,
    ...(nonce !== undefined && { nonce }),
  });
}
