/** Gates between stages: whether what they ask about will be measured. */
import type { Stage } from '../schemas/experiment.ts';
import type { Check } from './check.ts';
import { metricNames, metricOf } from './gates.ts';
import type { Path } from './located.ts';
import { didYouMean, quoted } from './problem.ts';
import { allProtocols, measuredAfter, trains } from './stages.ts';

type Gate = NonNullable<Stage['gate']>;

export function checkGates(check: Check): void {
  const { experiment, report } = check;
  for (const [name, stage] of Object.entries(experiment.curriculum)) {
    if (stage.gate === undefined) continue;
    const path = ['curriculum', name, 'gate'];
    if (!trains(stage)) report('REF', path, `the stage ${quoted(name)} makes no weights, so no stage starts from it`);
    checkBounds(stage.gate, path, report);
    if (stage.gate.metric !== undefined && trains(stage))
      checkMetric(check, name, stage.gate.metric, [...path, 'metric']);
  }
}

function checkBounds({ metric, at_least, at_most, approve }: Gate, path: Path, report: Check['report']): void {
  const isBounded = at_least !== undefined || at_most !== undefined;
  if (metric === undefined && isBounded) report('REQUIRED', path, 'a bound without `metric` bounds nothing');
  else if (metric === undefined && !approve) report('REQUIRED', path, 'a gate has a `metric`, or `approve: true`');
  else if (metric !== undefined && !isBounded)
    report('REQUIRED', path, 'a gate on a metric has `at_least` or `at_most`');
  if (at_least !== undefined && at_most !== undefined && at_least > at_most)
    report('RANGE', [...path, 'at_least'], `nothing is at least ${at_least} and at most ${at_most}`);
}

function checkMetric({ experiment, report }: Check, stage: string, metric: string, path: Path): void {
  const benchmarks = allProtocols(experiment);
  const measured = benchmarks.filter(([, benchmark]) => measuredAfter(experiment, benchmark).includes(stage));
  const known = measured.flatMap(([name, benchmark]) => metricNames(name, benchmark));
  if (known.includes(metric)) return;
  const hint =
    didYouMean(metric, known) ?? (known.length > 0 ? `there is ${known.slice(0, 4).join(', ')} …` : undefined);
  const { benchmark } = metricOf(metric) ?? {};
  if (benchmark === undefined) {
    report('REF', path, `${quoted(metric)} is no metric of a benchmark`, hint ?? 'write eval/BENCHMARK/avg_at_2');
  } else if (!benchmarks.some(([name]) => name === benchmark)) {
    const near = didYouMean(
      benchmark,
      benchmarks.map(([name]) => name),
    );
    report('REF', path, `there is no benchmark ${quoted(benchmark)}`, near ?? hint);
  } else if (!measured.some(([name]) => name === benchmark)) {
    const add = `add it to benchmarks.${benchmark}.after`;
    report('REF', path, `the benchmark ${quoted(benchmark)} is not measured after ${quoted(stage)}`, add);
  } else {
    report('REF', path, `the benchmark ${quoted(benchmark)} gives no ${quoted(metric)}`, hint);
  }
}
