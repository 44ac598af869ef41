/** The page: everything it shows is in the file, as data; nothing is asked of any network. */
import type { RunReport } from '../document.ts';
import { data } from './data.ts';
import { el } from './dom.ts';
import { words } from './format.ts';
import { learning } from './learning.ts';
import { reader } from './reader.ts';
import { results } from './results.ts';
import { sampling } from './sampling.ts';
import { themeButton } from './theme.ts';
import { timeline } from './timeline.ts';
import { whatWasRun } from './what-was-run.ts';

function show(report: RunReport): void {
  const sections = [
    whatWasRun(report),
    results(report),
    learning(report),
    data(report),
    sampling(report),
    timeline(report),
    reader(report),
  ].filter((one) => one !== null);
  const links = sections.map((one) =>
    el('li', {}, el('a', { href: `#${one.id}` }, one.querySelector('h2')?.textContent ?? one.id)),
  );
  document.body.replaceChildren(
    el('a', { class: 'skip', href: '#content' }, 'Skip to the content'),
    el(
      'header',
      {},
      el('h1', {}, `${report.run.name}: ${words(report.run.status)}`),
      themeButton(),
      el('nav', { 'aria-label': 'Sections' }, el('ul', {}, ...links)),
    ),
    el('main', { id: 'content' }, ...sections),
  );
}

show(JSON.parse(document.getElementById('report')?.textContent ?? '') as RunReport);
