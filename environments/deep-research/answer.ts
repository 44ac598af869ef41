/** Compares answers: normalisation, exact match with aliases, token F1. Pure; the same rule for rewards and benchmarks. */

export interface Reference {
  answer: string;
  /** Other spellings that count as correct. */
  aliases: readonly string[];
}

const ARTICLES = new Set(['a', 'an', 'the']);

/**
 * The tokens that are compared: SQuAD's rule (lower case, no punctuation, no articles), made safe for other
 * scripts, numbers and versions. Points inside numbers stay (1.10.2 is not 1102, and 1.10 is not 1.1),
 * separators of thousands go (12,000 is 12000), and so does the v of a version (v2.1 is 2.1); C++ is not C#.
 */
export function normalizedTokens(text: string): string[] {
  const plain = text.normalize('NFKC').toLowerCase();
  const tokens = plain
    .replace(/(?<=\d),(?=\d{3}(?!\d))/g, '')
    .replace(/(?<![\p{L}\p{N}])v(?=\d)/gu, '')
    .replace(/(?<=\p{N})\.(?=\p{N})/gu, POINT)
    .replace(/(?!(?<=[\p{L}+])[+#])[\p{P}\p{S}]/gu, ' ')
    .replaceAll(POINT, '.')
    .split(/\s+/)
    .filter((token) => token !== '');
  const content = tokens.filter((token) => !ARTICLES.has(token));
  if (content.length > 0) return content;
  // The answer may be the letter A, or an operator: then nothing is left out.
  return tokens.length > 0 ? tokens : plain.split(/\s+/).filter((token) => token !== '');
}

/** A private-use character: stands for a point that is part of a number while punctuation is removed. */
const POINT = '\uE000';

/** Correct when the normalised answer equals that of a reference; references that are lists match in any order. */
export function isExactMatch(answer: string, reference: Reference): boolean {
  return spellings(reference).some((spelling) => sameText(answer, spelling) || sameList(answer, spelling));
}

/** Token F1 against the best reference, 0 to 1. */
export function f1(answer: string, reference: Reference): number {
  return Math.max(
    ...spellings(reference).map((spelling) => f1Of(normalizedTokens(answer), normalizedTokens(spelling))),
  );
}

/** Whether a reference stands in the text, token by token: what answer_in_observation reports. */
export function contains(text: string, reference: Reference): boolean {
  const haystack = ` ${normalizedTokens(text).join(' ')} `;
  return spellings(reference).some((spelling) => {
    const items = listItems(spelling) ?? [spelling];
    return items.every((item) => {
      const needle = normalizedTokens(item).join(' ');
      return needle !== '' && haystack.includes(` ${needle} `);
    });
  });
}

function spellings({ answer, aliases }: Reference): string[] {
  return [answer, ...aliases];
}

function sameText(a: string, b: string): boolean {
  const [left, right] = [normalizedTokens(a), normalizedTokens(b)];
  return right.length > 0 && left.join(' ') === right.join(' ');
}

/** As sets of normalised items: `b, a and c` is `a; b; c`. An item said twice counts once. */
function sameList(answer: string, reference: string): boolean {
  const wanted = listItems(reference);
  const given = listItems(answer);
  if (wanted === undefined || given === undefined) return false;
  const key = (items: string[]) =>
    [...new Set(items.map((item) => normalizedTokens(item).join(' ')))].sort().join('\n');
  return key(wanted) === key(given);
}

/** The items of an enumeration (JSON list, commas, semicolons, lines, a last "and"), or undefined when it is not one. */
export function listItems(text: string): string[] | undefined {
  const inner = text.trim().replace(/^\[([\s\S]*)\]$/, '$1');
  const items = inner
    .split(/[,;\n](?!\d{3}(?!\d))/)
    .flatMap((item) => item.split(/\s+and\s+/i))
    .map((item) => item.replace(/^\s*and\s+/i, '').trim())
    .filter((item) => normalizedTokens(item).length > 0);
  return items.length > 1 ? items : undefined;
}

function f1Of(answer: readonly string[], reference: readonly string[]): number {
  if (answer.length === 0 || reference.length === 0) return 0;
  const left = new Map<string, number>();
  for (const token of reference) left.set(token, (left.get(token) ?? 0) + 1);
  let common = 0;
  for (const token of answer) {
    const count = left.get(token) ?? 0;
    if (count === 0) continue;
    left.set(token, count - 1);
    common += 1;
  }
  return common === 0 ? 0 : (2 * common) / (answer.length + reference.length);
}
