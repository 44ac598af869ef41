import { MockActivityEnvironment } from '@temporalio/testing';
import { expect, test } from 'vitest';
import type { NodeRef } from '../../activities/index.ts';
import { checkpointOf } from '../../activities/resolve-checkpoint.ts';
import { createTrainStageActivities, type TrainStageDeps } from '../../activities/train-stage.ts';
import type { Checkpoint } from '../../schemas/checkpoint.ts';

/** Where a stage of six steps that samples ahead stands after its step `done`, with what `letGo` leaves of its states. */
async function opened(done: number, kept: readonly number[], stage: object = {}) {
  const parameters = {
    policy: { model: 'toy', sha256: 'a'.repeat(64) },
    algorithm: { kl: null },
    adapter: { lora_rank: 1 },
    rollout: { max_staleness: 1 },
    evaluate: null,
    refresh_every: null,
    ...stage,
  };
  const row = (step: number) => ({ step, saved: kept.includes(step) ? { adapter: `after ${step}` } : null });
  const deps = {
    plans: { node: async () => ({ kind: 'rl', parameters, unkeyed: {} }), inputs: async () => [] },
    ledger: {
      lastSaved: async () => (done > 0 ? row(done) : null),
      get: async (_key: string, step: number) => row(step),
    },
  } as unknown as TrainStageDeps;
  const input = { node: { id: 'stage', kind: 'rl', key: 'k' } as NodeRef, epoch: 1, steps: 6 };
  return new MockActivityEnvironment().run(createTrainStageActivities(deps).openTrainer, input);
}

const after = (step: number): Checkpoint =>
  checkpointOf({ model: 'toy', model_sha256: 'a'.repeat(64), adapters: step > 0 ? [`after ${step}`] : [] });

test('whoever opens a stage is told the weights that sample the next step', async () => {
  expect(await opened(0, [])).toEqual({ step: 0, checkpoint: after(0) });
  expect(await opened(1, [1])).toEqual({ step: 1, checkpoint: after(1), sampler: after(0) });
  expect(await opened(4, [3, 4])).toEqual({ step: 4, checkpoint: after(4), sampler: after(3) });
});

test('after a measured checkpoint, and without max_staleness, these are the newest', async () => {
  expect(await opened(4, [4], { evaluate: { every: 2 } })).toEqual({ step: 4, checkpoint: after(4) });
  expect(await opened(4, [4], { refresh_every: 4 })).toEqual({ step: 4, checkpoint: after(4) });
  expect(await opened(4, [4], { rollout: { max_staleness: 0 } })).toEqual({ step: 4, checkpoint: after(4) });
});

test('a stage that has taken its last step needs no others, which are let go', async () => {
  expect(await opened(6, [6])).toEqual({ step: 6, checkpoint: after(6) });
});
