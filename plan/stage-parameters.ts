/** What the sections of a stage become in the parameters of its nodes: every default explicit, what was left out null. */
import { ALGORITHM_DEFAULTS, IGPO_PRESETS, type IgpoSettings } from '../schemas/algorithms.ts';
import type { Experiment, Stage } from '../schemas/experiment.ts';
import type {
  AdapterParameters,
  AgentParameters,
  AlgorithmParameters,
  BackendParameters,
  HealthParameters,
  Unkeyed,
} from '../schemas/node-parameters.ts';

export type StageOf<K extends Stage['kind']> = Extract<Stage, { kind: K }>;

export function adapterParameters({ adapter }: Experiment['policy']): AdapterParameters | null {
  if (adapter === undefined) return null;
  return {
    lora_rank: adapter.lora_rank,
    lora_alpha: adapter.lora_alpha ?? 2 * adapter.lora_rank,
    lora_dropout: adapter.lora_dropout,
  };
}

export function agentParameters(agent: Experiment['agent']): AgentParameters {
  return { ...agent, tools: [...agent.tools].sort(), faults: (agent.faults as AgentParameters['faults']) ?? null };
}

/** Tokens up to which the engine computes beliefs unless the spec says: it prefills the whole context for each. */
const ENGINE_BELIEFS_CONTEXT = 8192;

export function algorithmParameters({ algorithm }: StageOf<'rl'>, reference: string | null): AlgorithmParameters {
  const { name, clip, kl, entropy, loss, importance, normalize_std, overlong } = algorithm;
  const defaults = ALGORITHM_DEFAULTS[name];
  return {
    name,
    clip: { ...defaults.clip, ...clip, dual: clip.dual ?? null },
    kl: kl === undefined || kl === 0 ? null : { coefficient: kl.coefficient, estimator: kl.estimator, reference },
    entropy,
    loss: loss ?? defaults.loss,
    importance: importance ? { ...importance, veto: importance.veto ?? null } : null,
    normalize_std: normalize_std ?? defaults.normalize_std,
    overlong: overlong ?? null,
    igpo: name === 'igpo' ? igpoSettings(algorithm) : null,
  };
}

/** The preset with what is written in its place; its name is no part of the result. */
function igpoSettings({ preset = 'dr_venus', gamma, information_gain }: StageOf<'rl'>['algorithm']): IgpoSettings {
  const { beliefs: _, ...written } = information_gain ?? {};
  const settings = { ...IGPO_PRESETS[preset], ...(gamma !== undefined && { gamma }), ...written };
  return { ...settings, scope: settings.scope && [...settings.scope].sort() };
}

/** What computes the beliefs of a stage. An engine scores prompts at temperature 1 whatever it is asked for. */
export function beliefsOf({ algorithm, rollout, context_length }: StageOf<'rl'>): Unkeyed {
  if (algorithm.name !== 'igpo') return {};
  const isForEngine = context_length <= ENGINE_BELIEFS_CONTEXT && rollout.temperature === 1;
  return { beliefs: algorithm.information_gain?.beliefs ?? (isForEngine ? 'engine' : 'trainer') };
}

export function healthParameters({
  limits,
  for: steps,
  on_breach,
}: NonNullable<StageOf<'rl'>['health']>): HealthParameters {
  const bounds = Object.entries(limits).map(([name, { min, max }]) => [name, { min: min ?? null, max: max ?? null }]);
  return { limits: Object.fromEntries(bounds) as HealthParameters['limits'], for: steps, on_breach };
}

/** Another verl reads other settings and trains otherwise: raised together with what the stage's activities write for it. */
const VERL_VERSION = '0.9.1';

export function backendParameters(
  name: StageOf<'rl'>['backend'],
  engine: Experiment['policy']['engine'],
): BackendParameters {
  return name === 'verl' ? { name, version: VERL_VERSION, engine } : { name };
}

export function stageUnkeyed({ resources, checkpoint }: Stage): Unkeyed {
  return { checkpoint, ...(resources && { resources }) };
}
