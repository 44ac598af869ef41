/** What a spec says of benchmarks, and of what is compared with them: names that must exist, and metrics that will. */
import type { Benchmark, Experiment } from '../schemas/experiment.ts';
import type { Check } from './check.ts';
import type { Path } from './located.ts';
import { didYouMean, quoted } from './problem.ts';
import { allProtocols, datasetOf, measuredAfter, resultNames, trains } from './stages.ts';

const benchmarksOf = ({ benchmarks }: Experiment): [string, Benchmark][] => Object.entries(benchmarks);

export function checkBenchmarkNames({ experiment, report }: Check): void {
  for (const [name] of benchmarksOf(experiment)) {
    if (name in experiment.curriculum)
      report(
        'NAME',
        ['benchmarks', name],
        `${quoted(name)} is the name of a stage too; the plan could not tell them apart`,
      );
  }
}

export function checkAfter({ experiment, report }: Check): void {
  for (const [name, benchmark] of benchmarksOf(experiment)) {
    for (const after of measuredAfter(experiment, benchmark)) {
      if (after === 'base' || trains(experiment.curriculum[after])) continue;
      const choices = [
        'base',
        'last',
        ...Object.entries(experiment.curriculum)
          .filter(([, stage]) => trains(stage))
          .map(([stage]) => stage),
      ];
      const why =
        experiment.curriculum[after] === undefined
          ? `there is no stage ${quoted(after)}`
          : `the stage ${quoted(after)} makes no weights`;
      const index = Array.isArray(benchmark.after) ? [benchmark.after.indexOf(after)] : [];
      report(
        'REF',
        ['benchmarks', name, 'after', ...index],
        why,
        didYouMean(after, choices) ?? `there are ${choices.join(', ')}`,
      );
    }
  }
}

/** A dataset is either of the profile or a part of the tasks. */
export function checkDatasets({ experiment, report }: Check): void {
  for (const [name, benchmark] of benchmarksOf(experiment)) {
    const { split, name: dataset } = datasetOf(benchmark);
    if ((split === undefined) === (dataset === undefined))
      report('REQUIRED', ['benchmarks', name, 'dataset'], 'a dataset has either a `split` or a `name`');
  }
}

/** `eval/<benchmark>/avg_at_3` and the like: what a benchmark will measure. */
function metricsOf(experiment: Experiment): string[] {
  return allProtocols(experiment).flatMap(([name, protocol]) =>
    resultNames(protocol).map((result) => `eval/${name}/${result}`),
  );
}

function checkMetric({ experiment, report }: Check, metric: string, path: Path, benchmark?: string): void {
  const metrics = metricsOf(experiment).filter(
    (name) => benchmark === undefined || name.startsWith(`eval/${benchmark}/`),
  );
  if (metrics.includes(metric)) return;
  const hint = didYouMean(metric, metrics);
  const known = metrics.length > 0 && metrics.length <= 12 ? `there are ${metrics.join(', ')}` : undefined;
  const who = benchmark === undefined ? 'no benchmark measures' : `${quoted(benchmark)} does not measure`;
  report('REF', path, `${who} ${quoted(metric)}`, hint ?? known);
}

/** What a stage measures of itself, and what it waits for. */
export function checkEvaluation(check: Check): void {
  const { experiment, report } = check;
  for (const [name, stage] of Object.entries(experiment.curriculum)) {
    if (stage.kind !== 'rl') continue;
    const at = (...rest: Path): Path => ['curriculum', name, ...rest];
    const { evaluate, until, checkpoint } = stage;
    const benchmark = evaluate && experiment.benchmarks[evaluate.benchmark];
    if (evaluate && benchmark === undefined)
      report(
        'REF',
        at('evaluate', 'benchmark'),
        `there is no benchmark ${quoted(evaluate.benchmark)}`,
        didYouMean(evaluate.benchmark, Object.keys(experiment.benchmarks)),
      );
    if (benchmark !== undefined && Array.isArray(benchmark.max_turns))
      report('VALUE', at('evaluate', 'benchmark'), 'a stage measures a benchmark with one turn limit, not a list');
    if (until.plateau !== undefined) {
      const { metric } = until.plateau;
      if (evaluate === undefined)
        report(
          'REQUIRED',
          at('until', 'plateau'),
          `\`curriculum.${name}.evaluate\` is missing: what ${quoted(metric)} is measured by`,
        );
      else checkMetric(check, metric, at('until', 'plateau', 'metric'), evaluate.benchmark);
    }
    if (checkpoint.keep.best !== undefined && evaluate === undefined)
      report('REQUIRED', at('checkpoint', 'keep', 'best'), `\`curriculum.${name}.evaluate\` is missing: what is best`);
  }
}

const PROTOCOL_FIELDS = ['world', 'protocol', 'source'];

/** Published numbers stand beside a benchmark of the spec. */
export function checkReferences({ experiment, reportKey }: Check): void {
  const benchmarks = allProtocols(experiment).map(([name]) => name);
  for (const [system, results] of Object.entries(experiment.references ?? {})) {
    for (const name of Object.keys(results)) {
      if (PROTOCOL_FIELDS.includes(name) || benchmarks.includes(name)) continue;
      reportKey(
        'REF',
        ['references', system, name],
        `there is no benchmark ${quoted(name)}`,
        didYouMean(name, [...benchmarks, ...PROTOCOL_FIELDS]),
      );
    }
  }
}

/** Which arms there are is known elsewhere; here, what they are compared by. */
export function checkCompare(check: Check): void {
  const { compare, curriculum } = check.experiment;
  if (compare?.metric !== undefined) checkMetric(check, compare.metric, ['compare', 'metric']);
  const at = compare?.at;
  if (at === undefined || at === 'base' || at === 'last' || trains(curriculum[at])) return;
  check.report(
    'REF',
    ['compare', 'at'],
    `there are no weights of a stage ${quoted(at)}`,
    didYouMean(at, ['base', 'last', ...Object.keys(curriculum)]),
  );
}
