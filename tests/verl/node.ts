/** The plan of a spec whose first rl stage is handed to verl. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parse, stringify } from 'yaml';
import { type LoadedPlan, loadPlan } from '../../plan/load-plan.ts';
import { loadProfile } from '../../plan/profile.ts';
import { type NodeOf, nodeOf } from '../../schemas/node-parameters.ts';
import type { Profile } from '../../schemas/profile.ts';
import { repoRoot } from '../../services/home.ts';
import { temporaryFolder } from '../temporary-folder.ts';

const ROOT = repoRoot();

/** A profile with a Ray cluster, otherwise as local as the one that is shipped. */
export function rayProfile(ray: Partial<NonNullable<Profile['ray']>> = {}): Profile {
  const local = loadProfile('local', join(ROOT, 'profiles'));
  return {
    ...local,
    capabilities: { ...local.capabilities, gpus: 16, nodes: 2, trainers: ['builtin', 'verl'] },
    ray: {
      address: 'http://127.0.0.1:8265',
      shared_dir: '/shared/exp-verl',
      command: ['python3', '-m', 'verl.trainer.main_ppo'],
      tool_server: { listen: '127.0.0.1', port: 0 },
      ...ray,
    },
  };
}

const STAGE = {
  kind: 'rl',
  backend: 'verl',
  context_length: 8192,
  tasks: { split: 'train' },
  algorithm: { clip: { low: 0.2, high: 0.28 } },
  rollout: { group_size: 4, prompts_per_step: 8 },
  optimizer: { learning_rate: 1e-6, warmup: 0.1 },
  until: { steps: 220 },
  resources: { gpu: 8, nodes: 2, context_parallel: 4 },
  checkpoint: { every: 5 },
};

interface Recipe {
  benchmarks: { held_out: object };
}

/** The recipe, with one stage in the place of its own. */
function verlSpec(stage: object): object {
  const recipe = parse(readFileSync(join(ROOT, 'tests/fixtures/specs/recipe.yaml'), 'utf8')) as Recipe;
  return {
    ...recipe,
    policy: { base: 'smollm2-135m-instruct', engine: 'vllm' },
    curriculum: { on_ray: { ...STAGE, ...stage } },
    benchmarks: { held_out: { ...recipe.benchmarks.held_out, after: ['on_ray'] } },
  };
}

export async function verlPlan(stage: object = {}, profile = rayProfile()): Promise<LoadedPlan> {
  const path = join(temporaryFolder('exp-verl-spec-'), 'spec.yaml');
  writeFileSync(path, stringify(verlSpec(stage)));
  const fixtures = join(ROOT, 'tests/fixtures/plans');
  return loadPlan(path, {
    profile,
    env: {},
    cacheDir: temporaryFolder('exp-verl-cache-'),
    modelsDir: join(fixtures, 'models'),
    profilesDir: join(ROOT, 'profiles'),
    repoRoot: join(fixtures, 'checkout'),
    pythonLock: 'requirements.txt',
  });
}

export async function verlNode(stage: object = {}): Promise<NodeOf<'rl'>> {
  const { plan, problems } = await verlPlan(stage);
  const node = plan?.arms[0]?.nodes.find(({ id }) => id === 'on_ray');
  if (!node) throw new Error(`no such node: ${JSON.stringify(problems)}`);
  return nodeOf('rl', node);
}
