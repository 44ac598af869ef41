import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { beforeAll, expect, test } from 'vitest';
import { type VerlRun, verlOverrides } from '../../activities/verl-overrides.ts';
import { repoRoot } from '../../services/home.ts';
import { makeVerlEnvironment, pinned, verlBin } from '../verl/environment.ts';
import { verlNode } from '../verl/node.ts';

const run: VerlRun = {
  paths: {
    model: '/shared/it\'s a "model"\\',
    train: '/shared/stage=1/train.parquet',
    val: '/shared/stage/val.parquet',
    agent_loops: '/shared/stage/agent_loops.yaml',
    checkpoints: '/shared/stage/${check,points}',
  },
  name: '0123abcd',
  prompts: { shortest: 180, longest: 212 },
  steps: 220,
  until: 50,
  serving_dtype: 'bfloat16',
};

type Composed = Record<string, unknown>;

/** Each list composed with verl's own configuration: what its keys became, or `{ error }`. One process: verl's imports are slow. */
async function compose(lists: readonly (readonly string[])[]): Promise<Composed[]> {
  const child = spawn(verlBin('python'), [join(repoRoot(), 'tests/verl/compose.py')], {
    stdio: ['pipe', 'pipe', 'pipe'],
    env: { ...process.env, HF_HUB_OFFLINE: '1' },
  });
  child.stdin.end(JSON.stringify(lists));
  const [out, problems] = await Promise.all([text(child.stdout), text(child.stderr)]);
  if (!out.startsWith('[')) throw new Error(problems.slice(-3000));
  return JSON.parse(out) as Composed[];
}

const ALGORITHMS = ['grpo', 'dr_grpo', 'dapo', 'gspo', 'cispo'] as const;
const algorithm = (name: string) => ({
  name,
  loss: 'seq_mean_token_mean',
  kl: { coefficient: 0.01, estimator: 'k1' },
  importance: { level: 'sequence', truncate: 3 },
  clip: { low: 0.1, high: 0.3, dual: 4 },
});

let plain: Composed;
let unknown: Composed;
const byAlgorithm = new Map<string, Composed>();

beforeAll(async () => {
  await makeVerlEnvironment();
  const lists = await Promise.all(
    ALGORITHMS.map(async (name) => verlOverrides(await verlNode({ algorithm: algorithm(name) }), run)),
  );
  const [first = {}, second = {}, ...rest] = await compose([
    verlOverrides(await verlNode(), run),
    ['algorithm.rollout_is=true'], // as an older verl had it
    ...lists,
  ]);
  [plain, unknown] = [first, second];
  for (const [index, name] of ALGORITHMS.entries()) byAlgorithm.set(name, rest[index] as Composed);
}, 600_000);

test('the version that plans name is the one these tests ask', async () => {
  expect((await verlNode()).parameters.backend).toEqual({ name: 'verl', version: pinned('verl'), engine: 'vllm' });
});

test("verl's own configuration takes every override and holds the values meant", async () => {
  const overrides = verlOverrides(await verlNode(), run);

  expect(Object.keys(plain)).toEqual(overrides.map((override) => override.split('=', 1)[0]));
  expect(plain).toMatchObject({
    'actor_rollout_ref.model.path': run.paths.model,
    'data.train_files': run.paths.train,
    'trainer.default_local_dir': run.paths.checkpoints,
    'data.train_batch_size': 8,
    'data.max_prompt_length': 212,
    'data.max_response_length': 8192 - 180,
    'actor_rollout_ref.rollout.max_model_len': 8192 + 212 - 180 + 1,
    'actor_rollout_ref.rollout.n': 4,
    'actor_rollout_ref.rollout.name': 'vllm',
    'actor_rollout_ref.actor.optim.lr': 1e-6,
    'actor_rollout_ref.actor.optim.betas': [0.9, 0.95],
    'actor_rollout_ref.actor.optim.lr_warmup_steps': 22,
    'actor_rollout_ref.actor.clip_ratio_high': 0.28,
    'actor_rollout_ref.actor.loss_agg_mode': 'token-mean',
    'actor_rollout_ref.actor.use_kl_loss': false,
    'algorithm.rollout_correction.rollout_is': null,
    'algorithm.filter_groups.enable': false,
    'trainer.total_training_steps': 50,
    'trainer.n_gpus_per_node': 8,
    'trainer.nnodes': 2,
    'actor_rollout_ref.actor.ulysses_sequence_parallel_size': 4,
    'trainer.logger': ['console', 'file'],
    'trainer.save_freq': 5,
  });
});

test.each(ALGORITHMS)('%s is composed, with a KL term and a correction', (name) => {
  expect(byAlgorithm.get(name)).toMatchObject({
    'actor_rollout_ref.actor.policy_loss.loss_mode': name === 'gspo' || name === 'cispo' ? name : 'vanilla',
    'actor_rollout_ref.actor.loss_agg_mode': 'seq-mean-token-mean',
    'actor_rollout_ref.actor.use_kl_loss': true,
    'actor_rollout_ref.actor.kl_loss_type': 'k1',
    'actor_rollout_ref.actor.kl_loss_coef': 0.01,
    'actor_rollout_ref.actor.clip_ratio_c': 4,
    'algorithm.rollout_correction.rollout_is': 'sequence',
    'algorithm.rollout_correction.rollout_is_threshold': 3,
    'algorithm.filter_groups.enable': name === 'dapo',
  });
});

test('an override that this verl does not have is refused by it', () => {
  expect(unknown).toEqual({ error: expect.stringContaining("Could not override 'algorithm.rollout_is'") as string });
});
