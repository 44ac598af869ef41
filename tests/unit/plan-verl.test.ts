import { expect, test } from 'vitest';
import { segmentEnds } from '../../activities/verl-folder.ts';
import type { CommandIo } from '../../cli/command.ts';
import { planToJson, showPlan } from '../../cli/show-plan.ts';
import { loadProfile } from '../../plan/profile.ts';
import { rayProfile, verlNode, verlPlan } from '../verl/node.ts';
import { ROOT } from './plan-fixture.ts';

test('a stage on verl is planned where there is a Ray cluster, and names what is missing where there is none', async () => {
  const { unknown: there } = await verlPlan();
  expect(there.filter((line) => line.includes('on_ray') && !line.includes('context_length'))).toEqual([]);
  const { unknown: here } = await verlPlan({}, loadProfile('local', `${ROOT}/profiles`));
  expect(here).toContain(
    'curriculum.on_ray.backend: profile local has no Ray cluster with verl (`ray`, and `verl` among `capabilities.trainers`)',
  );
});

test('what verl does not do is refused before anything runs', async () => {
  const { unknown } = await verlPlan({
    algorithm: { name: 'igpo' },
    rollout: { group_size: 4, prompts_per_step: 8, max_staleness: 1, cutoff: 0.9 },
    optimizer: { learning_rate: 1e-6, schedule: 'linear' },
    resources: { gpu: 0 },
  });
  expect(unknown.filter((line) => line.includes('with backend verl'))).toEqual([
    'curriculum.on_ray.resources.gpu: training without GPUs with backend verl is not executed by this version',
    'curriculum.on_ray.algorithm.name: igpo with backend verl is not executed by this version',
    'curriculum.on_ray.rollout.max_staleness: overlapping rollouts with training with backend verl is not executed by this version',
    'curriculum.on_ray.rollout.cutoff: a cut-off of rollouts with backend verl is not executed by this version',
    'curriculum.on_ray.optimizer.schedule: a linear schedule with backend verl is not executed by this version',
  ]);
});

test('the backend is in the key, where the cluster is and how often verl saves are not', async () => {
  const { key } = await verlNode();
  expect((await verlNode({ backend: 'exp' })).key).not.toBe(key);
  expect((await verlNode({ checkpoint: { every: 7 } })).key).toBe(key);
  expect((await verlNode({ resources: { gpu: 1 } })).key).toBe(key);
});

test('the plan says which promises do not cover the stage, to people and to programs', async () => {
  const { plan } = await verlPlan();
  if (plan === null) throw new Error('not valid');
  const profile = rayProfile();
  const lines: string[] = [];
  showPlan(plan, [], { profile, io: { out: (line: string) => lines.push(line), env: {} } as unknown as CommandIo });
  const at = lines.indexOf('on_ray runs on verl, without');
  const promises = lines.slice(at + 1, at + 4).map((line) => line.trim());
  expect(promises.map((line) => line.split(':')[0])).toEqual(['turn journal', 'step ledger', 'replay']);
  expect(promises[1]).toContain('one every 5 steps');
  const { nodes } = planToJson(plan, [], profile);
  expect(nodes.find(({ id }) => id === 'on_ray')?.without).toEqual(promises);
  expect(nodes.find(({ id }) => id === 'tasks')?.without).toEqual([]);
});

test('a stage is cut at every tenth checkpoint, and not at all under a schedule that falls', async () => {
  const node = await verlNode();
  expect(segmentEnds(node, 220)).toEqual([50, 100, 150, 200, 220]);
  expect(segmentEnds(node, 50)).toEqual([50]);
  expect(segmentEnds(await verlNode({ optimizer: { learning_rate: 1e-6, schedule: 'cosine' } }), 220)).toEqual([220]);
});
