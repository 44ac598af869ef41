/** From the gates of a curriculum to those of a plan: which node measures what, and which nodes wait. */
import type { Experiment } from '../schemas/experiment.ts';
import type { PlanGate, PlanNode } from '../schemas/plan.ts';
import { type Protocol, resultNames } from './stages.ts';

const METRIC = /^eval\/([a-z][a-z0-9_]*)\/(.+)$/;

/** The benchmark that a metric is of; null when its name is of another shape. */
export function metricOf(metric: string): { benchmark: string } | null {
  const benchmark = METRIC.exec(metric)?.[1];
  return benchmark === undefined ? null : { benchmark };
}

/** What a benchmark publishes that a gate may ask about, as `publish-benchmark` names it. */
export function metricNames(name: string, protocol: Pick<Protocol, 'metrics' | 'samples'>): string[] {
  const bounded = resultNames(protocol).flatMap((result) => [result, `${result}_low`, `${result}_high`]);
  return [...bounded, 'f1', 'answer_in_observation', 'unfinished', 'masked'].map((last) => `eval/${name}/${last}`);
}

/** Whose weights are trained or profiled further waits; measuring them does not. */
const WAITING: readonly PlanNode['kind'][] = ['profile', 'sft', 'rl'];

/** To be spread into an arm: a plan without gates looks as it did. */
export function gatesOf({ curriculum }: Experiment, nodes: readonly PlanNode[]): { gates?: PlanGate[] } {
  const gates = Object.entries(curriculum).flatMap(([name, { gate }]): PlanGate[] => {
    if (gate === undefined) return [];
    const { metric, at_least, at_most, on_fail, approve } = gate;
    const measured = metric === undefined ? null : metricOf(metric);
    return [
      {
        name,
        metric:
          metric === undefined || measured === null
            ? null
            : {
                name: metric,
                benchmark: `${measured.benchmark}.${name}`,
                at_least: at_least ?? null,
                at_most: at_most ?? null,
              },
        on_fail,
        approve,
        blocks: nodes.filter(({ kind, inputs }) => WAITING.includes(kind) && inputs.includes(name)).map(({ id }) => id),
      },
    ];
  });
  return gates.length === 0 ? {} : { gates };
}
