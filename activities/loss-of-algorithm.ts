import type { LossAggregation } from '../schemas/algorithms.ts';
import type { AlgorithmParameters } from '../schemas/node-parameters.ts';

/** A policy-gradient loss as the trainer is told it. It has defaults for what is optional here. */
export interface PolicyGradientLoss {
  kind: 'policy_gradient';
  /** Of what the ratio to the old policy is: each token, or the geometric mean over a sequence's tokens (GSPO). */
  ratio?: 'token' | 'sequence';
  /** `surrogate` bounds the objective as PPO does; `weight` a detached weight of the log-probability (CISPO). */
  clip: { low: number; high: number; dual?: number; on?: 'surrogate' | 'weight' };
  aggregation: LossAggregation;
  kl?: { coefficient: number; estimator: 'k1' | 'k2' | 'k3' };
  entropy?: number;
  importance?: { level: 'token' | 'sequence'; truncate: number; veto?: number };
}

/** What an algorithm is to the trainer, which never hears its name; what is left out there is not on the wire. */
export function lossOfAlgorithm(algorithm: AlgorithmParameters): PolicyGradientLoss {
  const { name, clip, loss, kl, entropy, importance } = algorithm;
  return {
    kind: 'policy_gradient',
    ...(name === 'gspo' && { ratio: 'sequence' }),
    clip: {
      low: clip.low,
      high: clip.high,
      ...(clip.dual !== null && { dual: clip.dual }),
      ...(name === 'cispo' && { on: 'weight' }),
    },
    aggregation: loss,
    ...(kl !== null && { kl: { coefficient: kl.coefficient, estimator: kl.estimator } }),
    ...(entropy > 0 && { entropy }),
    ...(importance !== null && {
      importance: {
        level: importance.level,
        truncate: importance.truncate,
        ...(importance.veto !== null && { veto: importance.veto }),
      },
    }),
  };
}
