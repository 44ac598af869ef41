/** A picture with its words: a title, a sentence for those who cannot see it, and its numbers as a table. */
import { type PlotOptions, plot } from '@observablehq/plot';
import { el, lazily, type Table, table } from './dom.ts';

export interface Figure {
  title: string;
  /** What is shown and how to read it; also the picture's name for a screen reader. */
  description: string;
  options: PlotOptions;
  /** The same numbers, built when asked for. */
  numbers: () => Table;
}

const WIDTH = 760;

/** Colours are CSS variables, so a change of theme needs no new picture. */
export const SERIES = [1, 2, 3, 4, 5, 6, 7, 8].map((position) => `var(--series-${position})`);
export const OUTCOME_COLOURS = {
  right: 'var(--right)',
  wrong: 'var(--wrong)',
  unfinished: 'var(--unfinished)',
  broken: 'var(--broken)',
};
/** Between pieces of a stack. */
export const GAP = { stroke: 'var(--surface)', strokeWidth: 0.75 } as const;

export function figure({ title, description, options, numbers }: Figure): HTMLElement {
  const picture = draw(title, description, options);
  return el(
    'figure',
    { class: 'picture' },
    el('figcaption', {}, el('strong', {}, title), ` ${description}`),
    picture,
    lazily(`Numbers: ${title}`, () => [table(title, numbers())]),
  );
}

/** A small picture of many; its numbers stand elsewhere. */
export function draw(title: string, description: string, options: PlotOptions): HTMLElement {
  const drawn = plot({ width: WIDTH, marginBottom: 40, style: { fontSize: '12px' }, ...options });
  const svg = drawn instanceof SVGElement ? drawn : drawn.querySelector(':scope > svg');
  svg?.setAttribute('role', 'img');
  svg?.setAttribute('aria-label', `${title}. ${description}`);
  return el('div', { class: 'plot' }, drawn);
}
