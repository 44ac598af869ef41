/**
 * YAML read strictly: text in, a located document or problems out.
 *
 * What could be costly or surprising is refused before a document is built: size, depth, tags, several
 * documents, nested one-line maps. The parser's own duplicate check is off because it is quadratic.
 */
import {
  type Alias,
  Composer,
  CST,
  isAlias,
  isMap,
  isScalar,
  isSeq,
  Lexer,
  LineCounter,
  type Node,
  type Pair,
  Parser,
  type Scalar as YamlScalar,
} from 'yaml';
import type { Located, LocatedMap, Scalar } from './located.ts';
import { type Place, type Problem, placeText, problem, quoted } from './problem.ts';

export const MAX_BYTES = 256 * 1024;
export const MAX_NODES = 20_000;
export const MAX_DEPTH = 64;
/** Nodes that aliases may add. */
const MAX_EXPANDED = 100;
const MAX_CHARACTER_PROBLEMS = 10;
/** After a few, the parser has lost the thread. */
const MAX_SYNTAX_PROBLEMS = 5;

const FORBIDDEN_KEYS = new Set(['__proto__', 'constructor', 'prototype', '<<']);
/** Controls except tab and line ends, direction overrides and isolates, a stray BOM, lone surrogates. */
const BAD_CHARACTER = /(?![\t\n\r])[\p{Cc}\p{Cs}\u202a-\u202e\u2066-\u2069\ufeff]/gu;
const SECRET_VALUE =
  /^(sk-[\w-]{8,}|hf_\w{16,}|gh[pousr]_\w{16,}|xox[abprs]-[\w-]{8,}|AKIA[0-9A-Z]{12,}|glpat-[\w-]{12,}|-----BEGIN [A-Z ]*PRIVATE KEY)/;

export interface Reading {
  /** Null when the text cannot be trusted to mean what it seems to. */
  root: Located | null;
  problems: Problem[];
}

/** Bytes to text: UTF-8 only, with or without its BOM. */
export function decodeUtf8(bytes: Uint8Array, file: string): { text: string } | { problem: Problem } {
  const start: Place = { file, line: 1, column: 1 };
  const [a, b] = bytes;
  if ((a === 0xff && b === 0xfe) || (a === 0xfe && b === 0xff) || (bytes.length > 1 && (a === 0 || b === 0))) {
    return { problem: problem('ENCODING', start, 'the file is UTF-16 or UTF-32; save it as UTF-8') };
  }
  try {
    return { text: new TextDecoder('utf-8', { fatal: true }).decode(bytes) };
  } catch {
    return { problem: problem('ENCODING', firstInvalidPlace(bytes, file), 'the file is not valid UTF-8') };
  }
}

/** The line of the first bad byte: the longest prefix that decodes, found by halving. */
function firstInvalidPlace(bytes: Uint8Array, file: string): Place {
  let [good, bad] = [0, bytes.length];
  while (bad - good > 1) {
    const middle = (good + bad) >> 1;
    try {
      new TextDecoder('utf-8', { fatal: true }).decode(bytes.subarray(0, middle), { stream: true });
      good = middle;
    } catch {
      bad = middle;
    }
  }
  const before = new TextDecoder().decode(bytes.subarray(0, good)).split('\n');
  return { file, line: before.length, column: (before.at(-1)?.length ?? 0) + 1 };
}

/** Read one document whose root is a map. */
export function readDocument(text: string, file: string): Reading {
  const reading = readValue(text, { file, line: 1, column: 1 });
  if (reading.root === null || reading.root.kind === 'map') return reading;
  return { root: null, problems: [problem('TYPE', reading.root.at, 'a spec is a map of fields')] };
}

/** Read one value; `start` is where its text begins in what the user wrote. */
export function readValue(text: string, start: Place): Reading {
  const lines = new LineCounter();
  const place = (offset: number): Place => {
    const { line, col } = lines.linePos(offset);
    return {
      file: start.file,
      line: start.line + line - 1,
      column: line <= 1 ? start.column + Math.max(col, 1) - 1 : col,
    };
  };
  lines.addNewLine(0);
  for (let at = text.indexOf('\n'); at !== -1; at = text.indexOf('\n', at + 1)) lines.addNewLine(at + 1);

  const refuse = (...problems: Problem[]): Reading => ({ root: null, problems });
  const characters = badCharacters(text, place);
  if (characters.length > 0) return refuse(...characters);
  const lexemes = [...new Lexer().lex(text)];
  const scan = scanLexemes(lexemes, place);
  if (scan.length > 0) return refuse(...scan);

  const tokens = [...parseLexemes(lexemes)];
  const deep = tooDeep(tokens);
  if (deep !== null) return refuse(problem('DEPTH', place(deep), `nested deeper than ${MAX_DEPTH} levels`));

  const documents = [
    ...new Composer({
      uniqueKeys: false,
      version: '1.2',
      schema: 'core',
      customTags: [{ tag: '!unset', resolve: (source: string) => source }],
    }).compose(tokens),
  ];
  const second = documents[1]?.contents?.range?.[0];
  if (second !== undefined) return refuse(problem('MULTI_DOC', place(second), 'a file holds one document'));
  const complaints = documents.flatMap(({ errors, warnings }) => [...errors, ...warnings]);
  if (complaints.length > 0) return refuse(...syntaxProblems(complaints, text, place));
  const contents = documents[0]?.contents;
  if (documents.length === 0 || contents === null || contents === undefined) {
    return refuse(problem('EMPTY', start, 'nothing is written here'));
  }
  return new Converter(place).convertRoot(contents);
}

function badCharacters(text: string, place: (offset: number) => Place): Problem[] {
  const found: Problem[] = [];
  for (const match of text.matchAll(BAD_CHARACTER)) {
    found.push(badCharacter(match[0], place(match.index)));
    if (found.length === MAX_CHARACTER_PROBLEMS) break;
  }
  return found;
}

function badCharacter(character: string, at: Place): Problem {
  const name = `U+${(character.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, '0')}`;
  return problem('CONTROL_CHAR', at, `the character ${name} is invisible or not text; remove it`);
}

/** One pass over the words of the text, before anything is built. */
function scanLexemes(lexemes: readonly string[], place: (offset: number) => Place): Problem[] {
  const state = {
    offset: 0,
    nodes: 0,
    flow: 0,
    documents: 0,
    isScalar: false,
    lineHasScalar: false,
    lineHasPair: false,
  };
  for (const lexeme of lexemes) {
    const isMarker = !state.isScalar && MARKERS.has(lexeme);
    const found = isMarker ? null : scanLexeme(lexeme, state, place);
    if (found) return [found];
    if (!isMarker) state.offset += lexeme.length;
    state.isScalar = isMarker && lexeme === CST.SCALAR;
  }
  return [];
}

/** What `Parser.parse` does, with words that are there already. */
function* parseLexemes(lexemes: readonly string[]): Generator<CST.Token> {
  const parser = new Parser();
  for (const lexeme of lexemes) yield* parser.next(lexeme);
  yield* parser.end();
}

/** What the lexer puts between words; no part of the text. */
const MARKERS = new Set<string>([CST.DOCUMENT, CST.FLOW_END, CST.SCALAR]);

interface ScanState {
  offset: number;
  nodes: number;
  flow: number;
  documents: number;
  isScalar: boolean;
  lineHasScalar: boolean;
  lineHasPair: boolean;
}

function scanLexeme(lexeme: string, state: ScanState, place: (offset: number) => Place): Problem | null {
  const at = (): Place => place(state.offset);
  const type = state.isScalar ? 'scalar' : CST.tokenType(lexeme);
  switch (type) {
    case 'doc-start':
    case 'doc-end':
      // Whatever comes after `...` or before `---` is a document of its own.
      if (type === 'doc-start' && (++state.documents > 1 || state.nodes > 0))
        return problem('MULTI_DOC', at(), 'a file holds one document; `---` begins a second');
      break;
    case 'directive-line':
      return problem('SYNTAX', at(), 'directives (lines that begin with %) are not read');
    case 'tag':
      if (lexeme !== '!unset')
        return problem('TAG', at(), `the tag ${quoted(lexeme)} is not read; the only tag is \`!unset\``);
      break;
    case 'flow-map-start':
    case 'flow-seq-start':
      if (++state.flow > MAX_DEPTH) return problem('DEPTH', at(), `nested deeper than ${MAX_DEPTH} levels`);
      break;
    case 'flow-map-end':
    case 'flow-seq-end':
      state.flow--;
      break;
    case 'newline':
      state.lineHasScalar = state.lineHasPair = false;
      break;
    case 'map-value-ind':
      if (state.flow > 0) break;
      if (state.lineHasPair && state.lineHasScalar)
        return problem('SYNTAX', at(), 'a map inside a map needs its own line, or { }');
      state.lineHasPair ||= state.lineHasScalar;
      break;
    default:
      break;
  }
  const isNode =
    type === 'scalar' ||
    type === 'alias' ||
    type?.endsWith('-quoted-scalar') ||
    type === 'flow-map-start' ||
    type === 'flow-seq-start' ||
    type === 'seq-item-ind';
  if (isNode) {
    state.lineHasScalar = true;
    if (++state.nodes > MAX_NODES) return problem('SIZE', at(), `more than ${MAX_NODES} values`);
  }
  if (lexeme.includes('\n') && type !== 'newline') state.lineHasScalar = state.lineHasPair = false;
  return null;
}

/** Offset of the first token deeper than allowed; without recursion, since depth is the question. */
function tooDeep(tokens: readonly CST.Token[]): number | null {
  const open: { token: CST.Token; depth: number }[] = tokens.map((token) => ({ token, depth: 0 }));
  while (open.length > 0) {
    const { token, depth } = open.pop() as { token: CST.Token; depth: number };
    if (depth > MAX_DEPTH) return token.offset;
    const inside: (CST.Token | null | undefined)[] =
      'items' in token
        ? token.items.flatMap((item) => [item.key, item.value])
        : token.type === 'document'
          ? [token.value]
          : [];
    for (const next of inside) if (next) open.push({ token: next, depth: 'items' in next ? depth + 1 : depth });
  }
  return null;
}

/** What the parser says, in our words where those help more. One problem a line: the rest follows from it. */
function syntaxProblems(
  complaints: readonly { code: string; message: string; pos: [number, number] }[],
  text: string,
  place: (offset: number) => Place,
): Problem[] {
  const byLine = new Map<number, Problem>();
  for (const { code, message, pos } of complaints) {
    const at = place(pos[0]);
    const lineText = text.split('\n')[at.line - 1] ?? '';
    const tab = code === 'TAB_AS_INDENT';
    const hint = tab
      ? 'indent with spaces'
      : /[{[][^"']*\$\{/.test(lineText)
        ? 'inside { } and [ ] a reference is quoted: "${…}"'
        : undefined;
    const aliased = code === 'BAD_ALIAS' || /alias/i.test(message);
    if (!byLine.has(at.line))
      byLine.set(at.line, problem(aliased ? 'YAML_ALIAS' : 'SYNTAX', at, message.split('\n')[0] ?? code, hint));
  }
  return [...byLine.values()].slice(0, MAX_SYNTAX_PROBLEMS);
}

/** Builds the located document from the parser's, checking every key and scalar on the way. */
class Converter {
  readonly #place: (offset: number) => Place;
  readonly #problems: Problem[] = [];
  readonly #anchors = new Map<string, Node>();
  /** Anchors whose node is being built: an alias to one of them would contain itself. */
  readonly #open = new Set<Node>();
  #expanded = 0;
  #inAlias = false;

  constructor(place: (offset: number) => Place) {
    this.#place = place;
  }

  convertRoot(node: Node): Reading {
    const root = this.#convert(node);
    const fatal = this.#problems.some(({ code }) => code === 'YAML_ALIAS');
    return { root: fatal ? null : root, problems: this.#problems };
  }

  #at(node: Node | null | undefined): Place {
    return this.#place(node?.range?.[0] ?? 0);
  }

  #convert(node: Node): Located {
    if (this.#inAlias && ++this.#expanded > MAX_EXPANDED) return { kind: 'scalar', at: this.#at(node), value: null };
    if (isAlias(node)) return this.#expand(node);
    if ('anchor' in node && node.anchor) this.#anchors.set(node.anchor, node);
    this.#open.add(node);
    const located = isMap(node)
      ? this.#map(node as unknown as { items: Pair[] } & Node)
      : isSeq(node)
        ? this.#list(node as unknown as { items: Node[] } & Node)
        : this.#scalar(node as YamlScalar);
    this.#open.delete(node);
    return located;
  }

  #expand(alias: Alias): Located {
    const at = this.#at(alias);
    const source = this.#anchors.get(alias.source);
    if (source === undefined)
      return this.#refuse('YAML_ALIAS', at, `the alias ${quoted(`*${alias.source}`)} has no anchor before it`);
    if (this.#open.has(source))
      return this.#refuse('YAML_ALIAS', at, `the alias ${quoted(`*${alias.source}`)} contains itself`);
    const outer = this.#inAlias;
    this.#inAlias = true;
    const located = this.#convert(source);
    this.#inAlias = outer;
    if (this.#expanded > MAX_EXPANDED && !this.#problems.some(({ code }) => code === 'YAML_ALIAS')) {
      return this.#refuse(
        'YAML_ALIAS',
        at,
        `aliases repeat more than ${MAX_EXPANDED} values; use \`vars\` or \`like\``,
      );
    }
    return located;
  }

  #map(node: { items: Pair[] } & Node): LocatedMap {
    const entries: LocatedMap['entries'] = new Map();
    for (const { key, value } of node.items) {
      const name = this.#key(key as Node | null, node);
      if (name === null) continue;
      const at = this.#at(key as Node);
      const earlier = entries.get(name);
      if (earlier) {
        this.#refuse('DUP_KEY', at, `${quoted(name)} was already set at ${placeText(earlier.key)}`);
        continue;
      }
      entries.set(name, {
        key: at,
        value: value === null ? { kind: 'scalar', at, value: null } : this.#convert(value as Node),
      });
    }
    return { kind: 'map', at: this.#at(node), entries };
  }

  #key(key: Node | null, map: Node): string | null {
    const at = key ? this.#at(key) : this.#at(map);
    if (key === null || !isScalar(key)) {
      this.#refuse('SYNTAX', at, 'a key is a plain name');
      return null;
    }
    const scalar = key as YamlScalar;
    const name = typeof scalar.value === 'string' ? scalar.value : (scalar.source ?? '');
    this.#checkText(name, at);
    if (FORBIDDEN_KEYS.has(name)) {
      this.#refuse(
        'KEY_FORBIDDEN',
        at,
        `the key ${quoted(name)} is not allowed`,
        name === '<<' ? 'share values with `extends`, `like` or `vars`' : undefined,
      );
      return null;
    }
    return name;
  }

  #list(node: { items: Node[] } & Node): Located {
    return { kind: 'list', at: this.#at(node), items: node.items.map((item) => this.#convert(item)) };
  }

  #scalar(node: YamlScalar): Located {
    const at = this.#at(node);
    if (node.tag === '!unset') {
      return node.value === '' ? { kind: 'unset', at } : this.#refuse('TAG', at, '`!unset` takes no value');
    }
    const { value } = node;
    if (typeof value === 'string') this.#checkText(value, at);
    if (typeof value === 'number') this.#checkNumber(value, node.source ?? '', at);
    if (typeof value === 'bigint') this.#refuse('INT_RANGE', at, 'the integer does not fit');
    return { kind: 'scalar', at, value: typeof value === 'bigint' ? null : (value as Scalar) };
  }

  /** Escapes can write what the text may not hold. */
  #checkText(value: string, at: Place): void {
    const bad = value.match(BAD_CHARACTER);
    if (bad) this.#problems.push(badCharacter(bad[0], at));
    if (SECRET_VALUE.test(value)) {
      this.#refuse('SECRET_LITERAL', at, 'this looks like a secret; name it instead', '{ env: NAME }');
    }
  }

  #checkNumber(value: number, source: string, at: Place): void {
    if (!Number.isFinite(value)) this.#refuse('NUMBER', at, `${quoted(source)} is not a finite number`);
    else if (
      Object.is(value, -0) ||
      (value === 0 && /[1-9]/.test(source.split(/[eE]/)[0] ?? '') && !/^0[xo]/.test(source))
    ) {
      this.#refuse('NUMBER', at, `${quoted(source)} is a zero in disguise; write 0`);
    } else if (/^[-+]?0[0-9]/.test(source)) {
      const octal = /^0+[0-7]+$/.test(source) ? `; write 0o${source.replace(/^0+/, '')} if it is octal` : '';
      this.#refuse(
        'NUMBER_FORM',
        at,
        `${quoted(source)} can be read in two ways: write it without the leading zero, or quote it${octal}`,
      );
    } else if (/^[-+]?[0-9]+$|^0[xo]/.test(source) && !Number.isSafeInteger(value)) {
      this.#refuse(
        'INT_RANGE',
        at,
        `${quoted(source)} does not fit an exact integer (at most ${Number.MAX_SAFE_INTEGER})`,
      );
    }
  }

  #refuse(code: string, at: Place, message: string, hint?: string): Located {
    this.#problems.push(problem(code, at, message, hint));
    return { kind: 'scalar', at, value: null };
  }
}
