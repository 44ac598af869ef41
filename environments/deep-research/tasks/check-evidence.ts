import type { Derivation } from './derivations.ts';
import { agrees, type Field, type FieldValue, isFactLine, readField } from './fields.ts';

/** A value that a task needs: the page it should stand on, whose name other pages would use, and what it is. */
export interface Need {
  url: string;
  name: string;
  field: Field;
  value: FieldValue;
}

/** Words beside which a line of some other page may state a field of a package that it names. */
const MENTION_WORDS: Record<Field, RegExp> = {
  version: /version|release|pkg:|@/i,
  license: /licen[sc]e/i,
  author: /author|written by|created by|maintain|copyright/i,
  requires: /require|node|python|engine/i,
  dependencies: /depend|require/i,
  dev_dependencies: /depend/i,
  classifiers: /classifier/i,
  repository: /repositor|github|gitlab|source/i,
  keywords: /keyword/i,
};

/**
 * Which pages of a corpus state which needed values. Fed with every page once, as a stream; memory grows with
 * the needs, not with the corpus.
 */
export class StatedValues {
  readonly #needsOfUrl = new Map<string, Need[]>();
  readonly #needsOfName = new Map<string, Need[]>();
  readonly #sources = new Map<string, Set<string>>();

  constructor(needs: Iterable<Need>) {
    for (const need of needs) {
      const key = keyOf(need);
      if (this.#sources.has(key)) continue;
      this.#sources.set(key, new Set());
      this.#needsOfUrl.set(need.url, [...(this.#needsOfUrl.get(need.url) ?? []), need]);
      this.#needsOfName.set(need.name, [...(this.#needsOfName.get(need.name) ?? []), need]);
    }
  }

  /** Read one page: its own facts from its fact lines, and what its text says in passing about other packages. */
  read(page: { url: string; text: string }): void {
    for (const need of this.#needsOfUrl.get(page.url) ?? []) {
      const stated = readField(page.text, need.field);
      if (stated && agrees(stated, need.value)) this.#sources.get(keyOf(need))?.add(page.url);
    }
    for (const line of page.text.split('\n')) this.#readMentions(page.url, line);
  }

  #readMentions(url: string, line: string): void {
    if (isFactLine(line)) return; // it is about the page's own package
    const seen = new Set<string>();
    for (const [word] of line.matchAll(/@?[\w][\w./-]*/g)) {
      const name = word.replace(/[./-]+$/, '');
      if (seen.has(name)) continue;
      seen.add(name);
      for (const need of this.#needsOfName.get(name) ?? []) {
        if (need.url !== url && MENTION_WORDS[need.field].test(line) && states(line, need))
          this.#sources.get(keyOf(need))?.add(url);
      }
    }
  }

  /** Whether a page itself states a value, readable as a fact. */
  isOnItsPage(need: Need): boolean {
    return this.#sources.get(keyOf(need))?.has(need.url) ?? false;
  }

  /** Whether any page but one states a value. */
  isStatedWithout(need: Need, url: string): boolean {
    const sources = this.#sources.get(keyOf(need));
    return sources !== undefined && (sources.size > 1 || (sources.size === 1 && !sources.has(url)));
  }
}

/** Whether a line that names the package and the field also holds the value; of a list, all of it. */
function states(line: string, { value }: Need): boolean {
  const parts = value.items ?? [value.text];
  if (parts.length === 0) return false;
  const words = new Set(line.split(/[\s,;:()[\]"'`*]+/));
  return parts.every((part) => (/\s/.test(part) ? line.includes(part) : words.has(part) || words.has(`v${part}`)));
}

function keyOf({ url, field }: Need): string {
  return `${field} ${url}`;
}

export type EvidenceVerdict = 'ok' | 'not_on_page' | 'derivable_without_a_page' | 'same_answer_without_a_page';

/**
 * Take away each evidence page in turn and derive the answer again from the rest of the corpus.
 * With one page only there is nothing to compare: it is enough that the page states the value.
 */
export function checkEvidence(
  stated: StatedValues,
  needs: readonly Need[],
  names: readonly string[],
  answer: string,
  derivation: Derivation,
): EvidenceVerdict {
  if (!needs.every((need) => stated.isOnItsPage(need))) return 'not_on_page';
  if (needs.length === 1) return 'ok';
  for (const { url } of needs) {
    const left = needs.flatMap((need, index) => (stated.isStatedWithout(need, url) ? [index] : []));
    if (left.length === needs.length) return 'derivable_without_a_page';
    if (
      answersAlike(
        derivation,
        needs.map(({ value }) => value),
        names,
        left,
        answer,
      )
    )
      return 'same_answer_without_a_page';
  }
  return 'ok';
}

/** Whether the values at some positions alone lead to the answer, by a rule that can be applied to fewer pages. */
export function answersAlike(
  derivation: Derivation,
  values: readonly FieldValue[],
  names: readonly string[],
  positions: readonly number[],
  answer: string,
): boolean {
  if (!derivation.worksOnFewer || positions.length === 0) return false;
  const derived = derivation.answer(
    positions.map((position) => values[position] as FieldValue),
    positions.map((position) => names[position] as string),
  );
  return derived !== null && (derived.text === answer || derived.aliases.includes(answer));
}
