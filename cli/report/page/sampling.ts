/** How trajectories used their context and their tools, the right ones beside the others. */
import { barX, rectY, ruleX, ruleY, stackX, stackY } from '@observablehq/plot';
import { OUTCOMES, type Outcome, type RunReport, type Usage } from '../document.ts';
import { section } from './dom.ts';
import { figure, GAP, OUTCOME_COLOURS, SERIES } from './figure.ts';
import { count, percent, words } from './format.ts';

export function sampling({ usage }: RunReport): HTMLElement | null {
  if (usage.length === 0) return null;
  return section('sampling', 'Context and tools', contextUse(usage), toolUse(usage));
}

function contextUse(usage: readonly Usage[]): HTMLElement {
  const bars = usage
    .flatMap(({ node, context }) =>
      OUTCOMES.flatMap((outcome) =>
        context[outcome].map((trajectories, bin) => ({
          node,
          outcome,
          trajectories,
          from: bin / context[outcome].length,
          to: (bin + 1) / context[outcome].length,
        })),
      ),
    )
    .filter(({ trajectories }) => trajectories > 0);
  return figure({
    title: 'Use of the context length',
    description: 'Trajectories by the share of the context length that they filled, for each node that sampled.',
    options: {
      height: 50 + 95 * usage.length,
      marginLeft: 50,
      marginRight: 170,
      x: {
        label: 'share of the context length, per cent',
        domain: [0, 1],
        tickFormat: (share: number) => String(100 * share),
      },
      y: { label: 'trajectories', ticks: 3, grid: true },
      fy: { label: null, domain: usage.map(({ node }) => node) },
      color: { domain: [...OUTCOMES], range: OUTCOMES.map((outcome) => OUTCOME_COLOURS[outcome]), legend: true },
      marks: [
        rectY(
          bars,
          stackY({
            fy: 'node',
            x1: 'from',
            x2: 'to',
            y: 'trajectories',
            fill: 'outcome',
            order: [...OUTCOMES],
            title: ({ outcome, trajectories, from, to }: (typeof bars)[number]) =>
              `${trajectories} ${outcome}, ${percent(from)} to ${percent(to)} per cent of the context`,
            ...GAP,
          }),
        ),
        ruleY([0]),
      ],
    },
    numbers: () => ({
      head: ['node', 'context length', 'outcome', 'from, per cent', 'to', 'trajectories'],
      rows: bars.map(({ node, outcome, from, to, trajectories }) => [
        node,
        count(usage.find((one) => one.node === node)?.context_length ?? 0),
        outcome,
        percent(from),
        percent(to),
        trajectories,
      ]),
      numbers: [1, 3, 4, 5],
    }),
  });
}

const CORRECT: readonly Outcome[] = ['right'];
const INCORRECT: readonly Outcome[] = ['wrong', 'unfinished'];

function toolUse(usage: readonly Usage[]): HTMLElement {
  const tools = [
    ...new Set(usage.flatMap(({ actions }) => OUTCOMES.flatMap((outcome) => Object.keys(actions[outcome])))),
  ];
  const shares = usage.flatMap((one) => [
    ...sharesOf(one, 'right', CORRECT, tools),
    ...sharesOf(one, 'wrong or unfinished', INCORRECT, tools),
  ]);
  return figure({
    title: 'Use of the tools',
    description: 'Shares of all actions: which tool they called, in right trajectories and in the others.',
    options: {
      height: 50 + 62 * usage.length,
      marginLeft: 150,
      marginRight: 170,
      x: {
        label: 'share of the actions, per cent',
        domain: [0, 1],
        tickFormat: (share: number) => String(100 * share),
      },
      y: { label: null, domain: ['right', 'wrong or unfinished'] },
      fy: { label: null, domain: usage.map(({ node }) => node) },
      color: {
        domain: tools,
        range: tools.map((_, position) => SERIES[position % SERIES.length] as string),
        legend: true,
      },
      marks: [
        barX(
          shares,
          stackX({
            fy: 'node',
            y: 'group',
            x: 'share',
            fill: 'tool',
            order: tools,
            title: ({ tool, actions, share }: (typeof shares)[number]) =>
              `${words(tool)}: ${actions} actions, ${percent(share)} per cent`,
            ...GAP,
          }),
        ),
        ruleX([0]),
      ],
    },
    numbers: () => ({
      head: ['node', 'trajectories', 'action', 'actions', 'share, per cent'],
      rows: shares.map(({ node, group, tool, actions, share }) => [node, group, words(tool), actions, percent(share)]),
      numbers: [3, 4],
    }),
  });
}

function sharesOf({ node, actions }: Usage, group: string, outcomes: readonly Outcome[], tools: readonly string[]) {
  const called = (tool: string): number => outcomes.reduce((sum, outcome) => sum + (actions[outcome][tool] ?? 0), 0);
  const all = tools.reduce((sum, tool) => sum + called(tool), 0);
  return tools
    .map((tool) => ({ node, group, tool, actions: called(tool), share: called(tool) / Math.max(1, all) }))
    .filter((one) => one.actions > 0);
}
