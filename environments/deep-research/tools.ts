/**
 * The two tools as the agent sees them: strict arguments in, compact text inside the observation's token budget
 * out. A wrong argument is an answer for the agent; an outage of the world throws.
 */
import type { VisitResult, World } from '../environment.ts';
import type { Fault } from './faults.ts';
import { escapeText, type Tokenizer } from './prompt.ts';

export interface ToolCall {
  tool: string;
  args: Record<string, unknown>;
}

export interface ToolOptions {
  tokenizer: Pick<Tokenizer, 'encodeText' | 'decode'>;
  /** Budget of the observation's text, in tokens of the policy. */
  observationTokens: number;
  searchResults: number;
  denyUrls?: readonly string[];
  /** What goes wrong with this call, where that is declared. */
  fault?: Fault | null;
}

export interface ToolResult {
  /** Escaped; at most `observationTokens` long. */
  text: string;
  status: 'ok' | 'tool_error' | `fault_${Fault}`;
  tool: string;
  /** Search: the results, best first. Visit: the pages that were read. */
  urls: string[];
  latency_ms: number;
  /** Hits of the leak guard. */
  denied: number;
}

type Outcome = Pick<ToolResult, 'text' | 'status' | 'urls' | 'denied'>;

const MAX_QUERIES = 5;
const MAX_QUERY_CHARACTERS = 500;
const MAX_URLS = 5;
const MAX_URL_CHARACTERS = 2_000;
const MAX_GOAL_CHARACTERS = 2_000;

/** Run one call. Throws only when the world itself is out of order. */
export async function runTool(world: World, call: ToolCall, options: ToolOptions): Promise<ToolResult> {
  const started = performance.now();
  const { text, ...outcome } = await dispatch(world, call, options);
  const fitted = shorten(escapeText(text), options.observationTokens, options.tokenizer);
  return { ...outcome, text: fitted, tool: call.tool, latency_ms: performance.now() - started };
}

async function dispatch(world: World, call: ToolCall, options: ToolOptions): Promise<Outcome> {
  const problem = problemOfCall(call);
  if (problem !== undefined) return toolError(problem);
  const { tool, args } = call;
  return tool === 'search'
    ? search(world, args.query as string[], options)
    : visit(world, args.url as string[], args.goal as string, options);
}

/** Why a call cannot be run, in words for the agent; undefined when it can. */
export function problemOfCall({ tool, args }: ToolCall): string | undefined {
  switch (tool) {
    case 'search': {
      const problem =
        unknownArguments(args, ['query']) ?? badStrings('query', args.query, MAX_QUERIES, MAX_QUERY_CHARACTERS);
      return problem && `search: ${problem}`;
    }
    case 'visit': {
      const problem =
        unknownArguments(args, ['url', 'goal']) ??
        badStrings('url', args.url, MAX_URLS, MAX_URL_CHARACTERS) ??
        badGoal(args.goal);
      return problem && `visit: ${problem}`;
    }
    default:
      return `there is no tool ${JSON.stringify(tool.slice(0, 40))}`;
  }
}

async function search(world: World, queries: string[], options: ToolOptions): Promise<Outcome> {
  if (options.fault === 'error') return OUT_OF_ORDER;
  if (options.fault === 'empty') return { text: 'No results.', status: 'fault_empty', urls: [], denied: 0 };
  const { results, denied } = await world.search(queries, { limit: options.searchResults, ...deny(options) });
  if (results.length === 0) return { text: 'No results.', status: 'ok', urls: [], denied };

  const heads = results.map(({ title, url }, index) => `${index + 1}. ${oneLine(title)}\n${url}\n`);
  const headTokens = heads.reduce((sum, head) => sum + countTokens(options, head) + 1, 0);
  // Every result gets the same share, so the first snippet cannot push out the last.
  const share = Math.max(0, Math.floor((options.observationTokens - headTokens) / results.length));
  const text = results
    .map(({ snippet }, index) => heads[index] + shorten(escapeText(oneLine(snippet)), share, options.tokenizer))
    .map((result) => result.trimEnd())
    .join('\n');
  return { text, status: 'ok', urls: results.map(({ url }) => url), denied };
}

async function visit(world: World, urls: string[], goal: string, options: ToolOptions): Promise<Outcome> {
  if (options.fault === 'error') return OUT_OF_ORDER;
  // Room for the heading of each page: its URL, a title of usual length, line ends.
  const headings = urls.reduce((sum, url) => sum + countTokens(options, url) + 20, 0);
  const pages = await world.visit(urls, goal, {
    maxTokens: Math.max(32, options.observationTokens - headings),
    countTokens: (text) => countTokens(options, text),
    ...deny(options),
  });
  const text = pages
    .map((page) => damaged(page, options.fault))
    .map((page) =>
      page.status === 'ok' ? `${oneLine(page.title)}\n${page.url}\n${page.text}` : `${page.url}\n${page.message}`,
    );
  const read = pages.filter(({ status }) => status === 'ok');
  return {
    text: text.join('\n\n'),
    status: read.length === 0 ? 'tool_error' : options.fault ? `fault_${options.fault}` : 'ok',
    urls: read.map(({ url }) => url),
    denied: pages.filter(({ status }) => status === 'denied').length,
  };
}

/** What a service says that is out of order: declared, so it is an observation and no outage. */
const OUT_OF_ORDER: Outcome = {
  text: 'Error: the service did not answer.',
  status: 'fault_error',
  urls: [],
  denied: 0,
};

/** An empty page keeps its heading; a truncated one keeps the first half of its text. */
function damaged(page: VisitResult, fault: Fault | null | undefined): VisitResult {
  if (page.status !== 'ok' || !fault) return page;
  const characters = [...page.text];
  const kept = fault === 'truncated' ? characters.slice(0, Math.ceil(characters.length / 2)) : [];
  return { ...page, text: kept.join(''), truncated: true };
}

function unknownArguments(args: Record<string, unknown>, known: readonly string[]): string | undefined {
  const unknown = Object.keys(args).find((name) => !known.includes(name));
  return unknown === undefined
    ? undefined
    : `unknown argument ${JSON.stringify(unknown.slice(0, 40))}; arguments: ${known.join(', ')}`;
}

function badStrings(name: string, value: unknown, most: number, characters: number): string | undefined {
  if (!Array.isArray(value) || value.length === 0) return `"${name}" must be a list of strings`;
  if (value.length > most) return `"${name}" may have at most ${most} entries`;
  for (const item of value) {
    if (typeof item !== 'string' || item.trim() === '') return `"${name}" must be a list of strings that are not empty`;
    if (item.length > characters) return `an entry of "${name}" may have at most ${characters} characters`;
    if (item.includes('\0')) return `"${name}" may not contain NUL`;
  }
  return undefined;
}

function badGoal(value: unknown): string | undefined {
  if (typeof value !== 'string' || value.trim() === '') return '"goal" must say what to look for, as a string';
  if (value.length > MAX_GOAL_CHARACTERS) return `"goal" may have at most ${MAX_GOAL_CHARACTERS} characters`;
  return value.includes('\0') ? '"goal" may not contain NUL' : undefined;
}

function toolError(problem: string): Outcome {
  return { text: `Error: ${problem}.`, status: 'tool_error', urls: [], denied: 0 };
}

function deny({ denyUrls }: ToolOptions): { denyUrls?: readonly string[] } {
  return denyUrls === undefined || denyUrls.length === 0 ? {} : { denyUrls };
}

function countTokens({ tokenizer }: ToolOptions, text: string): number {
  return tokenizer.encodeText(text).length;
}

function oneLine(text: string): string {
  return text.replace(/\s+/g, ' ').trim();
}

/** The longest beginning that is at most `tokens` long and does not end inside a character. */
function shorten(text: string, tokens: number, tokenizer: ToolOptions['tokenizer']): string {
  if (tokens <= 0) return '';
  const ids = tokenizer.encodeText(text);
  for (let length = tokens; ids.length > length; length -= 1) {
    const cut = tokenizer.decode(ids.slice(0, length)).replace(/\uFFFD+$/, '');
    // Cutting can merge the last pieces differently; text, not ids, is what will be tokenised.
    if (tokenizer.encodeText(cut).length <= tokens) return cut;
  }
  return text;
}
