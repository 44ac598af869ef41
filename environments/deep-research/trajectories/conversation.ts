/** What a foreign record says once its shape no longer matters: a question, its answer, and turns. */
import { isDeepStrictEqual } from 'node:util';
import type { Reference } from '../answer.ts';
import { parseAction, parseJson } from '../parse.ts';
import type { ToolCall } from '../tools.ts';

export interface Conversation {
  question: string;
  /** Null when the record holds no reference answer. */
  reference: Reference | null;
  turns: WrittenTurn[];
  /** Messages that an agent's conversation cannot hold, and where; null when there are none. */
  disorder: string | null;
  /** The log of a tool loop, in which a turn that cannot be read is noise, and not the end of the record. */
  isRaw: boolean;
}

export interface WrittenTurn extends WrittenAction {
  /** An agent's turn has exactly one, and its last turn has none. */
  observations: string[];
}

/** An assistant message. */
export interface WrittenAction {
  /** As it is trained: what was written where our own parser reads that, else the same action in our form. */
  text: string;
  thought: string | null;
  /** With our names of arguments. */
  calls: ToolCall[];
  /** A tool call was there that is no JSON object with a name. */
  hasUnreadableCall: boolean;
  answer: string | null;
  isRewritten: boolean;
}

/**
 * Read an assistant message as DR-Venus does (SFT/data_clean/prepare_trajectories.py): the first thought, the calls and
 * the last answer after it, whatever stands around them. Text that our parser accepts as it stands is never changed.
 */
export function readWritten(written: string): WrittenAction {
  const ended = written.replace(/<\|im_end\|>\s*$/, ''); // the renderer ends an action itself
  // Models that are prompted with an open <think> do not write it again.
  const text = ended.includes('</think>') && !ended.includes('<think>') ? `<think>\n${ended}` : ended;
  const thought = /<think>([\s\S]*?)<\/think>/i.exec(text);
  const rest = thought === null ? text : text.slice(thought.index + thought[0].length);
  const bodies = [...rest.matchAll(/<tool_call>([\s\S]*?)<\/tool_call>/gi)].map((match) => match[1] as string);
  const calls = bodies.map(readCall);
  const answer = [...rest.matchAll(/<answer>([\s\S]*?)<\/answer>/gi)].at(-1)?.[1]?.trim() ?? '';
  const parts = {
    thought: blankIsNull(thought?.[1]),
    calls: calls.filter((call) => call !== null),
    hasUnreadableCall: calls.includes(null),
    answer: answer === '' ? null : answer,
  };
  const action = parseAction(text);
  const isOurs =
    action.kind === 'answer' ||
    (action.kind === 'tool_call' && parts.calls.length === 1 && sameCall(action, parts.calls[0] as ToolCall));
  return isOurs ? { ...parts, text, isRewritten: false } : inOurForm(parts, text);
}

/** An assistant message whose parts are columns of their own. */
export function writtenFromParts(
  parts: Pick<WrittenAction, 'thought' | 'calls' | 'answer' | 'hasUnreadableCall'>,
): WrittenAction {
  return inOurForm(parts, [parts.thought, parts.answer].filter((part) => part !== null).join('\n'));
}

/** `written` stands when the parts are not those of one action. */
function inOurForm(parts: Omit<WrittenAction, 'text' | 'isRewritten'>, written: string): WrittenAction {
  const { thought, calls, answer, hasUnreadableCall } = parts;
  const [call] = calls;
  const isOneAction = !hasUnreadableCall && (answer === null ? calls.length === 1 : calls.length === 0);
  if (thought === null || !isOneAction) return { ...parts, text: written, isRewritten: false };
  const head = `<think>${withoutTags(thought)}</think>\n`;
  const text =
    call === undefined
      ? `${head}<answer>${answer}</answer>`
      : `${head}<tool_call>${JSON.stringify({ name: call.tool, arguments: call.args })}</tool_call>`;
  return { ...parts, text, isRewritten: true };
}

/** A thought that mentions our tags would be read as several actions; DR-Venus takes them out, too. */
const withoutTags = (thought: string): string =>
  thought.replace(/<\/?(?:think|tool_call|tool_response|answer|summary)>/gi, '');

/** The call of a `<tool_call>` block; code that follows its JSON is a matter of other tools. */
function readCall(body: string): ToolCall | null {
  const json = (body.split('<code>')[0] as string).trim();
  const call = parseJson(json);
  return isRecord(call) ? callOf(call['name'], call['arguments']) : null;
}

/** Arguments may be JSON in a string, as in the chat APIs. */
export function callOf(name: unknown, given: unknown): ToolCall | null {
  const args = typeof given === 'string' ? parseJson(given) : given;
  if (typeof name !== 'string' || name === '' || !isRecord(args)) return null;
  return { tool: name, args: ourArguments(name, args) };
}

/** What search and visit are called with elsewhere: `queries`, `urls`, one text in the place of a list. */
function ourArguments(tool: string, args: Record<string, unknown>): Record<string, unknown> {
  const { query, queries, url, urls, goal, ...others } = args;
  if (tool === 'search') return { query: listOf(query ?? queries), ...present({ url, urls, goal }), ...others };
  if (tool !== 'visit') return args;
  const wanted = Array.isArray(goal) ? goal[0] : goal;
  return { url: listOf(url ?? urls), ...present({ goal: wanted, query, queries }), ...others };
}

const listOf = (value: unknown): unknown => (typeof value === 'string' ? [value] : value);
const present = (args: Record<string, unknown>): Record<string, unknown> =>
  Object.fromEntries(Object.entries(args).filter(([, value]) => value !== undefined && value !== null));

const sameCall = (action: { tool: string; args: unknown }, call: ToolCall): boolean =>
  action.tool === call.tool && isDeepStrictEqual(action.args, call.args);

const blankIsNull = (text: string | undefined): string | null =>
  text === undefined || text.trim() === '' ? null : text.trim();

export const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
