/** What is wrong with a spec, and where. Problems are collected, so that one run shows them all. */
import { closest, distance } from 'fastest-levenshtein';

/** Line and column count from 1. */
export interface Place {
  file: string;
  line: number;
  column: number;
}

export interface Problem extends Place {
  code: string;
  /** One sentence; never holds a value that may be a secret. */
  message: string;
  /** What to write instead, where that is known. */
  hint?: string;
}

/** More than anybody reads; a broken file would fill the screen. */
export const MAX_PROBLEMS = 100;
const MAX_MESSAGE = 600;

export function problem(code: string, { file, line, column }: Place, message: string, hint?: string): Problem {
  const shown = message.length > MAX_MESSAGE ? `${message.slice(0, MAX_MESSAGE)}…` : message;
  return { file, line, column, code, message: shown, ...(hint !== undefined && { hint }) };
}

export const placeText = ({ file, line, column }: Place): string => `${file}:${line}:${column}`;

/** `file:line:col: CODE: message (did you mean …)`. */
export function problemLine(found: Problem): string {
  const hint = found.hint === undefined ? '' : ` (${found.hint})`;
  return `${placeText(found)}: ${found.code}: ${found.message}${hint}`;
}

/** A longer list of names was made by a program, and comparing each with each would take seconds. */
const MAX_CANDIDATES = 200;

/** `did you mean …`, when one of the candidates is near enough to be meant. */
export function didYouMean(name: string, candidates: readonly string[]): string | undefined {
  if (candidates.length === 0 || candidates.length > MAX_CANDIDATES || name.length > 64) return undefined;
  const near = closest(name, candidates);
  return distance(name, near) <= Math.ceil(near.length / 3) ? `did you mean \`${near}\`?` : undefined;
}

/** In the order of the files and lines, each once. */
export function sortProblems(problems: readonly Problem[]): Problem[] {
  const files = [...new Set(problems.map(({ file }) => file))];
  const order = new Map(files.map((file, index) => [file, index]));
  const place = ({ file }: Problem): number => order.get(file) as number;
  const sorted = [...problems].sort((a, b) => place(a) - place(b) || a.line - b.line || a.column - b.column);
  const byLine = new Map(sorted.map((found) => [problemLine(found), found]));
  return [...byLine.values()].slice(0, MAX_PROBLEMS);
}

/** Text of a spec without what a terminal would obey: controls, direction overrides, halves of characters. */
export const printable = (text: string, instead: string): string =>
  text.replace(/[\p{Cc}\p{Cs}\u202a-\u202e\u2066-\u2069]/gu, instead);

/** Text of a spec as it may stand in a message: short and on one line. */
export function quoted(value: unknown): string {
  const text = typeof value === 'string' ? value : (JSON.stringify(value) ?? String(value));
  const clean = printable(text, '\ufffd');
  return `\`${clean.length > 60 ? `${clean.slice(0, 60)}…` : clean}\``;
}
