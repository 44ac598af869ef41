/**
 * Reads one action of the policy. The format rules are those DR-Venus penalises by turn
 * (inclusionAI/DR-Venus, RL/verl/utils/reward_score/format_checker.py): thinking first, then exactly one tool
 * call or one answer, and nothing around it. Malformed output is data, never an exception.
 */
import JSON5 from 'json5';

export type Action =
  | { kind: 'tool_call'; tool: string; args: Record<string, unknown> }
  | { kind: 'answer'; answer: string }
  | { kind: 'malformed'; reason: string };

interface Tag {
  name: 'think' | 'tool_call' | 'answer';
  closes: boolean;
  start: number;
  end: number;
}

/** @param tools when given, a call of any other tool is malformed. */
export function parseAction(text: string, tools?: readonly string[]): Action {
  const tags = findTags(text);
  const thoughts = tags.filter(({ name }) => name === 'think');
  const lastThought = thoughts.at(-1);
  if (lastThought === undefined) return malformed('there is no <think>…</think>');
  if (!arePairs(thoughts)) return malformed('<think> tags are not paired');
  if (text.slice(0, thoughts[0]?.start).trim() !== '') return malformed('text stands before <think>');

  const calls = tags.filter(({ name }) => name === 'tool_call');
  const answers = tags.filter(({ name }) => name === 'answer');
  if (calls.length > 0 && answers.length > 0) return malformed('a turn is a tool call or an answer, not both');
  const wrapper = calls.length > 0 ? calls : answers;
  const [open, close] = wrapper;
  if (open === undefined) return malformed('there is neither <tool_call> nor <answer>');
  if (close === undefined || wrapper.length !== 2 || !arePairs(wrapper)) {
    return malformed(`there must be exactly one <${open.name}>…</${open.name}>`);
  }
  if (open.start < lastThought.end) return malformed(`<${open.name}> must come after </think>`);
  if (text.slice(lastThought.end, open.start).trim() !== '')
    return malformed(`text stands between </think> and <${open.name}>`);
  if (text.slice(close.end).trim() !== '') return malformed(`text stands after </${open.name}>`);

  const body = text.slice(open.end, close.start).trim();
  if (body === '') return malformed(`<${open.name}> is empty`);
  return open.name === 'answer' ? { kind: 'answer', answer: body } : parseCall(body, tools);
}

function parseCall(body: string, tools: readonly string[] | undefined): Action {
  const call = parseJson(body);
  if (!isObject(call)) return malformed('the tool call is not a JSON object');
  const { name, arguments: args } = call;
  if (typeof name !== 'string' || name === '') return malformed('the tool call has no "name"');
  if (!isObject(args)) return malformed('the tool call has no object "arguments"');
  if (tools !== undefined && !tools.includes(name)) {
    return malformed(
      `there is no tool ${JSON.stringify(name.slice(0, 40))}; ${tools.length === 0 ? 'there are no tools' : `tools: ${tools.join(', ')}`}`,
    );
  }
  return { kind: 'tool_call', tool: name, args };
}

/** Above this size only strict JSON is read: JSON5's reader is a thousand times slower. */
const JSON5_CHARACTERS = 20_000;

/** JSON, or JSON5 where it is short; undefined when it is neither. */
export function parseJson(body: string): unknown {
  try {
    return JSON.parse(body);
  } catch {
    if (body.length > JSON5_CHARACTERS) return undefined;
  }
  try {
    return JSON5.parse(body);
  } catch {
    return undefined;
  }
}

/** One pass; an exact alternation, so nothing can backtrack. */
function findTags(text: string): Tag[] {
  return Array.from(text.matchAll(/<(\/?)(think|tool_call|answer)>/g), ({ index, 0: match, 1: slash, 2: name }) => ({
    name: name as Tag['name'],
    closes: slash === '/',
    start: index,
    end: index + match.length,
  }));
}

/** Open, close, open, close …: never nested, never left open. */
function arePairs(tags: readonly Tag[]): boolean {
  return tags.length % 2 === 0 && tags.every(({ closes }, index) => closes === (index % 2 === 1));
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function malformed(reason: string): Action {
  return { kind: 'malformed', reason };
}
