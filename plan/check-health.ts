/** What a stage watches while it trains, and when it ends. */
import { HEALTH_METRICS } from '../schemas/health-metrics.ts';
import type { Check } from './check.ts';
import type { Path } from './located.ts';
import { didYouMean, quoted } from './problem.ts';

/** Limits on curves that this stage draws. */
export function checkHealth({ experiment, report, reportKey }: Check): void {
  for (const [name, stage] of Object.entries(experiment.curriculum)) {
    if (stage.kind !== 'rl' || stage.health === undefined) continue;
    const { health, algorithm, evaluate } = stage;
    const at = (...rest: Path): Path => ['curriculum', name, 'health', ...rest];
    for (const [metric, { min, max }] of Object.entries(health.limits)) {
      if (!(HEALTH_METRICS as readonly string[]).includes(metric))
        reportKey(
          'REF',
          at('limits', metric),
          `there is no metric ${quoted(metric)} to set limits on`,
          didYouMean(metric, [...HEALTH_METRICS]) ?? `there are ${HEALTH_METRICS.join(', ')}`,
        );
      if (metric.startsWith('igpo/') && algorithm.name !== 'igpo')
        reportKey('REF', at('limits', metric), `${quoted(metric)} is of igpo, and the algorithm is ${algorithm.name}`);
      if (metric === 'train/kl_reference' && !algorithm.kl)
        reportKey('REF', at('limits', metric), `${quoted(metric)} is measured where \`algorithm.kl\` is set`);
      if (min !== undefined && max !== undefined && min > max)
        report('RANGE', at('limits', metric, 'min'), `nothing is healthy: min ${min} is more than max ${max}`);
    }
    if (health.on_breach === 'back_to_best' && evaluate === undefined)
      report('REQUIRED', at('on_breach'), `\`curriculum.${name}.evaluate\` is missing: what is best`);
  }
}

/** The step after a checkpoint that is measured is on-policy, and so is a stage that measures each of them. */
export function checkStaleness({ experiment, warn }: Check): void {
  for (const [name, stage] of Object.entries(experiment.curriculum)) {
    if (stage.kind !== 'rl' || stage.rollout.max_staleness === 0) continue;
    const measures = Object.entries({
      'evaluate.every': stage.evaluate?.every,
      'difficulty.refresh_every': stage.difficulty?.refresh_every,
    });
    for (const [field] of measures.filter(([, every]) => every === 1))
      warn(
        'NO_EFFECT',
        ['curriculum', name, 'rollout', 'max_staleness'],
        `no step is sampled ahead: with \`${field}: 1\` each checkpoint is measured before the next step`,
      );
  }
}

/** A plateau may never come, and a schedule must know its end. */
export function checkEnding({ experiment, report }: Check): void {
  for (const [name, stage] of Object.entries(experiment.curriculum)) {
    if (stage.kind !== 'rl') continue;
    const { until, optimizer } = stage;
    const isOpen = until.steps === undefined && until.epochs === undefined;
    if (isOpen && (optimizer.schedule !== 'constant' || optimizer.warmup > 0))
      report(
        'REQUIRED',
        ['curriculum', name, 'until'],
        `\`curriculum.${name}.until.steps\` or \`epochs\` is missing: the course of the learning rate is over a known number of steps`,
      );
  }
}
