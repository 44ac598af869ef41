/** Elements made from text alone: what a corpus or a model wrote can never become markup. */

export type Child = Node | string | number | null | undefined | false;
type Attributes = Record<string, string | number | boolean | null | undefined>;

/** Attributes are set by name; `true` is an attribute without a value, `false` and null leave it out. */
export function el<Tag extends keyof HTMLElementTagNameMap>(
  tag: Tag,
  attributes: Attributes = {},
  ...children: Child[]
): HTMLElementTagNameMap[Tag] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    element.setAttribute(name, value === true ? '' : String(value));
  }
  append(element, children);
  return element;
}

export function append(parent: Element, children: readonly Child[]): void {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    parent.append(child instanceof Node ? child : String(child));
  }
}

/** An address becomes a link only where it is one of the web; anything else stays text. */
export function link(url: string): HTMLElement {
  if (!/^https?:\/\//.test(url)) return el('span', {}, url);
  return el('a', { href: url, rel: 'noopener noreferrer', target: '_blank' }, url);
}

export interface Table {
  head: readonly string[];
  rows: readonly (readonly Child[])[];
  /** Columns, by position, that hold numbers. */
  numbers?: readonly number[];
}

/** The first cell of each row names the row. The table scrolls within itself where the window is narrow. */
export function table(caption: string, { head, rows, numbers = [] }: Table): HTMLElement {
  const align = (column: number): Attributes => (numbers.includes(column) ? { class: 'number' } : {});
  const headCells = head.map((title, column) => el('th', { scope: 'col', ...align(column) }, title));
  const bodyRows = rows.map((cells) =>
    el(
      'tr',
      {},
      ...cells.map((cell, column) =>
        column === 0 ? el('th', { scope: 'row' }, cell) : el('td', align(column), cell ?? ''),
      ),
    ),
  );
  return el(
    'div',
    { class: 'scroll', role: 'region', 'aria-label': caption, tabindex: 0 },
    el(
      'table',
      {},
      el('caption', {}, caption),
      el('thead', {}, el('tr', {}, ...headCells)),
      el('tbody', {}, ...bodyRows),
    ),
  );
}

/** Content that is built when it is first looked at. */
export function lazily(summary: string, build: () => Child[]): HTMLDetailsElement {
  const details = el('details', {}, el('summary', {}, summary));
  details.addEventListener('toggle', () => details.open && append(details, build()), { once: true });
  return details;
}

export function section(id: string, title: string, ...children: Child[]): HTMLElement {
  return el('section', { id, 'aria-labelledby': `${id}-title` }, el('h2', { id: `${id}-title` }, title), ...children);
}
