import type { Capability } from '../../../schemas/task.ts';
import { type Derivation, derivations } from './derivations.ts';
import type { Field } from './fields.ts';

export type Ecosystem = 'npm' | 'python';

/**
 * One wording of one kind of question. `{a}`, `{b}`, `{c}` stand for package names, `{eco}` for `npm` or
 * `Python`, `{runtime}` for `Node` or `Python`.
 */
export interface Template {
  id: string;
  capability: Capability;
  /** Only in the held-out split: shows whether a policy learned the capability or the wording. */
  heldOutOnly: boolean;
  ecosystems: readonly Ecosystem[];
  question: string;
  /** What is looked up on the page of each slot, in order. */
  fields: readonly Field[];
  /**
   * How the pages belong together: `free` (any packages), `bridge` (the second is the only dependency of the
   * first, and not named in the question), `shared` (two packages that have a dependency in common).
   */
  relation: 'free' | 'bridge' | 'shared';
  derivation: Derivation;
}

type TemplateRow = [
  id: string,
  ecosystems: readonly Ecosystem[],
  fields: readonly Field[],
  derivation: keyof typeof derivations,
  question: string,
  options?: { heldOutOnly?: true; relation?: Template['relation'] },
];

const BOTH = ['npm', 'python'] as const;
const HELD_OUT = { heldOutOnly: true } as const;

const ROWS: Record<Capability, TemplateRow[]> = {
  direct_retrieval: [
    ['direct_version', BOTH, ['version'], 'value', 'Which version of the {eco} package {a} is documented?'],
    ['direct_license', BOTH, ['license'], 'value', 'Under which license is the {eco} package {a} released?'],
    ['direct_author', BOTH, ['author'], 'value', 'Who is the author of the {eco} package {a}?'],
    [
      'direct_requires',
      BOTH,
      ['requires'],
      'value',
      'Which {runtime} versions does the {eco} package {a} require? Answer with the range as written.',
    ],
    [
      'direct_dev_dependencies',
      ['npm'],
      ['dev_dependencies'],
      'value',
      'How many development dependencies does the {eco} package {a} have?',
    ],
    [
      'direct_repository',
      BOTH,
      ['repository'],
      'value',
      'In which repository is the {eco} package {a} developed? Answer as owner/name.',
      HELD_OUT,
    ],
  ],
  aggregation: [
    [
      'sum_dependencies',
      BOTH,
      ['dependencies', 'dependencies'],
      'sum',
      'How many dependencies do the {eco} packages {a} and {b} have in total?',
    ],
    [
      'sum_keywords',
      BOTH,
      ['keywords', 'keywords'],
      'sum',
      'If the keyword lists of the {eco} packages {a} and {b} are put together, how many entries are there?',
    ],
    [
      'pair_versions',
      BOTH,
      ['version', 'version'],
      'pair',
      'Which versions of the {eco} packages {a} and {b} are documented? Answer as: first and second.',
    ],
    [
      'pair_license_version',
      BOTH,
      ['license', 'version'],
      'pair',
      'What is the license of the {eco} package {a}, and what is the version of {b}? Answer as: license and version.',
    ],
    [
      'pair_author_version',
      BOTH,
      ['author', 'version'],
      'pair',
      'Name the author of the {eco} package {a} and the version of {b}. Answer as: author and version.',
      HELD_OUT,
    ],
  ],
  enumeration: [
    [
      'list_dependencies',
      BOTH,
      ['dependencies', 'dependencies'],
      'union',
      'List all packages that the {eco} packages {a} and {b} depend on, separated by commas.',
    ],
    [
      'list_authors',
      BOTH,
      ['author', 'author'],
      'distinct',
      'Name the authors of the {eco} packages {a} and {b}, separated by commas.',
    ],
    [
      'list_licenses',
      BOTH,
      ['license', 'license', 'license'],
      'distinct',
      'Which licenses do the {eco} packages {a}, {b} and {c} use? Separate them by commas.',
    ],
    [
      'list_independent',
      BOTH,
      ['dependencies', 'dependencies', 'dependencies'],
      'without_items',
      'Which of the {eco} packages {a}, {b} and {c} have no dependencies? Separate the names by commas.',
    ],
    [
      'list_versions',
      BOTH,
      ['version', 'version', 'version'],
      'distinct',
      'Give the versions of the {eco} packages {a}, {b} and {c}, separated by commas.',
      HELD_OUT,
    ],
  ],
  cross_verification: [
    [
      'bridge_version',
      BOTH,
      ['dependencies', 'version'],
      'second',
      'The {eco} package {a} has a single dependency. Which version of that dependency is documented?',
      { relation: 'bridge' },
    ],
    [
      'bridge_license',
      BOTH,
      ['dependencies', 'license'],
      'second',
      'The {eco} package {a} depends on one package only. Under which license is that one released?',
      { relation: 'bridge' },
    ],
    [
      'newer_runtime',
      BOTH,
      ['requires', 'requires'],
      'newer',
      'The {eco} packages {a} and {b} require different {runtime} versions. What is required by the one that needs the newer {runtime}?',
    ],
    [
      'shared_dependency',
      BOTH,
      ['dependencies', 'dependencies'],
      'shared',
      'Which dependency do the {eco} packages {a} and {b} have in common?',
      { relation: 'shared' },
    ],
    [
      'bridge_author',
      BOTH,
      ['dependencies', 'author'],
      'second',
      'Who is the author of the only dependency of the {eco} package {a}?',
      { ...HELD_OUT, relation: 'bridge' },
    ],
  ],
  statistics: [
    [
      'total_keywords',
      BOTH,
      ['keywords', 'keywords', 'keywords'],
      'sum',
      'What is the total number of keywords of the {eco} packages {a}, {b} and {c}?',
    ],
    [
      'most_dev_dependencies',
      ['npm'],
      ['dev_dependencies', 'dev_dependencies', 'dev_dependencies'],
      'largest',
      'What is the largest number of development dependencies among the {eco} packages {a}, {b} and {c}?',
    ],
    [
      'median_classifiers',
      ['python'],
      ['classifiers', 'classifiers', 'classifiers'],
      'median',
      'What is the median number of classifiers of the {eco} packages {a}, {b} and {c}?',
    ],
    [
      'mean_dependencies',
      BOTH,
      ['dependencies', 'dependencies', 'dependencies'],
      'mean',
      'How many dependencies do the {eco} packages {a}, {b} and {c} have on average?',
    ],
    [
      'range_keywords',
      BOTH,
      ['keywords', 'keywords', 'keywords'],
      'range',
      'Among the {eco} packages {a}, {b} and {c}, by how much does the longest keyword list exceed the shortest?',
      HELD_OUT,
    ],
  ],
};

export const TEMPLATES: readonly Template[] = Object.entries(ROWS).flatMap(([capability, rows]) =>
  rows.map(([id, ecosystems, fields, derivation, question, options]) => ({
    id,
    capability: capability as Capability,
    heldOutOnly: options?.heldOutOnly ?? false,
    ecosystems,
    question,
    fields,
    relation: options?.relation ?? 'free',
    derivation: derivations[derivation],
  })),
);

export interface FilledTemplate {
  template: Template;
  ecosystem: Ecosystem;
  /** Names in the question: of a bridge only the first. */
  names: string[];
}

const ECOSYSTEM_WORDS: Record<Ecosystem, { eco: string; runtime: string }> = {
  npm: { eco: 'npm', runtime: 'Node' },
  python: { eco: 'Python', runtime: 'Python' },
};

export function fillTemplate({ template, ecosystem, names }: FilledTemplate): string {
  const words: Record<string, string | undefined> = {
    ...ECOSYSTEM_WORDS[ecosystem],
    a: names[0],
    b: names[1],
    c: names[2],
  };
  return template.question.replace(/\{(\w+)\}/g, (slot, word: string) => words[word] ?? slot);
}

/** How many package names a question of this template carries. */
export function namedPages(template: Template): number {
  return template.relation === 'bridge' ? 1 : template.fields.length;
}

/** Read a question back; null when no template wrote it. */
export function parseQuestion(question: string): FilledTemplate | null {
  for (const { template, ecosystem, pattern } of PATTERNS) {
    const match = pattern.exec(question);
    if (match) return { template, ecosystem, names: match.slice(1) };
  }
  return null;
}

/** A private-use character: no question holds it. */
const SLOT = '\uE000';

const PATTERNS = TEMPLATES.flatMap((template) =>
  template.ecosystems.map((ecosystem) => ({ template, ecosystem, pattern: patternOf(template, ecosystem) })),
);

function patternOf(template: Template, ecosystem: Ecosystem): RegExp {
  const [a, b, c] = ['A', 'B', 'C'].map((slot) => `${SLOT}${slot}`);
  const filled = fillTemplate({ template, ecosystem, names: [a, b, c] as string[] });
  const escaped = filled.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
  return new RegExp(`^${escaped.replace(new RegExp(`${SLOT}[ABC]`, 'g'), '([^\\s,?]+)')}$`);
}
