import { expect, test } from 'vitest';
import type { PlanReader } from '../../activities/plan-reader.ts';
import { checkpointOf, parentCheckpoint, referenceCheckpoint } from '../../activities/resolve-checkpoint.ts';
import { contentKey } from '../../schemas/canonical.ts';
import { linksOf } from '../../schemas/checkpoint.ts';

const base = { model: 'm', model_sha256: 'b'.repeat(64) };
const stage2 = { plan: '', arm: 'base', id: 'stage2', kind: 'rl' as const, key: '' };

/** A plan whose `stage2` has these stages as inputs, each with one adapter named like it, in this order. */
const plansWith = (inputs: string[], reference: string | null): PlanReader => {
  const algorithm = { kl: { coefficient: 0.1, estimator: 'k3', reference } };
  return {
    node: async () => ({
      id: 'stage2',
      kind: 'rl',
      parameters: { policy: { model: 'm', sha256: base.model_sha256 }, algorithm },
    }),
    inputs: async () =>
      inputs.map((id) => ({ id, kind: 'rl', manifest: { body: { ...base, adapters: [id] } }, digest: id })),
  } as unknown as PlanReader;
};

test('a stage that only the KL term names is not what the stage starts from', async () => {
  const plans = plansWith(['stage0', 'stage1'], 'stage0');
  expect((await parentCheckpoint(plans, stage2)).adapters).toEqual(['stage1']);
  expect((await referenceCheckpoint(plans, stage2))?.adapters).toEqual(['stage0']);
  expect((await parentCheckpoint(plansWith(['stage0'], 'stage0'), stage2)).adapters).toEqual([]);
});

test('a KL term to the base has the base as its reference, and one to the start none', async () => {
  expect((await referenceCheckpoint(plansWith(['stage1'], 'base'), stage2))?.adapters).toEqual([]);
  expect(await referenceCheckpoint(plansWith(['stage1'], null), stage2)).toBeNull();
});

test('full weights come before the adapters on them and are part of the digest; without them it is what it was', () => {
  const weights = 'f'.repeat(64);
  const full = checkpointOf({ ...base, weights, adapters: ['a'] });
  expect(linksOf(full)).toEqual([weights, 'a']);
  expect(full.digest).not.toBe(checkpointOf({ ...base, adapters: ['a'] }).digest);
  expect(checkpointOf({ ...base, adapters: ['a'] }).digest).toBe(
    contentKey({ model_sha256: base.model_sha256, adapters: ['a'] }),
  );
});
