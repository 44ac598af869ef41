import { expect, test } from 'vitest';
import { checkEvidence, type Need, StatedValues } from '../../environments/deep-research/tasks/check-evidence.ts';
import { type Derivation, derivations } from '../../environments/deep-research/tasks/derivations.ts';
import { agrees, type Field, readField, storedField } from '../../environments/deep-research/tasks/fields.ts';
import { type FactCorpus, generateTasks } from '../../environments/deep-research/tasks/generate-tasks.ts';
import { apportion, apportionTable } from '../../environments/deep-research/tasks/quotas.ts';
import {
  fillTemplate,
  namedPages,
  parseQuestion,
  TEMPLATES,
} from '../../environments/deep-research/tasks/templates.ts';
import type { SourcePage } from '../../environments/environment.ts';
import { installedPackages } from '../../environments/world/sources/installed-packages.ts';
import { CAPABILITIES } from '../../schemas/task.ts';
import { repoRoot } from '../../services/home.ts';

const pages: SourcePage[] = [];
for await (const page of installedPackages({ root: repoRoot() })) pages.push(page);
pages.sort((a, b) => (a.url < b.url ? -1 : 1));

const corpusOf = (members: readonly SourcePage[]): FactCorpus => ({
  async *factPages() {
    for (const { url, facts = {} } of members) yield { url, facts };
  },
  async factPagesAt(urls) {
    return members.filter(({ url }) => urls.includes(url)).map(({ url, facts = {} }) => ({ url, facts }));
  },
  async *texts() {
    yield* members;
  },
});

const mix = { direct_retrieval: 0.4, aggregation: 0.2, enumeration: 0.2, cross_verification: 0.1, statistics: 0.1 };
const options = { source: 'made', count: 200, seed: 17, mix, splits: { train: 0.7, held_out: 0.3 } };
const { tasks, report } = await generateTasks(corpusOf(pages), options);

test('200 tasks in exactly the mix and splits asked for', () => {
  const count = (split: string, capability: string) =>
    tasks.filter((task) => task.split === split && task.capability === capability).length;
  expect(CAPABILITIES.map((capability) => count('train', capability))).toEqual([56, 28, 28, 14, 14]);
  expect(CAPABILITIES.map((capability) => count('held_out', capability))).toEqual([24, 12, 12, 6, 6]);
});

test('no package, evidence page or question serves two splits', () => {
  const used = (split: string) =>
    new Set(
      tasks
        .filter((task) => task.split === split)
        .flatMap(({ evidence }) => evidence.map((url) => url.replace(/^pkg:\w+\//, ''))),
    );
  const held = used('held_out');
  expect([...used('train')].filter((name) => held.has(name))).toEqual([]);
  expect(new Set(tasks.map(({ question }) => question)).size).toBe(tasks.length);
  expect(new Set(tasks.map(({ task_id }) => task_id)).size).toBe(tasks.length);
});

test('each capability has at least four templates, one of which appears in held-out alone', () => {
  for (const capability of CAPABILITIES) {
    const templates = TEMPLATES.filter((template) => template.capability === capability);
    expect(templates.length).toBeGreaterThanOrEqual(4);
    const reserved = templates.filter(({ heldOutOnly }) => heldOutOnly).map(({ id }) => id);
    expect(reserved.length).toBe(1);
    const splits = new Set(tasks.filter(({ template }) => template === reserved[0]).map(({ split }) => split));
    expect([...splits]).toEqual(['held_out']);
  }
});

test('no answer is common, so that guessing the most frequent one gets little', () => {
  for (const { most_frequent, realised } of Object.values(report.splits)) {
    for (const [capability, { share }] of Object.entries(most_frequent)) {
      expect(share).toBeLessThanOrEqual(Math.max(0.1, 1 / (realised[capability] as number)));
    }
  }
});

test('every answer follows from the texts of its evidence pages, and with any one page fewer it does not', () => {
  const textOf = new Map(pages.map(({ url, text }) => [url, text]));
  for (const task of tasks) {
    const template = TEMPLATES.find(({ id }) => id === task.template);
    if (!template || !task.lookups) throw new Error(`${task.task_id} has no template`);
    const values = task.lookups.map(({ url, field }) => readField(textOf.get(url) as string, field as Field));
    const names = task.evidence.map((url) => url.replace(/^pkg:\w+\//, ''));
    expect(values).not.toContain(null);
    expect(template.derivation.answer(values as NonNullable<(typeof values)[number]>[], names)?.text).toBe(task.answer);
    if (task.evidence.length < 2 || !template.derivation.worksOnFewer) continue;
    for (const left of values.keys()) {
      const fewer = template.derivation.answer(
        values.toSpliced(left, 1) as NonNullable<(typeof values)[number]>[],
        names.toSpliced(left, 1),
      );
      expect([task.answer, ...task.aliases]).not.toContain(fewer?.text);
    }
  }
});

test('the same seed makes the same tasks whatever the order of the pages, another seed makes others', async () => {
  expect((await generateTasks(corpusOf(pages.toReversed()), options)).tasks).toEqual(tasks);
  const others = (await generateTasks(corpusOf(pages), { ...options, seed: 18 })).tasks;
  expect(others.map(({ question }) => question)).not.toEqual(tasks.map(({ question }) => question));
});

test('a corpus without facts is refused with what to do instead', async () => {
  const plain = pages.slice(0, 5).map(({ url, title, text }) => ({ url, title, text }));
  await expect(generateTasks(corpusOf(plain), options)).rejects.toThrow(/NO_FACTS.*import tasks/);
});

test('a task is dropped when another page states what its own page should be needed for', () => {
  const license = (name: string): Need => ({
    url: `pkg:npm/${name}`,
    name,
    field: 'license',
    value: { text: name === 'a' ? 'MIT' : 'ISC', items: null, count: null },
  });
  const needs = [license('a'), license('b')];
  const own = [
    { url: 'pkg:npm/a', text: '# a\n\nLicense: MIT' },
    { url: 'pkg:npm/b', text: '# b\n\nLicense: ISC' },
  ];
  const verdict = (...more: { url: string; text: string }[]) => {
    const stated = new StatedValues(needs);
    for (const page of [...own, ...more]) stated.read(page);
    return checkEvidence(stated, needs, ['a', 'b'], 'MIT and ISC', derivations.pair);
  };
  expect(verdict()).toBe('ok');
  expect(verdict({ url: 'pkg:npm/c', text: '# c\n\nIt bundles b (license ISC).' })).toBe('derivable_without_a_page');
  expect(verdict({ url: 'pkg:npm/c', text: '# c\n\nLicense: ISC\n\nSee also b.' })).toBe('ok');
  const stated = new StatedValues(needs);
  stated.read(own[0] as (typeof own)[0]);
  expect(checkEvidence(stated, needs, ['a', 'b'], 'MIT and ISC', derivations.pair)).toBe('not_on_page');
});

test('a page that adds nothing to a sum is not evidence', () => {
  const need = (name: string, count: number): Need => ({
    url: name,
    name,
    field: 'dev_dependencies',
    value: { text: String(count), items: null, count },
  });
  const needs = [need('a', 3), need('b', 0)];
  const stated = new StatedValues(needs);
  for (const { url, value } of needs) stated.read({ url, text: `Development dependencies: ${value.text}` });
  expect(checkEvidence(stated, needs, ['a', 'b'], '3', derivations.sum)).toBe('same_answer_without_a_page');
});

test('every question reads back as the template that wrote it', () => {
  for (const template of TEMPLATES) {
    for (const ecosystem of template.ecosystems) {
      const names = ['@scope/first.js', 'second', 'third-3'].slice(0, namedPages(template));
      const question = fillTemplate({ template, ecosystem, names });
      expect(question).not.toMatch(/[{}]/);
      expect(parseQuestion(question)).toEqual({ template, ecosystem, names });
    }
  }
});

test('derivations by hand', () => {
  const number = (count: number) => ({ text: String(count), items: null, count });
  const list = (...items: string[]) => ({ text: items.join(', '), items, count: items.length });
  const word = (text: string) => ({ text, items: null, count: null });
  const answer = (
    name: keyof typeof derivations,
    values: Parameters<(typeof derivations)['sum']['answer']>[0],
    names = ['a', 'b', 'c'],
  ) => (derivations[name] as Derivation).answer(values, names)?.text;
  expect(answer('sum', [number(2), number(3), number(5)])).toBe('10');
  expect(answer('mean', [number(2), number(3), number(7)])).toBe('4');
  expect(answer('mean', [number(2), number(3), number(5)])).toBeUndefined(); // 10 / 3 has no one spelling
  expect(answer('median', [number(9), number(1), number(4)])).toBe('4');
  expect(answer('range', [number(9), number(1), number(4)])).toBe('8');
  expect(answer('largest', [number(9), number(9), number(4)])).toBeUndefined();
  expect(answer('union', [list('x', 'y'), list('y', 'z')])).toBe('x, y, z');
  expect(answer('shared', [list('x', 'y'), list('y', 'z')])).toBe('y');
  expect(answer('shared', [list('x', 'y'), list('x', 'y')])).toBeUndefined();
  expect(answer('newer', [word('>=18'), word('>= 18.12.0')])).toBe('>= 18.12.0');
  expect(answer('newer', [word('>=3.9'), word('>=3.10')])).toBe('>=3.10');
  expect(answer('newer', [word('^18 || >=20'), word('>=16')])).toBeUndefined();
  expect(answer('without_items', [list(), list('x'), list()])).toBe('a, c');
  expect(answer('second', [list('x'), word('MIT')])).toBe('MIT');
  expect(answer('second', [list('x', 'y'), word('MIT')])).toBeUndefined();
  expect(derivations.distinct.answer([word('MIT'), word('ISC'), word('0BSD')])?.aliases).toHaveLength(5);
});

test('quotas sum to their total and keep to the shares, in rows and in columns', () => {
  expect(apportion(10, { a: 1, b: 1, c: 1 })).toEqual({ a: 4, b: 3, c: 3 });
  const table = apportionTable(60, { train: 0.7, held_out: 0.3 }, mix);
  const column = (name: string) => Object.values(table).reduce((sum, row) => sum + (row[name] as number), 0);
  expect(Object.keys(mix).map(column)).toEqual([24, 12, 12, 6, 6]);
  expect(Object.values(table['train'] as object).reduce((sum: number, count: number) => sum + count, 0)).toBe(42);
});

test('what a source knows of a page stands in its text, line by line', () => {
  expect(pages.length).toBeGreaterThan(500);
  for (const { url, text, facts = {} } of pages) {
    for (const [name, value] of Object.entries(facts)) {
      if (name === 'ecosystem') continue;
      for (const item of [value].flat()) expect(text.includes(item), `${url} ${name} ${item}`).toBe(true);
    }
    for (const field of ['version', 'license', 'author', 'requires', 'repository'] as const) {
      expect(readField(text, field)?.text ?? null, `${url} ${field}`).toBe(storedField(facts, field)?.text ?? null);
    }
    for (const field of ['dependencies', 'keywords'] as const) {
      const [onPage, stored] = [readField(text, field), storedField(facts, field)];
      expect(onPage && stored && agrees(onPage, stored), `${url} ${field}`).toBe(true);
    }
  }
});

test('a list that is cut says how long it is, and nobody takes the part for the whole', () => {
  expect(readField('Keywords (4): a, b, c, …', 'keywords')).toEqual({ text: 'a, b, c', items: null, count: 4 });
  expect(readField('Dependencies (2): [a](pkg:npm/a), b', 'dependencies')).toEqual({
    text: 'a, b',
    items: ['a', 'b'],
    count: 2,
  });
  expect(readField('Dependencies (0): none', 'dependencies')).toEqual({ text: '', items: [], count: 0 });
});

test('one page a package, named by a purl without a version, in an order that mixes both ecosystems', async () => {
  const urls: string[] = [];
  for await (const { url } of installedPackages({ root: repoRoot() })) urls.push(url);
  expect(new Set(urls).size).toBe(urls.length);
  expect(urls.every((url) => /^pkg:(npm\/(@[\w.-]+\/)?[\w.-]+|pypi\/[a-z0-9-]+)$/.test(url))).toBe(true);
  const python = urls.slice(0, 200).filter((url) => url.startsWith('pkg:pypi/')).length;
  expect(python).toBeGreaterThan(30);
  expect(python).toBeLessThan(100);
});
