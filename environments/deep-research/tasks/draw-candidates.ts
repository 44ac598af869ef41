import { answersAlike, type Need } from './check-evidence.ts';
import type { Answer } from './derivations.ts';
import { type Package, siblingUrl } from './fact-pool.ts';
import type { Field, FieldValue } from './fields.ts';
import { seededRandom } from './seeded.ts';
import { type Ecosystem, fillTemplate, namedPages, type Template } from './templates.ts';

/** A question that may become a task, if the pages bear it out. */
export interface Candidate {
  template: Template;
  ecosystem: Ecosystem;
  packages: Package[];
  question: string;
  answer: Answer;
  needs: Need[];
}

export interface DrawOptions {
  /** Names the random sequence. */
  name: string;
  wanted: number;
  /** How often one answer may occur among the candidates of a template. */
  maxPerAnswer: number;
  /** How often each package was used so far; updated. */
  uses: Map<string, number>;
}

/** Draws before giving up, for each candidate wanted: some templates fit few combinations. */
const DRAWS_PER_CANDIDATE = 400;
/** A list longer than this is not whole in the fact lines of a page. */
const LONGEST_LISTED = 8;

/**
 * Candidates for one template from the packages of one split. Of two random draws the less used package is
 * taken, so that tasks spread over the corpus.
 */
export function drawCandidates(template: Template, pool: PackagePool, options: DrawOptions): Candidate[] {
  const random = seededRandom(options.name);
  const found = new Map<string, Candidate>();
  const answers = new Map<string, number>();
  const sampler = samplerOf(template, pool, random, options.uses);
  if (sampler === null) return [];
  for (let draws = 0; draws < options.wanted * DRAWS_PER_CANDIDATE && found.size < options.wanted; draws += 1) {
    const packages = sampler();
    const candidate = packages && candidateOf(template, packages);
    if (!candidate) continue;
    const identity = packages
      .map(({ url }) => url)
      .sort()
      .join(' ');
    const answer = answerKey(candidate.answer);
    if (found.has(identity) || (answers.get(answer) ?? 0) >= options.maxPerAnswer) continue;
    found.set(identity, candidate);
    answers.set(answer, (answers.get(answer) ?? 0) + 1);
    for (const { url } of packages) options.uses.set(url, (options.uses.get(url) ?? 0) + 1);
  }
  return [...found.values()];
}

/** One key for all orders of a list. */
export function answerKey({ text, aliases }: Answer): string {
  return [text, ...aliases].sort()[0] as string;
}

function candidateOf(template: Template, packages: readonly Package[]): Candidate | null {
  const values = template.fields.map((field, slot) => packages[slot]?.values[field]);
  if (values.some((value) => value === undefined || value.text.length > 80)) return null;
  const names = packages.map(({ name }) => name);
  const answer = template.derivation.answer(values as FieldValue[], names);
  if (!answer || !everyPageCounts(template, values as FieldValue[], names, answer.text)) return null;
  const ecosystem = (packages[0] as Package).ecosystem;
  const question = fillTemplate({ template, ecosystem, names: names.slice(0, namedPages(template)) });
  const needs = template.fields.map((field, slot) => {
    const { url, name } = packages[slot] as Package;
    return { url, name, field, value: values[slot] as FieldValue };
  });
  return { template, ecosystem, packages: [...packages], question, answer, needs };
}

/** Whether the answer changes when any one page is left out: by the facts alone, before the texts are read. */
function everyPageCounts(
  { derivation }: Template,
  values: readonly FieldValue[],
  names: readonly string[],
  answer: string,
): boolean {
  const all = values.map((_, position) => position);
  return all.every((left) => !answersAlike(derivation, values, names, all.toSpliced(left, 1), answer));
}

/** The packages of one split, with what the relations between them need. */
export class PackagePool {
  readonly packages: readonly Package[];
  readonly #byUrl: Map<string, Package>;

  constructor(packages: readonly Package[]) {
    this.packages = packages;
    this.#byUrl = new Map(packages.map((item) => [item.url, item]));
  }

  at(url: string): Package | undefined {
    return this.#byUrl.get(url);
  }

  having(ecosystem: Ecosystem, field: Field): Package[] {
    return this.packages.filter((item) => item.ecosystem === ecosystem && item.values[field] !== undefined);
  }
}

type Sampler = () => Package[] | null;

function samplerOf(
  template: Template,
  pool: PackagePool,
  random: () => number,
  uses: ReadonlyMap<string, number>,
): Sampler | null {
  const samplers = template.ecosystems.flatMap((ecosystem) => {
    const sampler = SAMPLERS[template.relation]({
      fields: template.fields,
      ecosystem,
      pool,
      pick: pickerOf(random, uses),
    });
    return sampler === null ? [] : [sampler];
  });
  if (samplers.length === 0) return null;
  return () => (samplers[Math.floor(random() * samplers.length)] as Sampler)();
}

type Picker = <T>(items: readonly T[], urlOf: (item: T) => string) => T;

function pickerOf(random: () => number, uses: ReadonlyMap<string, number>): Picker {
  return (items, urlOf) => {
    const [first, second] = [0, 1].map(() => items[Math.floor(random() * items.length)]) as [
      (typeof items)[number],
      (typeof items)[number],
    ];
    return (uses.get(urlOf(second)) ?? 0) < (uses.get(urlOf(first)) ?? 0) ? second : first;
  };
}

type SamplerMaker = (from: {
  fields: readonly Field[];
  ecosystem: Ecosystem;
  pool: PackagePool;
  pick: Picker;
}) => Sampler | null;

const SAMPLERS: Record<Template['relation'], SamplerMaker> = {
  free({ fields, ecosystem, pool, pick }) {
    const slots = fields.map((field) => pool.having(ecosystem, field));
    if (slots.some((items) => items.length < slots.length)) return null;
    return () => {
      const packages = slots.map((items) => pick(items, ({ url }) => url));
      return new Set(packages).size === packages.length ? packages : null;
    };
  },

  bridge({ ecosystem, pool, pick }) {
    const pairs = pool.having(ecosystem, 'dependencies').flatMap((first) => {
      const [only, ...others] = first.values.dependencies?.items ?? [];
      const second = only === undefined || others.length > 0 ? undefined : pool.at(siblingUrl(first, only));
      return second === undefined || second === first ? [] : [[first, second]];
    });
    return pairs.length === 0 ? null : () => pick(pairs, (pair) => (pair[0] as Package).url);
  },

  shared({ ecosystem, pool, pick }) {
    const users = new Map<string, Package[]>();
    for (const item of pool.having(ecosystem, 'dependencies')) {
      const names = item.values.dependencies?.items ?? [];
      if (names.length > LONGEST_LISTED) continue;
      for (const name of names) users.set(name, [...(users.get(name) ?? []), item]);
    }
    const groups = [...users.values()].filter((group) => group.length > 1);
    if (groups.length === 0) return null;
    return () => {
      const group = pick(groups, (items) => (items[0] as Package).url);
      const pair = [pick(group, ({ url }) => url), pick(group, ({ url }) => url)];
      return pair[0] === pair[1] ? null : pair;
    };
  },
};
