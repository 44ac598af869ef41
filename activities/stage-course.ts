/** What an rl stage does after a step, decided from what is recorded of it alone. Pure. */

import type { HealthParameters, RlParameters } from '../schemas/node-parameters.ts';
import type { StageMove } from './index.ts';

/** A curve: value by step. What was no number is NaN. */
export type Curve = ReadonlyMap<number, number>;

export type StopReason = 'steps' | 'epochs' | 'plateau' | 'too_few_solvable' | 'health';

export interface Standing {
  /** Steps taken. */
  step: number;
  /** The last there may be, and what it comes from. */
  steps: number;
  ends: 'steps' | 'epochs';
  curves: ReadonlyMap<string, Curve>;
  /** Step of a pause for health that was told already. */
  pausedAt: number;
  /** Tasks of the pool that was chosen after this step; null where none was. */
  refreshed: number | null;
}

type Course = Pick<RlParameters, 'evaluate' | 'health' | 'refresh_every' | 'until'> & {
  rollout: Pick<RlParameters['rollout'], 'prompts_per_step' | 'max_staleness'>;
};

const isDue = (every: number | null | undefined, step: number): every is number =>
  every != null && step > 0 && step % every === 0;

/**
 * Whether `step` is sampled while the step before it trains, so with the weights before that one. The spec and the number
 * alone say so: no crash, pause or other host changes which weights sample a step. What is measured of a checkpoint is
 * measured with nothing under way, and the step after it is on-policy.
 */
export function samplesAhead(
  {
    rollout,
    evaluate,
    refresh_every,
  }: Pick<Course, 'evaluate' | 'refresh_every'> & {
    rollout: Pick<Course['rollout'], 'max_staleness'>;
  },
  step: number,
): boolean {
  const before = step - 1;
  return rollout.max_staleness > 0 && before > 0 && !isDue(evaluate?.every, before) && !isDue(refresh_every, before);
}

/** Asked again after each move, so an execution that was interrupted goes on where the last one stood. */
export function nextMove(course: Course, standing: Standing): StageMove {
  const { evaluate, health, until, refresh_every, rollout } = course;
  const { step, steps, ends, curves, pausedAt, refreshed } = standing;
  const measured = evaluate && curves.get(evaluate.metric);
  if (isDue(evaluate?.every, step) && !measured?.has(step)) return { do: 'evaluate' };

  const trouble = health && breach(health, curves, { step, since: pausedAt });
  if (health && trouble) {
    const best = health.on_breach === 'back_to_best' ? bestSteps(measured ?? new Map())[0] : undefined;
    if (best !== undefined) return { do: 'end', step: best, reason: 'health' };
    const why = health.on_breach === 'back_to_best' ? `${trouble}; no checkpoint was evaluated yet` : trouble;
    return { do: 'pause', reason: why };
  }
  if (until.plateau && plateau(curves.get(until.plateau.metric) ?? new Map(), until.plateau, step))
    return { do: 'end', step, reason: 'plateau' };
  if (step >= steps) return { do: 'end', step, reason: ends };
  if (isDue(refresh_every, step)) {
    if (refreshed === null) return { do: 'refresh' };
    if (refreshed < rollout.prompts_per_step) return { do: 'end', step, reason: 'too_few_solvable' };
  }
  return { do: 'train', ...(step + 2 <= steps && samplesAhead(course, step + 2) && { ahead: true }) };
}

/** Whether the newest of the best so far is `patience` steps old. A gain is more than `min_delta` above the best before. */
export function plateau(
  curve: Curve,
  { patience, min_delta }: { patience: number; min_delta: number },
  step: number,
): boolean {
  let best = { step: 0, value: Number.NEGATIVE_INFINITY };
  for (const [at, value] of inOrder(curve)) {
    if (at <= step && value > best.value + min_delta) best = { step: at, value };
  }
  return best.step > 0 && step - best.step >= patience;
}

/** Evaluated steps, the best first; of equals the earlier one. */
export function bestSteps(curve: Curve): number[] {
  return inOrder(curve)
    .filter(([, value]) => Number.isFinite(value))
    .sort(([, a], [, b]) => b - a)
    .map(([step]) => step);
}

/** The first metric that was beyond its limits at each of the last `for` steps after `since`, in words; null when all is well. */
export function breach(
  { limits, for: needed }: Pick<HealthParameters, 'limits' | 'for'>,
  curves: ReadonlyMap<string, Curve>,
  { step, since }: { step: number; since: number },
): string | null {
  if (step - since < needed) return null;
  const window = Array.from({ length: needed }, (_, back) => step - back);
  for (const [metric, bounds] of Object.entries(limits)) {
    const curve = curves.get(metric);
    if (!curve || !window.every((at) => curve.has(at) && isBeyond(curve.get(at) as number, bounds))) continue;
    const value = curve.get(step) as number;
    const side = bounds.max !== null && !(value <= bounds.max) ? `above ${bounds.max}` : `below ${bounds.min}`;
    const shown = Number.isFinite(value) ? `${Number(value.toPrecision(3))}, ${side}` : 'no number';
    return `${metric} is ${shown}, at step ${step}${needed > 1 ? ` and the ${needed - 1} before` : ''}`;
  }
  return null;
}

/** Negated, so that NaN is beyond any bound. */
const isBeyond = (value: number, { min, max }: HealthParameters['limits'][string]): boolean =>
  (min !== null && !(value >= min)) || (max !== null && !(value <= max));

const inOrder = (curve: Curve): [number, number][] => [...curve].sort(([a], [b]) => a - b);

/** Which saved steps stay: the newest, the newest of every `every`, and the best. A step is measured while it is the newest. */
export function keptSteps(
  saved: readonly number[],
  measured: Curve,
  { every, last, best }: { every: number; last: number; best: number },
): Set<number> {
  const newest = saved.toSorted((a, b) => b - a);
  const durable = newest.filter((step) => step % every === 0);
  return new Set([...newest.slice(0, 1), ...durable.slice(0, last), ...bestSteps(measured).slice(0, best)]);
}
