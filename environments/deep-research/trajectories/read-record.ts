/**
 * Records of published trajectories, each shape into one conversation. What is read is text that strangers wrote: a
 * record that does not fit is a reason, never an exception.
 */
import type { Reference } from '../answer.ts';
import {
  type Conversation,
  callOf,
  isRecord,
  readWritten,
  type WrittenAction,
  type WrittenTurn,
  writtenFromParts,
} from './conversation.ts';

export type TrajectoryFormat = 'messages' | 'sharegpt' | 'webdancer' | 'redsearcher' | 'literesearcher';
type Row = Record<string, unknown>;

/** The shape of a record, or null when it is none of ours. */
export function formatOf(row: unknown): TrajectoryFormat | null {
  if (!isRecord(row)) return null;
  if (Array.isArray(row['steps'])) return 'literesearcher';
  if (listIn(row['conversations']) !== null) return 'sharegpt';
  if (listIn(row['messages']) === null) return null;
  if (isRecord(row['meta']) || 'gt' in row) return 'redsearcher';
  return webDancerQuestion(row) === null ? 'messages' : 'webdancer';
}

/** The conversation of one record, or why there is none. */
export function conversationOf(row: unknown, format: TrajectoryFormat): Conversation | string {
  if (!isRecord(row)) return 'not a JSON object';
  switch (format) {
    case 'messages':
      return fromMessages(row['messages'], { question: textOf(row['question']), reference: referenceIn(row) });
    case 'sharegpt':
      return fromMessages(shareGptMessages(row['conversations']), {
        column: 'conversations',
        question: textOf(row['question']),
        reference: referenceIn(row),
      });
    case 'webdancer':
      return fromMessages(row['messages'], { question: webDancerQuestion(row), reference: referenceIn(row) });
    case 'redsearcher':
      return fromRedSearcher(row);
    case 'literesearcher':
      return fromSteps(row);
  }
}

/** Raw rows are logs of a tool loop, without a system message; clean ones are what DR-Venus makes of them. */
function fromRedSearcher(row: Row): Conversation | string {
  const { meta } = row;
  if (!isRecord(meta))
    return fromMessages(row['messages'], { question: textOf(row['question']), reference: referenceIn(row) });
  const question = textOf(meta['question']);
  return question === null
    ? 'no meta.question'
    : fromMessages(row['messages'], { question, reference: asReference(meta['answer']), isRaw: true });
}

interface Known {
  /** Null: the first user message. */
  question: string | null;
  reference: Reference | null;
  isRaw?: boolean;
  column?: string;
}

function fromMessages(
  given: unknown,
  { question, reference, isRaw = false, column = 'messages' }: Known,
): Conversation | string {
  const messages = listIn(given);
  if (messages === null) return `no ${column}`;
  const turns: WrittenTurn[] = [];
  let asked: string | null = null;
  let disorder: string | null = null;
  for (const [at, message] of messages.entries()) {
    // A first message that explains the form may spell out a response; its question is known from elsewhere then.
    const user: UserMessage = asked === null ? (question === null ? null : 'question') : isRaw ? 'observation' : null;
    const found: ReadMessage | null = isRecord(message) ? readMessage(message, user) : null;
    if (found === null) return `${column}[${at}] has no role and text`;
    if (found.kind === 'question' && asked === null && turns.length === 0) asked = found.text;
    else if (found.kind === 'action') turns.push({ ...found.action, observations: [] });
    else if (found.kind === 'observation' && turns.length > 0) turns.at(-1)?.observations.push(found.text);
    else if (found.kind !== 'system' || at > 0) disorder ??= `${column}[${at}] (${String(found.role)})`;
  }
  if (asked === null) disorder ??= `${column} (no question)`;
  const text = question ?? asked;
  return text === null ? `no question in ${column}` : { question: text, reference, turns, disorder, isRaw };
}

type ReadMessage = { role: unknown } & (
  | { kind: 'system' }
  | { kind: 'question' | 'observation'; text: string }
  | { kind: 'action'; action: WrittenAction }
);

/** What a user's message is; null when its tags say so. */
type UserMessage = 'question' | 'observation' | null;

function readMessage(message: Row, user: UserMessage): ReadMessage | null {
  const { role, tool_calls } = message;
  const calls = listIn(tool_calls) ?? [];
  const content = contentOf(message['content']) ?? (calls.length > 0 ? '' : null);
  if (content === null) return null;
  switch (role) {
    case 'system':
      return { role, kind: 'system' };
    case 'user': {
      const kind = user ?? (content.includes('<tool_response>') ? 'observation' : 'question');
      return kind === 'observation'
        ? { role, kind: 'observation', text: observationIn(content) }
        : { role, kind: 'question', text: content };
    }
    case 'tool':
      return { role, kind: 'observation', text: observationIn(content) };
    case 'assistant':
      return { role, kind: 'action', action: actionIn(content, calls, contentOf(message['reasoning_content'])) };
    default:
      return null;
  }
}

/**
 * With columns for its parts, a message is a thought and a call, or a thought and an answer: text before a call is
 * its thought, text without a call is the answer.
 */
function actionIn(content: string, calls: readonly unknown[], reasoning: string | null): WrittenAction {
  if (calls.length === 0 && reasoning === null) return readWritten(content);
  const read = readWritten(content);
  const said = read.thought === null && read.answer === null && content.trim() !== '' ? content.trim() : null;
  const structured = calls.map((call) => {
    const { name, arguments: args } = isRecord(call) && isRecord(call['function']) ? call['function'] : (call as Row);
    return callOf(name, args);
  });
  const all = [...read.calls, ...structured.filter((call) => call !== null)];
  return writtenFromParts({
    thought: blankIsNull(reasoning) ?? read.thought ?? (all.length > 0 ? said : null),
    calls: all,
    hasUnreadableCall: read.hasUnreadableCall || structured.includes(null),
    answer: read.answer ?? (all.length === 0 ? said : null),
  });
}

/** What stands inside the tags; several responses of one message follow each other. */
function observationIn(content: string): string {
  const blocks = [...content.matchAll(/<tool_response>\n?([\s\S]*?)\n?<\/tool_response>/g)].map(
    (match) => match[1] as string,
  );
  return blocks.length === 0 ? content : blocks.join('\n');
}

const SHAREGPT_ROLES: Readonly<Record<string, string>> = {
  system: 'system',
  human: 'user',
  user: 'user',
  gpt: 'assistant',
  assistant: 'assistant',
  function_call: 'assistant',
  tool: 'tool',
  observation: 'tool',
  function_response: 'tool',
};

function shareGptMessages(conversations: unknown): unknown {
  return listIn(conversations)?.map((one) => {
    if (!isRecord(one)) return one;
    const { from, value } = one;
    const isBareCall = from === 'function_call' && typeof value === 'string' && !value.includes('<tool_call>');
    return {
      role: SHAREGPT_ROLES[String(from)],
      content: isBareCall ? withCallTags(value) : value,
    };
  });
}

/** `function_call` turns hold the bare JSON of a call, after the thought where there is one. */
function withCallTags(value: string): string {
  const [call = '', ...thought] = value.split(/(?<=<\/think>)/).reverse();
  return `${thought.reverse().join('')}\n<tool_call>\n${call.trim()}\n</tool_call>`;
}

const WEBDANCER_QUESTION = '\n\nUser: ';

/** Its first user message explains the tools and the form, and ends with the question. */
function webDancerQuestion(row: Row): string | null {
  const first = listIn(row['messages'])?.find((message) => isRecord(message) && message['role'] === 'user');
  const content = isRecord(first) ? contentOf(first['content']) : null;
  const at = content?.startsWith('A conversation between User and Assistant.')
    ? content.lastIndexOf(WEBDANCER_QUESTION)
    : -1;
  return content === null || at === -1 ? null : textOf(content.slice(at + WEBDANCER_QUESTION.length));
}

/** LiteResearcher's published cases: steps with think, tool_calls and answer as columns. */
function fromSteps(row: Row): Conversation | string {
  const question = textOf(row['question']);
  if (question === null) return 'no question';
  const steps = listIn(row['steps']);
  if (steps === null) return 'no steps';
  const turns: WrittenTurn[] = [];
  let disorder: string | null = null;
  for (const [at, step] of steps.entries()) {
    if (!isRecord(step)) return `steps[${at}] is not an object`;
    if (step['type'] === 'assistant') turns.push({ ...actionOfStep(step), observations: [] });
    else if (step['type'] === 'tool_response' && turns.length > 0)
      turns.at(-1)?.observations.push(observationIn(contentOf(step['content']) ?? ''));
    else if (step['type'] !== 'question' || at > 0) disorder ??= `steps[${at}] (${String(step['type'])})`;
  }
  return { question, reference: referenceIn(row), turns, disorder, isRaw: false };
}

function actionOfStep({ think, tool_calls, answer }: Row): WrittenAction {
  const calls = (listIn(tool_calls) ?? []).map((call) => {
    if (!isRecord(call)) return null;
    const { name, arguments: args, ...beside } = call;
    return callOf(name, args ?? beside);
  });
  return writtenFromParts({
    thought: textOf(think),
    calls: calls.filter((call) => call !== null),
    hasUnreadableCall: calls.includes(null),
    answer: textOf(answer),
  });
}

const REFERENCE_COLUMNS = ['answer', 'gt', 'reference_answer'];

function referenceIn(row: Row): Reference | null {
  const column = REFERENCE_COLUMNS.find((name) => row[name] !== undefined && row[name] !== null);
  return column === undefined ? null : asReference(row[column]);
}

/** A text, or a list of which the first counts and the others are other spellings; WebDancer has a list in a list. */
function asReference(value: unknown): Reference | null {
  const [answer, ...aliases] = [value]
    .flat(2)
    .map(textOf)
    .filter((text) => text !== null);
  return answer === undefined ? null : { answer, aliases };
}

/** Parquet exports hold a list as JSON in a text now and then. */
function listIn(value: unknown): unknown[] | null {
  if (Array.isArray(value)) return value;
  if (typeof value !== 'string' || !value.startsWith('[')) return null;
  try {
    return JSON.parse(value) as unknown[];
  } catch {
    return null;
  }
}

/** A text, or the text parts of a multi-part message. */
function contentOf(value: unknown): string | null {
  if (typeof value === 'string') return wellFormed(value);
  if (!Array.isArray(value)) return null;
  const texts = value.map((part) => (isRecord(part) && typeof part['text'] === 'string' ? part['text'] : null));
  return texts.includes(null) ? null : wellFormed(texts.join(''));
}

function textOf(value: unknown): string | null {
  return typeof value === 'string' || typeof value === 'number' ? blankIsNull(wellFormed(String(value))) : null;
}

function blankIsNull(text: string | null): string | null {
  return text === null || text.trim() === '' ? null : text.trim();
}

/** Parquet text holds neither NUL nor halves of a surrogate pair. */
function wellFormed(text: string): string {
  return Buffer.from(text.replaceAll('\0', '\uFFFD')).toString();
}
