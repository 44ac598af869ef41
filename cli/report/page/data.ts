/** Where the data came from: corpus, tasks with their mix, demonstrations. */
import { barX, ruleX, tickX } from '@observablehq/plot';
import type { RunReport } from '../document.ts';
import { el, section, table } from './dom.ts';
import { figure, SERIES } from './figure.ts';
import { count, percent, words } from './format.ts';

export function data(report: RunReport): HTMLElement {
  return section(
    'data',
    'Corpus and tasks',
    ...report.corpora.map(({ node, body }) =>
      el('p', {}, `${node}: ${count(body.pages)} pages. ${dropped(body.dropped)}`),
    ),
    ...report.tasks.flatMap(({ node, body }) => {
      const splits = Object.entries(body.splits).map(([split, tasks]) => `${count(tasks)} ${split}`);
      return [
        el('p', {}, `${node}: ${count(body.tasks)} tasks: ${splits.join(', ')}. ${dropped(body.dropped)}`),
        taskMix(node, body.mix),
      ];
    }),
    report.demonstrations.length === 0 ? null : demonstrations(report),
  );
}

function dropped(reasons: Readonly<Record<string, number>>): string {
  const told = Object.entries(reasons)
    .filter(([, times]) => times > 0)
    .map(([reason, times]) => `${words(reason)} ${count(times)}`);
  return told.length === 0 ? 'Nothing was dropped.' : `Dropped: ${told.join(', ')}.`;
}

function taskMix(node: string, mix: RunReport['tasks'][number]['body']['mix']): HTMLElement {
  const rows = Object.entries(mix).map(([capability, { asked, realised }]) => ({
    capability: words(capability),
    asked,
    realised,
  }));
  return figure({
    title: `Task mix of ${node}`,
    description: 'Bars: tasks there are. Upright marks: tasks asked for.',
    options: {
      height: 40 + 30 * rows.length,
      marginLeft: 130,
      x: { label: 'tasks', grid: true },
      y: { label: null, domain: rows.map(({ capability }) => capability) },
      marks: [
        barX(rows, { y: 'capability', x: 'realised', fill: SERIES[0] as string, insetTop: 4, insetBottom: 4 }),
        tickX(rows, { y: 'capability', x: 'asked', stroke: 'var(--text)', strokeWidth: 3 }),
        ruleX([0]),
      ],
    },
    numbers: () => ({
      head: ['capability', 'asked', 'realised'],
      rows: rows.map(({ capability, asked, realised }) => [capability, asked, realised]),
      numbers: [1, 2],
    }),
  });
}

function demonstrations(report: RunReport): HTMLElement {
  return table('Demonstrations', {
    head: ['node', 'trajectories', 'after resampling', 'tokens', 'masked, per cent', 'dropped'],
    rows: report.demonstrations.map(({ node, body }) => [
      node,
      count(body.trajectories),
      count(body.instances),
      count(body.tokens),
      percent(body.masked_share),
      dropped(body.dropped),
    ]),
    numbers: [1, 2, 3, 4],
  });
}
