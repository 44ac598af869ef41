/**
 * What verl is told: one list of Hydra overrides for `verl.trainer.main_ppo` of the pinned version
 * (verl-project/verl, release 0.9.1, verl/trainer/config/ppo_trainer.yaml). Pure. Whatever decides a result stands
 * here, verl's own default or not; what is left out is as that version has it.
 */
import { ExpError } from '../schemas/errors.ts';
import type { AlgorithmParameters, NodeOf } from '../schemas/node-parameters.ts';

/** What the node's parameters do not say: where things are, and how long its prompts are. */
export interface VerlRun {
  /** As verl sees them, absolute. */
  paths: { model: string; train: string; val: string; agent_loops: string; checkpoints: string };
  /** Short, without spaces: names the run in verl's own logs. */
  name: string;
  /** Of the rendered prompts, in tokens. */
  prompts: { shortest: number; longest: number };
  /** Of the whole stage. */
  steps: number;
  /** The step at which this segment ends. */
  until: number;
  /** In which the engine samples. */
  serving_dtype: 'float32' | 'bfloat16';
}

type Setting = string | number | boolean | null | readonly Setting[];

/** Far beyond any ratio: verl clips dually unless this is out of reach. */
const NO_DUAL_CLIP = 1e9;
/** Epochs are counted by verl, and refilled groups use them up faster: steps end the stage. */
const ENDLESS_EPOCHS = 1_000_000;
/** Tokens a GPU holds at once, at least: one whole trajectory, or many short ones. */
const PACKED_TOKENS = 16_384;

/** Overrides of a segment, each `key=value` in Hydra's grammar. */
export function verlOverrides(node: NodeOf<'rl'>, run: VerlRun): string[] {
  const settings: Record<string, Setting> = {
    ...dataSettings(node, run),
    ...modelSettings(node, run),
    ...lossSettings(node),
    ...samplingSettings(node, run),
    ...trainerSettings(node, run),
  };
  return Object.entries(settings).map(([key, value]) => `${key}=${hydraValue(value)}`);
}

function dataSettings({ parameters, seed }: NodeOf<'rl'>, { paths, prompts }: VerlRun): Record<string, Setting> {
  return {
    'data.train_files': paths.train,
    'data.val_files': paths.val,
    'data.train_batch_size': parameters.rollout.prompts_per_step,
    'data.max_prompt_length': prompts.longest,
    // A trajectory never exceeds its context, whatever its prompt: the agent loop sees to that, so verl cuts nothing.
    'data.max_response_length': parameters.context_length - prompts.shortest,
    'data.truncation': 'error',
    'data.filter_overlong_prompts': false, // it would apply a chat template of its own to count
    'data.return_raw_chat': true,
    'data.shuffle': true,
    'data.seed': seed ?? 0,
  };
}

function modelSettings(
  { parameters: { optimizer, policy, context_length, rollout }, unkeyed, seed }: NodeOf<'rl'>,
  { paths, steps }: VerlRun,
): Record<string, Setting> {
  const { context_parallel = 1 } = unkeyed.resources ?? {};
  const optim = 'actor_rollout_ref.actor.optim';
  return {
    'actor_rollout_ref.model.path': paths.model,
    'actor_rollout_ref.model.lora_rank': 0,
    'actor_rollout_ref.model.use_remove_padding': true,
    'actor_rollout_ref.model.enable_gradient_checkpointing': true,
    'actor_rollout_ref.actor.fsdp_config.model_dtype': 'fp32',
    'actor_rollout_ref.actor.fsdp_config.dtype': policy.dtype,
    'actor_rollout_ref.ref.fsdp_config.dtype': policy.dtype,
    'actor_rollout_ref.actor.ulysses_sequence_parallel_size': context_parallel,
    [`${optim}.optimizer`]: 'AdamW',
    [`${optim}.lr`]: optimizer.learning_rate,
    [`${optim}.betas`]: optimizer.betas,
    [`${optim}.weight_decay`]: optimizer.weight_decay,
    [`${optim}.clip_grad`]: optimizer.max_grad_norm,
    'actor_rollout_ref.actor.grad_clip': optimizer.max_grad_norm,
    [`${optim}.lr_scheduler_type`]: scheduleOf(optimizer.schedule),
    [`${optim}.lr_warmup_steps`]: Math.round(optimizer.warmup * steps),
    [`${optim}.min_lr_ratio`]: 0,
    'actor_rollout_ref.actor.ppo_mini_batch_size': Math.min(optimizer.minibatch, rollout.prompts_per_step),
    'actor_rollout_ref.actor.ppo_epochs': 1,
    'actor_rollout_ref.actor.shuffle': false,
    'actor_rollout_ref.actor.data_loader_seed': seed ?? 0,
    'actor_rollout_ref.actor.use_dynamic_bsz': true,
    'actor_rollout_ref.actor.ppo_max_token_len_per_gpu': Math.max(
      PACKED_TOKENS,
      Math.ceil(context_length / context_parallel),
    ),
    'actor_rollout_ref.actor.checkpoint.save_contents': ['model', 'optimizer', 'extra', 'hf_model'],
  };
}

function scheduleOf(schedule: 'constant' | 'linear' | 'cosine'): string {
  if (schedule === 'linear') throw new ExpError('VERL', 'optimizer.schedule', 'verl has no linear schedule');
  return schedule;
}

function lossSettings({ parameters: { algorithm, keep } }: NodeOf<'rl'>): Record<string, Setting> {
  const { name, clip, kl, importance, loss, normalize_std } = algorithm;
  const actor = 'actor_rollout_ref.actor';
  return {
    'algorithm.adv_estimator': 'grpo',
    'algorithm.norm_adv_by_std_in_grpo': normalize_std,
    'algorithm.use_kl_in_reward': false,
    // A group whose rewards are all the same teaches nothing: dropped, and another prompt is sampled in its place.
    'algorithm.filter_groups.enable': name === 'dapo' || keep !== null,
    'algorithm.filter_groups.metric': 'reward',
    'algorithm.rollout_correction.rollout_is': importance?.level ?? null,
    'algorithm.rollout_correction.rollout_is_threshold': importance?.truncate ?? 2,
    'algorithm.rollout_correction.rollout_rs': null,
    'algorithm.rollout_correction.bypass_mode': false,
    [`${actor}.policy_loss.loss_mode`]: lossModeOf(name),
    [`${actor}.loss_agg_mode`]: loss.replaceAll('_', '-'),
    [`${actor}.clip_ratio`]: clip.low,
    [`${actor}.clip_ratio_low`]: clip.low,
    [`${actor}.clip_ratio_high`]: clip.high,
    [`${actor}.clip_ratio_c`]: clip.dual ?? NO_DUAL_CLIP,
    [`${actor}.entropy_coeff`]: 0,
    [`${actor}.calculate_entropy`]: true,
    [`${actor}.use_kl_loss`]: kl !== null,
    [`${actor}.kl_loss_coef`]: kl?.coefficient ?? 0,
    [`${actor}.kl_loss_type`]: kl?.estimator ?? 'k3',
  };
}

/** Which ratio is clipped and how: the rest of an algorithm is in its settings. */
function lossModeOf(name: AlgorithmParameters['name']): string {
  if (name === 'igpo') throw new ExpError('VERL', 'algorithm.name', 'a stage on verl does not compute igpo');
  return name === 'gspo' || name === 'cispo' ? name : 'vanilla';
}

function samplingSettings(
  { parameters: { backend, rollout, context_length }, seed }: NodeOf<'rl'>,
  { paths, prompts, serving_dtype }: VerlRun,
): Record<string, Setting> {
  const engine = 'actor_rollout_ref.rollout';
  return {
    [`${engine}.name`]: backend.name === 'verl' ? backend.engine : null,
    [`${engine}.mode`]: 'async',
    [`${engine}.dtype`]: serving_dtype,
    [`${engine}.n`]: rollout.group_size,
    [`${engine}.temperature`]: rollout.temperature,
    [`${engine}.top_p`]: rollout.top_p,
    [`${engine}.top_k`]: -1,
    [`${engine}.seed`]: seed ?? 0,
    [`${engine}.tensor_model_parallel_size`]: 1,
    // Prompt and response at their longest, and the token that SGLang keeps free.
    [`${engine}.max_model_len`]: prompts.longest + context_length - prompts.shortest + 1,
    [`${engine}.calculate_log_probs`]: true,
    [`${engine}.logprobs_mode`]: 'processed_logprobs',
    [`${engine}.agent.default_agent_loop`]: 'exp_react',
    [`${engine}.agent.agent_loop_config_path`]: paths.agent_loops,
  };
}

function trainerSettings({ unkeyed, id }: NodeOf<'rl'>, { paths, until, name }: VerlRun): Record<string, Setting> {
  const { gpu = 0, nodes = 1 } = unkeyed.resources ?? {};
  if (gpu === 0) throw new ExpError('VERL', id, 'verl trains on GPUs, and `resources.gpu` of the stage is 0');
  const { every = 1, keep } = unkeyed.checkpoint ?? {};
  return {
    'trainer.use_v1': true,
    'trainer.v1.trainer_mode': 'sync',
    'trainer.nnodes': nodes,
    'trainer.n_gpus_per_node': gpu,
    'trainer.project_name': 'exp',
    'trainer.experiment_name': name,
    'trainer.logger': ['console', 'file'],
    'trainer.val_before_train': false,
    'trainer.test_freq': -1,
    'trainer.save_freq': every,
    'trainer.max_actor_ckpt_to_keep': keep?.last ?? null,
    'trainer.default_local_dir': paths.checkpoints,
    'trainer.resume_mode': 'auto',
    'trainer.total_epochs': ENDLESS_EPOCHS,
    'trainer.total_training_steps': until,
  };
}

/** Text is always quoted, so no path or name can be read as anything but text, nor as a reference to another setting. */
function hydraValue(value: Setting): string {
  if (typeof value === 'string') return `'${hydraText(value)}'`;
  if (Array.isArray(value)) return `[${value.map(hydraValue).join(',')}]`;
  return String(value);
}

/** OmegaConf takes `${` for a reference and Hydra a quote for the end; backslashes count only before these. */
const hydraText = (text: string): string =>
  text
    .replace(/\\*\$\{/g, (found) => `${found.slice(0, -2).repeat(2)}\\\${`)
    .replace(/\\*(?='|$)/g, (found) => found.repeat(2))
    .replaceAll("'", "\\'");
