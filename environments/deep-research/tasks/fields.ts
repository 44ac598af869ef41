/**
 * Facts as they stand on a page: one a line, `Label: value`. Task generation and the scripted expert read
 * them with the same function, so a fact counts only if it can be read off the text.
 */

export const FIELDS = [
  'version',
  'license',
  'author',
  'requires',
  'dependencies',
  'dev_dependencies',
  'classifiers',
  'repository',
  'keywords',
] as const;
export type Field = (typeof FIELDS)[number];

export interface FieldValue {
  /** The value as written; of a list, the items joined by commas. */
  text: string;
  /** Items of a list; null where the page shows only the beginning of it. */
  items: string[] | null;
  /** The value of a number, the length of a list. */
  count: number | null;
}

const LABELS: Record<Field, string> = {
  version: 'Version',
  license: 'License',
  author: 'Author',
  requires: 'Requires (?:Node|Python)',
  dependencies: 'Dependencies',
  dev_dependencies: 'Development dependencies',
  classifiers: 'Classifiers',
  repository: 'Repository',
  keywords: 'Keywords',
};

/** How a page, a question's goal and the expert's thoughts name a field. */
export const FIELD_WORDS: Record<Field, string> = {
  version: 'version',
  license: 'license',
  author: 'author',
  requires: 'requires',
  dependencies: 'dependencies',
  dev_dependencies: 'development dependencies',
  classifiers: 'classifiers',
  repository: 'repository',
  keywords: 'keywords',
};

const LINES = Object.fromEntries(
  FIELDS.map((field) => [field, new RegExp(`^${LABELS[field]}(?: \\((\\d+)\\))?: (.+)$`, 'm')]),
) as Record<Field, RegExp>;

/** Whether a line states a fact of the package whose page it stands on. */
export function isFactLine(line: string): boolean {
  return FIELDS.some((field) => LINES[field].test(line));
}

/** The first line of a text that states a field; null when none does. */
export function readField(text: string, field: Field): FieldValue | null {
  const match = LINES[field].exec(text);
  if (!match) return null;
  const value = (match[2] as string).trim();
  if (match[1] !== undefined) return listValue(value, Number(match[1]));
  return { text: value, items: null, count: /^\d+$/.test(value) ? Number(value) : null };
}

/** Ends a list of which the page shows only the beginning. */
const CUT = ', …';

function listValue(value: string, count: number): FieldValue {
  if (count === 0) return { text: '', items: [], count };
  const isWhole = !value.endsWith(CUT);
  const items = (isWhole ? value : value.slice(0, -CUT.length))
    .split(', ')
    .map((item) => item.replace(/^\[([^\]]+)\]\([^)]*\)$/, '$1'));
  return { text: items.join(', '), items: isWhole ? items : null, count };
}

/** The same value from the facts stored beside a page, in which lists are whole. */
export function storedField(facts: Readonly<Record<string, unknown>>, field: Field): FieldValue | null {
  const stored = facts[field];
  if (Array.isArray(stored)) return { text: stored.join(', '), items: stored as string[], count: stored.length };
  if (typeof stored !== 'string') return null;
  return { text: stored, items: null, count: /^\d+$/.test(stored) ? Number(stored) : null };
}

/** A page may show only the beginning of a list that is stored whole; nothing else may differ. */
export function agrees(onPage: FieldValue, stored: FieldValue): boolean {
  return (
    onPage.count === stored.count &&
    (onPage.items === null ? stored.text.startsWith(onPage.text) : onPage.text === stored.text)
  );
}
