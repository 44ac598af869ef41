/** When each node was at work, with what was tried again and what crashed. */
import { barX, dot, ruleX } from '@observablehq/plot';
import type { EventMark, RunReport } from '../document.ts';
import { el, section, table } from './dom.ts';
import { figure, SERIES } from './figure.ts';
import { duration, time } from './format.ts';
import { secondsOf } from './what-was-run.ts';

const MARKS: Record<EventMark, { colour: string; symbol: 'times' | 'triangle' | 'square'; meaning: string }> = {
  crash: { colour: 'var(--broken)', symbol: 'times', meaning: 'a process was gone or silent' },
  retry: { colour: 'var(--series-5)', symbol: 'triangle', meaning: 'tried again after an error' },
  failure: { colour: 'var(--wrong)', symbol: 'square', meaning: 'failed for good' },
};

export function timeline({ run, nodes, events }: RunReport): HTMLElement {
  const minutes = (ms: number): number => (ms - run.created_ms) / 60_000;
  const bars = nodes.flatMap((node) => {
    const seconds = secondsOf(node);
    if (seconds === null || node.started_ms === null || node.ended_ms === null) return [];
    const { name, kind, status, attempts } = node;
    return [{ name, kind, status, attempts, seconds, from: minutes(node.started_ms), to: minutes(node.ended_ms) }];
  });
  const names = bars.map(({ name }) => name);
  const marked = events.map((event) => ({ ...event, row: rowOf(event.where, names), minute: minutes(event.at_ms) }));
  const extra = [...new Set(marked.map(({ row }) => row))].filter((row) => !names.includes(row));
  const kinds = [...new Set(bars.map(({ kind }) => kind))];
  const reused = nodes.filter(({ status }) => status === 'reused');
  const marks = Object.keys(MARKS) as EventMark[];
  return section(
    'timeline',
    'Timeline',
    reused.length === 0
      ? null
      : el('p', {}, `Reused, so not at work here: ${reused.map(({ name }) => name).join(', ')}.`),
    figure({
      title: 'Nodes at work',
      description: `Minutes since the run was submitted. ${marks.map((mark) => `${mark}: ${MARKS[mark].meaning} (${events.filter((event) => event.mark === mark).length})`).join('; ')}.`,
      options: {
        height: 60 + 24 * (names.length + extra.length),
        marginLeft: 190,
        x: { label: 'minutes', grid: true },
        y: { label: null, domain: [...names, ...extra] },
        color: {
          domain: kinds,
          range: kinds.map((_, position) => SERIES[position % SERIES.length] as string),
          legend: true,
        },
        symbol: { domain: marks, range: marks.map((mark) => MARKS[mark].symbol), legend: events.length > 0 },
        marks: [
          barX(bars, {
            y: 'name',
            x1: 'from',
            x2: 'to',
            fill: 'kind',
            insetTop: 4,
            insetBottom: 4,
            title: ({ name, status, attempts, seconds }: (typeof bars)[number]) =>
              `${name}: ${status}, ${duration(seconds)}${attempts > 1 ? `, begun ${attempts} times` : ''}`,
          }),
          // A mark in the colour of its bar would not be seen: it stands on a disc.
          dot(marked, { y: 'row', x: 'minute', r: 9, fill: 'var(--surface)', stroke: 'var(--quiet)' }),
          dot(marked, {
            y: 'row',
            x: 'minute',
            symbol: 'mark',
            r: 5,
            strokeWidth: 2.5,
            stroke: ({ mark }: (typeof marked)[number]) => MARKS[mark].colour,
            fill: 'var(--surface)',
            title: ({ where, mark, text }: (typeof marked)[number]) => `${mark}: ${where}: ${text}`,
          }),
          ruleX([0]),
        ],
      },
      numbers: () => ({
        head: ['node', 'kind', 'status', 'began (UTC)', 'took', 'begun'],
        rows: bars.map(({ name, kind, status, attempts, seconds, from }) => [
          name,
          kind,
          status,
          time(run.created_ms + 60_000 * from),
          duration(seconds),
          attempts,
        ]),
        numbers: [4, 5],
      }),
    }),
    events.length === 0
      ? el('p', {}, 'Nothing was retried and nothing crashed.')
      : table('Retries, crashes and failures', {
          head: ['at (UTC)', 'where', 'what', 'told'],
          rows: events.map(({ at_ms, where, mark, text }) => [time(at_ms), where, mark, text]),
        }),
  );
}

/** Rollouts of a node are told under the node: `stage1 rollouts 2` is in the row `stage1`. */
function rowOf(where: string, names: readonly string[]): string {
  return names.find((name) => where === name || where.startsWith(`${name} rollouts `)) ?? where;
}
