/** The trajectory reader: filters over the index at once, a page of the list at a time, one trajectory when opened. */
import { OUTCOMES, type RunReport, type TrajectoryIndex } from '../document.ts';
import { Chunks } from './chunks.ts';
import { el, section } from './dom.ts';
import { count, number, words } from './format.ts';
import { trajectoryView } from './trajectory-view.ts';

const PAGE = 25;
const HASH = '#trajectory=';

interface Filter {
  source: number | null;
  outcome: number | null;
  termination: number | null;
  failure: number | null;
  capability: string | null;
  /** Lower case; matches the id of a trajectory, and id and question of its task. */
  text: string;
  sort: keyof typeof SORTS;
}

const SORTS = {
  'in order': () => 0,
  'most turns': (columns: Columns, a: number, b: number) => (columns.turns[b] as number) - (columns.turns[a] as number),
  'most tokens': (columns: Columns, a: number, b: number) =>
    (columns.tokens[b] as number) - (columns.tokens[a] as number),
  'lowest reward': (columns: Columns, a: number, b: number) =>
    (columns.reward[a] as number) - (columns.reward[b] as number),
  'highest reward': (columns: Columns, a: number, b: number) =>
    (columns.reward[b] as number) - (columns.reward[a] as number),
} as const;
type Columns = TrajectoryIndex['columns'];

/** Positions of the trajectories that pass. */
export function select(index: TrajectoryIndex, filter: Filter): number[] {
  const { columns, tasks } = index;
  const taskPasses = tasks.map(({ id, question, capability }) => ({
    capability: filter.capability === null || capability === filter.capability,
    text: filter.text === '' || id.toLowerCase().includes(filter.text) || question.toLowerCase().includes(filter.text),
  }));
  const isAs = (wanted: number | null, column: readonly number[], at: number): boolean =>
    wanted === null || column[at] === wanted;
  const found: number[] = [];
  for (let at = 0; at < columns.id.length; at += 1) {
    const task = taskPasses[columns.task[at] as number];
    if (
      task?.capability &&
      (task.text || (columns.id[at] as string).toLowerCase().includes(filter.text)) &&
      isAs(filter.source, columns.source, at) &&
      isAs(filter.outcome, columns.outcome, at) &&
      isAs(filter.termination, columns.termination, at) &&
      isAs(filter.failure, columns.failure, at)
    )
      found.push(at);
  }
  return filter.sort === 'in order' ? found : found.sort((a, b) => SORTS[filter.sort](columns, a, b) || a - b);
}

export function reader(report: RunReport): HTMLElement {
  const { total, embedded } = report.trajectories;
  if (embedded === 0)
    return section(
      'trajectories',
      'Trajectories',
      el('p', {}, total === 0 ? 'There are none.' : 'None are in this file.'),
    );
  return new Reader(report.trajectories).element;
}

class Reader {
  readonly element: HTMLElement;
  readonly #index: TrajectoryIndex;
  readonly #chunks: Chunks;
  readonly #form: HTMLFormElement;
  readonly #status = el('p', { role: 'status' });
  readonly #rows = el('tbody', {});
  readonly #pages = el('nav', { class: 'pages', 'aria-label': 'Pages of the list' });
  readonly #opened = el('article', { class: 'trajectory', 'aria-label': 'Trajectory', hidden: true });
  #found: number[] = [];
  #page = 0;
  /** Place in `#found` of what is open. */
  #place = -1;

  constructor(index: TrajectoryIndex) {
    this.#index = index;
    this.#chunks = new Chunks(index.chunk_size);
    this.#form = this.#filters();
    this.element = section(
      'trajectories',
      'Trajectories',
      this.#form,
      this.#status,
      this.#list(),
      this.#pages,
      this.#opened,
    );
    this.#select();
    window.addEventListener('hashchange', () => this.#openFromHash());
    this.#openFromHash();
  }

  #filters(): HTMLFormElement {
    const { sources, terminations, failures, tasks } = this.#index;
    const capabilities = [...new Set(tasks.map(({ capability }) => capability))].sort();
    const byPosition = (names: readonly string[]): [string, string][] =>
      names.map((name, position) => [String(position), words(name)]);
    const form = el(
      'form',
      { class: 'filters', role: 'search', 'aria-label': 'Filter trajectories' },
      el('label', {}, 'Task or question', el('input', { name: 'text', type: 'search' })),
      choice(
        'Stage',
        'source',
        'all',
        sources.map((name, position) => [String(position), name]),
      ),
      choice('Outcome', 'outcome', 'all', byPosition(OUTCOMES)),
      choice('Ended by', 'termination', 'all', byPosition(terminations)),
      choice('Failure', 'failure', 'all', [['-1', 'none'], ...byPosition(failures)]),
      choice(
        'Capability',
        'capability',
        'all',
        capabilities.map((name) => [name, words(name)]),
      ),
      choice(
        'Sort',
        'sort',
        null,
        Object.keys(SORTS).map((name) => [name, name]),
      ),
    );
    form.addEventListener('input', () => this.#select());
    form.addEventListener('submit', (event) => event.preventDefault());
    return form;
  }

  #filter(): Filter {
    const values = new FormData(this.#form);
    const value = (name: string): string => String(values.get(name) ?? '');
    const position = (name: string): number | null => (value(name) === '' ? null : Number(value(name)));
    return {
      source: position('source'),
      outcome: position('outcome'),
      termination: position('termination'),
      failure: position('failure'),
      capability: value('capability') === '' ? null : value('capability'),
      text: value('text').trim().toLowerCase(),
      sort: value('sort') as keyof typeof SORTS,
    };
  }

  #select(): void {
    const open = this.#found[this.#place];
    this.#found = select(this.#index, this.#filter());
    this.#place = open === undefined ? -1 : this.#found.indexOf(open);
    this.#page = 0;
    const { embedded, total } = this.#index;
    const whole = embedded === total ? '' : ` (a seeded sample of ${count(total)})`;
    this.#status.textContent = `${count(this.#found.length)} of ${count(embedded)} trajectories${whole}`;
    this.#show();
  }

  #list(): HTMLElement {
    const head = ['trajectory', 'question', 'outcome', 'ended by', 'step', 'turns', 'tokens', 'reward'];
    const cells = head.map((title, column) => el('th', { scope: 'col', class: column > 3 ? 'number' : null }, title));
    return el(
      'div',
      { class: 'scroll list', role: 'region', 'aria-label': 'List of trajectories', tabindex: 0 },
      el(
        'table',
        {},
        el('caption', {}, 'Trajectories that pass the filters; the name of one opens it below'),
        el('thead', {}, el('tr', {}, ...cells)),
        this.#rows,
      ),
    );
  }

  #show(): void {
    const from = this.#page * PAGE;
    this.#rows.replaceChildren(
      ...this.#found.slice(from, from + PAGE).map((position, at) => this.#row(position, from + at)),
    );
    const pages = Math.max(1, Math.ceil(this.#found.length / PAGE));
    this.#pages.replaceChildren(
      this.#button('Previous page', this.#page > 0, () => this.#turn(-1)),
      el('span', {}, `page ${this.#page + 1} of ${pages}`),
      this.#button('Next page', this.#page + 1 < pages, () => this.#turn(1)),
    );
  }

  #turn(by: number): void {
    this.#page += by;
    this.#show();
    const [previous, next] = this.#pages.querySelectorAll('button');
    const wanted = by < 0 ? previous : next;
    (wanted?.disabled ? (by < 0 ? next : previous) : wanted)?.focus();
  }

  #row(position: number, place: number): HTMLElement {
    const { columns, tasks, sources, terminations, failures } = this.#index;
    const name = this.#button(columns.id[position] as string, true, () => this.#open(place));
    name.title = sources[columns.source[position] as number] ?? '';
    const outcome = OUTCOMES[columns.outcome[position] as number] ?? 'broken';
    const failure = failures[columns.failure[position] as number];
    const ended = words(terminations[columns.termination[position] as number] ?? '');
    const step = columns.step[position] as number;
    return el(
      'tr',
      { 'aria-current': place === this.#place ? 'true' : null },
      el('th', { scope: 'row' }, name),
      el('td', {}, tasks[columns.task[position] as number]?.question ?? ''),
      el('td', { class: `outcome outcome-${outcome}` }, outcome),
      el('td', {}, failure === undefined ? ended : `${ended}: ${failure}`),
      el('td', { class: 'number' }, step === 0 ? '' : step),
      el('td', { class: 'number' }, columns.turns[position]),
      el('td', { class: 'number' }, count(columns.tokens[position] as number)),
      el('td', { class: 'number' }, number(columns.reward[position] as number)),
    );
  }

  #button(label: string, enabled: boolean, act: () => void): HTMLButtonElement {
    const button = el('button', { type: 'button', disabled: !enabled }, label);
    button.addEventListener('click', act);
    return button;
  }

  #openFromHash(): void {
    if (!location.hash.startsWith(HASH)) return;
    const id = decodeURIComponent(location.hash.slice(HASH.length));
    const position = this.#index.columns.id.indexOf(id);
    if (position < 0 || this.#found[this.#place] === position) return;
    if (!this.#found.includes(position)) {
      this.#form.reset();
      this.#select();
    }
    this.#open(this.#found.indexOf(position));
  }

  #open(place: number): void {
    this.#place = place;
    this.#page = Math.floor(place / PAGE);
    this.#show();
    const position = this.#found[place] as number;
    const id = this.#index.columns.id[position] as string;
    history.replaceState(null, '', `${HASH}${encodeURIComponent(id)}`);
    const title = el('h3', { tabindex: -1 }, id);
    const source = this.#index.sources[this.#index.columns.source[position] as number] ?? '';
    const body = el('div', {}, el('p', {}, 'Reading …'));
    this.#opened.hidden = false;
    this.#opened.replaceChildren(title, el('p', {}, source), this.#neighbours(place), body);
    title.focus();
    this.#chunks.trajectory(position).then(
      (trajectory) => body.replaceChildren(...trajectoryView(trajectory)),
      (error: unknown) => body.replaceChildren(el('p', { role: 'alert' }, String(error))),
    );
  }

  #neighbours(place: number): HTMLElement {
    return el(
      'nav',
      { class: 'pages', 'aria-label': 'Trajectories beside this one' },
      this.#button('Previous trajectory', place > 0, () => this.#open(place - 1)),
      el('span', {}, `${count(place + 1)} of ${count(this.#found.length)}`),
      this.#button('Next trajectory', place + 1 < this.#found.length, () => this.#open(place + 1)),
    );
  }
}

/** A labelled list to choose from; the first entry chooses nothing, where there is one. */
function choice(
  label: string,
  name: string,
  none: string | null,
  options: readonly (readonly [string, string])[],
): HTMLElement {
  return el(
    'label',
    {},
    label,
    el(
      'select',
      { name },
      none === null ? null : el('option', { value: '' }, none),
      ...options.map(([value, shown]) => el('option', { value }, shown)),
    ),
  );
}
