/**
 * What the name of an algorithm stands for, as data: the published values that fill in what a spec leaves out.
 * `plan/compile.ts` writes them into the plan, so that no executor has defaults of its own.
 */

export const ALGORITHMS = ['grpo', 'dr_grpo', 'dapo', 'gspo', 'cispo', 'igpo'] as const;
export type AlgorithmName = (typeof ALGORITHMS)[number];

export const LOSS_AGGREGATIONS = ['token_mean', 'seq_mean_token_mean', 'seq_mean_token_sum'] as const;
export type LossAggregation = (typeof LOSS_AGGREGATIONS)[number];

export interface AlgorithmDefaults {
  clip: { low: number; high: number };
  loss: LossAggregation;
  /** Divide advantages by the standard deviation of the group. */
  normalize_std: boolean;
}

export const ALGORITHM_DEFAULTS: Record<AlgorithmName, AlgorithmDefaults> = {
  /** arXiv:2402.03300, with the mean over all tokens (arXiv:2503.14476) as verl and TRL have it today. */
  grpo: { clip: { low: 0.2, high: 0.2 }, loss: 'token_mean', normalize_std: true },
  /** arXiv:2503.20783: neither the deviation nor the length of a response divides. */
  dr_grpo: { clip: { low: 0.2, high: 0.2 }, loss: 'seq_mean_token_sum', normalize_std: false },
  /** arXiv:2503.14476, section 4.1. */
  dapo: { clip: { low: 0.2, high: 0.28 }, loss: 'token_mean', normalize_std: true },
  /** arXiv:2507.18071, section 5.1: bounds of a length-normalised ratio are much narrower. */
  gspo: { clip: { low: 3e-4, high: 4e-4 }, loss: 'seq_mean_token_mean', normalize_std: true },
  /** arXiv:2506.13585 leaves the weight unbounded below and names no upper bound; 5 is that of arXiv:2510.13786. */
  cispo: { clip: { low: 1, high: 4 }, loss: 'token_mean', normalize_std: true },
  /** inclusionAI/DR-Venus, RL/train_igpo.sh. */
  igpo: { clip: { low: 0.2, high: 0.2 }, loss: 'token_mean', normalize_std: true },
};

export const IGPO_MEASURES = ['log_prob', 'prob'] as const;
export const IGPO_NORMALIZATIONS = ['scaled_separate', 'separate', 'joint', 'raw_ig', 'per_position'] as const;
export const IGPO_PRESET_NAMES = ['paper', 'dr_venus', 'released_2025'] as const;

export interface IgpoSettings {
  /** The belief whose change is the gain: the mean log-probability of the reference answer, or its exponential. */
  measure: (typeof IGPO_MEASURES)[number];
  /** Only turns that call one of these tools are evaluated; null for every turn. */
  scope: string[] | null;
  /** Beliefs only before turns whose number divides by this. */
  every: number;
  normalize: (typeof IGPO_NORMALIZATIONS)[number];
  /** Discount from one reward position to the next. */
  gamma: number;
  /** Of the normalised gains. */
  weight: number;
}

export const IGPO_PRESETS: Record<(typeof IGPO_PRESET_NAMES)[number], IgpoSettings> = {
  /** arXiv:2510.14967, equations 6 and 7; gamma as in the train.sh of the corrected release of its code. */
  paper: { measure: 'prob', scope: null, every: 1, normalize: 'joint', gamma: 1, weight: 1 },
  /** inclusionAI/DR-Venus@6013141, RL/train_igpo.sh. */
  dr_venus: {
    measure: 'log_prob',
    scope: ['visit'],
    every: 1,
    normalize: 'scaled_separate',
    gamma: 0.95,
    weight: 1,
  },
  /** GuoqingWang1/IGPO@bff163b, which its author calls "an early attempt" and not the method (issue 5 there). */
  released_2025: { measure: 'prob', scope: null, every: 1, normalize: 'per_position', gamma: 1, weight: 1 },
};
