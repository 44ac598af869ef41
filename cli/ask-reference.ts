/** What `exp ask` was asked about: which weights, in which world, with the agent of which run. */
import { join } from 'node:path';
import type { NodeRef } from '../activities/index.ts';
import { checkpointOf } from '../activities/resolve-checkpoint.ts';
import { digestOfModel } from '../plan/profile.ts';
import type { CheckpointBody } from '../schemas/artifact.ts';
import type { Checkpoint } from '../schemas/checkpoint.ts';
import { ExpError } from '../schemas/errors.ts';
import type { AgentParameters, PolicyParameters } from '../schemas/node-parameters.ts';
import type { Plan, PlanArm, PlanNode } from '../schemas/plan.ts';
import type { Profile } from '../schemas/profile.ts';
import { modelsDir, repoRoot } from '../services/home.ts';
import type { Stack } from './open-stack.ts';
import { findRun } from './run-state.ts';

export interface RunReference {
  id: string;
  planBlob: string;
  arm: PlanArm;
}

/** A run and one of its arms; null when none was named and there is none. */
export async function findRunArm(
  { pool, store }: Stack,
  run: string | undefined,
  arm: string | undefined,
): Promise<RunReference | null> {
  if (run === undefined && (await pool.query('select 1 from runs limit 1')).rowCount === 0) return null;
  const row = await findRun(pool, run ?? 'latest');
  const { arms } = await store.readJson<Plan>(row.plan_blob);
  const found = arm === undefined ? arms[0] : arms.find(({ name }) => name === arm);
  if (found === undefined)
    throw new ExpError(
      'ARM_UNKNOWN',
      arm ?? row.id,
      `run ${row.id} has the arms ${arms.map(({ name }) => name).join(', ')}`,
    );
  return { id: row.id, planBlob: row.plan_blob, arm: found };
}

/** `base`, or the stage, node id or key (or its beginning) of a trained checkpoint. Throws CHECKPOINT_UNKNOWN. */
export async function findCheckpoint(
  stack: Stack,
  profile: Profile,
  run: RunReference | null,
  wanted: string,
): Promise<Checkpoint> {
  if (wanted === 'base') return baseOf(profile, run);
  const trained = (run?.arm.nodes ?? []).filter(({ kind }) => kind === 'sft' || kind === 'rl');
  const node =
    trained.find(({ id }) => id === wanted) ?? trained.find(({ key }) => wanted.length >= 6 && key.startsWith(wanted));
  if (node === undefined) {
    const known = ['base', ...trained.map(({ id }) => id)].join(', ');
    throw new ExpError(
      'CHECKPOINT_UNKNOWN',
      wanted,
      run === null ? 'there is no run yet; only `base` can be asked' : `run ${run.id} has: ${known}`,
    );
  }
  const artifact = await stack.store.find(node.key);
  if (artifact === null)
    throw new ExpError('CHECKPOINT_UNKNOWN', wanted, `run ${run?.id} has not finished ${node.id} yet`);
  return checkpointOf((await stack.store.manifest(artifact)).body as unknown as CheckpointBody);
}

function baseOf(profile: Profile, run: RunReference | null): Checkpoint {
  const policy = run?.arm.nodes
    .map(({ parameters }) => parameters['policy'] as PolicyParameters | undefined)
    .find((found) => found !== undefined);
  if (policy !== undefined) return checkpointOf({ model: policy.model, model_sha256: policy.sha256, adapters: [] });
  const model = profile.embedded?.engine.model;
  const entry = model === undefined ? undefined : profile.registries.models[model];
  if (model === undefined || entry === undefined)
    throw new ExpError('CHECKPOINT_UNKNOWN', 'base', 'say --run RUN: the profile names no model of its own');
  return checkpointOf({
    model,
    model_sha256: digestOfModel(model, entry, modelsDir(), join(repoRoot(), 'profiles')),
    adapters: [],
  });
}

/** A node of the run that acts in its world. */
export function actingNode({ planBlob, arm }: RunReference): NodeRef | null {
  const node = arm.nodes.find(
    ({ kind, inputs }) => inputs.includes('index') && (kind === 'benchmark' || kind === 'profile' || kind === 'rl'),
  );
  return node === undefined ? null : { plan: planBlob, arm: arm.name, id: node.id, kind: node.kind, key: node.key };
}

/** How the agent of a run acts, and how long its context is; the run's last such node, or what the quickstart uses. */
export function agentOf(run: RunReference | null): { agent: AgentParameters; contextLength: number } {
  const node = run?.arm.nodes.findLast(
    (candidate: PlanNode) => candidate.parameters['agent'] !== undefined && candidate.kind !== 'trajectories',
  );
  if (node !== undefined)
    return {
      agent: node.parameters['agent'] as AgentParameters,
      contextLength: node.parameters['context_length'] as number,
    };
  const agent: AgentParameters = {
    tools: ['search', 'visit'],
    max_turns: 4,
    max_turn_tokens: 160,
    observation_tokens: 256,
    search_results: 5,
    context_management: 'none',
    terminate_on_answer: true,
    deny_urls: 'none',
    faults: null,
  };
  return { agent, contextLength: 2048 };
}
