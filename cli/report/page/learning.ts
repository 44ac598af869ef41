/** Curves of each stage, arms on top of each other, and the pass rates that difficulty filtering saw. */
import { barY, dot, lineY, type PlotOptions, ruleY } from '@observablehq/plot';
import type { PassRates, RunReport, StageCurves } from '../document.ts';
import { el, lazily, section, type Table, table } from './dom.ts';
import { draw, figure, SERIES } from './figure.ts';
import { FIRST_CURVES } from './first-curves.ts';
import { number, words } from './format.ts';

const DASHES = ['none', '6 3', '2 3', '8 3 2 3'];

export function learning({ curves, profiles }: RunReport): HTMLElement {
  const stages = [...new Set(curves.map(({ node }) => stageOf(node)))];
  return section(
    'learning',
    'Learning',
    ...stages.map((stage) =>
      stageCurves(
        stage,
        curves.filter(({ node }) => stageOf(node) === stage),
      ),
    ),
    ...profiles.map(passRates),
  );
}

/** Arms that have different nodes of one stage are drawn together. */
const stageOf = (node: string): string => node.slice(node.lastIndexOf('/') + 1);

function stageCurves(stage: string, curves: readonly StageCurves[]): HTMLElement {
  const names = [...new Set(curves.flatMap(({ metrics }) => Object.keys(metrics)))];
  const first: readonly string[] = FIRST_CURVES;
  const rank = (name: string): number => (first.includes(name) ? first.indexOf(name) : first.length);
  const ordered = names.sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1));
  const shown = ordered.filter((name) => first.includes(name));
  const others = ordered.filter((name) => !first.includes(name));
  const grid = (metrics: readonly string[]): HTMLElement =>
    el('div', { class: 'grid' }, ...metrics.map((metric) => curve(metric, curves)));
  return el(
    'div',
    {},
    el('h3', {}, `${stage} (${curves[0]?.kind ?? ''})`),
    curves.length > 1 ? legend(curves) : null,
    grid(shown.length > 0 ? shown : ordered),
    shown.length > 0 && others.length > 0 ? lazily(`More curves: ${others.length}`, () => [grid(others)]) : null,
    lazily(`Numbers: ${stage}`, () => [table(`Curves of ${stage}`, curveNumbers(curves, ordered))]),
  );
}

function legend(curves: readonly StageCurves[]): HTMLElement {
  const item = ({ node }: StageCurves, position: number): HTMLElement => {
    const colour = SERIES[position % SERIES.length] as string;
    const style = position % DASHES.length === 0 ? 'solid' : position % 2 === 1 ? 'dashed' : 'dotted';
    return el('li', {}, el('span', { style: `border-top: 3px ${style} ${colour}` }), ` ${node}`);
  };
  return el('ul', { class: 'legend', 'aria-label': 'Arms' }, ...curves.map(item));
}

function curve(metric: string, curves: readonly StageCurves[]): HTMLElement {
  const having = curves.filter(({ metrics }) => (metrics[metric]?.length ?? 0) > 0);
  const last = having.map(({ node, metrics }) => `${node} ends at ${number(metrics[metric]?.at(-1)?.[1] ?? 0)}`);
  const options: PlotOptions = {
    width: 360,
    height: 190,
    marginLeft: 55,
    x: { label: 'step', ticks: 5, tickFormat: (step: number) => (Number.isInteger(step) ? String(step) : '') },
    y: { label: null, grid: true, ticks: 4 },
    marks: having.flatMap(({ node, metrics }) => {
      const position = curves.findIndex((one) => one.node === node);
      const points = (metrics[metric] ?? []).map(([step, value]) => ({
        step,
        value,
        at: `${node}, step ${step}: ${number(value)}`,
      }));
      const stroke = SERIES[position % SERIES.length] as string;
      const strokeDasharray = DASHES[position % DASHES.length] as string;
      return [
        lineY(points, { x: 'step', y: 'value', stroke, strokeDasharray }),
        ...(points.length <= 60 ? [dot(points, { x: 'step', y: 'value', fill: stroke, r: 2.5, title: 'at' })] : []),
      ];
    }),
  };
  return el('div', {}, el('h4', {}, metric), draw(metric, `By step; ${last.join(', ')}.`, options));
}

function curveNumbers(curves: readonly StageCurves[], metrics: readonly string[]): Table {
  const rows = curves.flatMap(({ node, metrics: byName }) =>
    metrics.flatMap((metric) =>
      (byName[metric] ?? []).map(([step, value]) => [node, metric, step, number(value)] as const),
    ),
  );
  return { head: ['node', 'metric', 'step', 'value'], rows, numbers: [2, 3] };
}

function passRates({ node, body, rollouts, before, after }: PassRates): HTMLElement {
  const title = `Pass rates of ${node}`;
  const bars = [
    ...before.map((tasks, passes) => ({ passes, tasks, when: 'before filtering' })),
    ...after.map((tasks, passes) => ({ passes, tasks, when: 'after filtering' })),
  ];
  const description = `Tasks by how many of ${rollouts} rollouts were right, before and after filtering: ${body.never} never, ${body.sometimes} sometimes, ${body.always} always; ${body.kept} of ${body.tasks} kept.${
    body.saved > 0 ? ` Tasks that were decided early have fewer: ${body.saved} rollouts were not sampled.` : ''
  }`;
  return figure({
    title,
    description,
    options: {
      height: 240,
      fx: { label: `passes of ${rollouts}` },
      x: { axis: null, domain: ['before filtering', 'after filtering'] },
      y: { label: 'tasks', grid: true },
      color: {
        domain: ['before filtering', 'after filtering'],
        range: ['var(--series-8)', 'var(--series-1)'],
        legend: true,
      },
      marks: [
        barY(bars, {
          fx: 'passes',
          x: 'when',
          y: 'tasks',
          fill: 'when',
          title: ({ passes, tasks, when }: (typeof bars)[number]) =>
            `${words(when)}: ${tasks} tasks with ${passes} passes`,
        }),
        ruleY([0]),
      ],
    },
    numbers: () => ({
      head: ['passes', 'tasks before', 'tasks after'],
      rows: before.map((tasks, passes) => [`${passes} of ${rollouts}`, tasks, after[passes] ?? 0]),
      numbers: [1, 2],
    }),
  });
}
