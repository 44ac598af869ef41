/**
 * DR-Venus's cleaning (SFT/data_clean/prepare_trajectories.py): turns of other tools and repeated calls are taken out
 * with what they got back; what is left must be well formed and correct. The order is fixed, so that a conversation is
 * dropped for one reason.
 */
import { isExactMatch } from '../answer.ts';
import { parseAction } from '../parse.ts';
import { problemOfCall, type ToolCall } from '../tools.ts';
import type { Conversation, WrittenTurn } from './conversation.ts';

export interface CleaningRules {
  tools: readonly string[];
  drop_repeated_calls: boolean;
  require_valid_format: boolean;
  require_correct: boolean;
}

/** In the order in which they are looked for; `context_too_long` and `over_count` come after all of these. */
export const DROP_REASONS = [
  'bad_roles',
  'no_turns',
  'no_think',
  'several_calls',
  'unreadable_call',
  'answer_before_end',
  'no_tool_call',
  'bad_arguments',
  'call_in_answer',
  'no_answer',
  'malformed',
  'correctness_unknown',
  'wrong_answer',
] as const;
export type DropReason = (typeof DROP_REASONS)[number];

/** Turns that were taken out of a conversation. */
export interface Removed {
  /** By name of the tool. */
  other_tools: Record<string, number>;
  repeated_calls: number;
  unreadable: number;
}

export type Cleaned =
  | { status: 'kept'; turns: WrittenTurn[]; answer: string | null; removed: Removed }
  | { status: 'dropped'; reason: DropReason; removed: Removed };

/**
 * Without rules only what could not be rendered is dropped.
 *
 * @param verdict of whoever made the record; null where there is none, then the reference decides by exact match.
 */
export function cleanConversation(
  conversation: Conversation,
  rules: CleaningRules | null,
  verdict: boolean | null,
): Cleaned {
  const removed: Removed = { other_tools: {}, repeated_calls: 0, unreadable: 0 };
  const turns = rules === null ? conversation.turns : takeOut(conversation, rules, removed);
  const answer = turns.at(-1)?.answer ?? null;
  const reason =
    disorderOf(conversation, turns) ??
    (rules?.require_valid_format ? formatProblem(turns, rules.tools) : null) ??
    (rules?.require_correct ? wrongness(conversation, answer, verdict) : null);
  return reason === null ? { status: 'kept', turns, answer, removed } : { status: 'dropped', reason, removed };
}

function takeOut({ turns, isRaw }: Conversation, rules: CleaningRules, removed: Removed): WrittenTurn[] {
  const seen = new Set<string>();
  return turns.filter((turn, index) => {
    const others = turn.calls.filter(({ tool }) => !rules.tools.includes(tool.toLowerCase()));
    for (const { tool } of others) removed.other_tools[tool] = (removed.other_tools[tool] ?? 0) + 1;
    if (others.length > 0) return false;
    if (isRaw && index < turns.length - 1 && isUnreadable(turn)) {
      removed.unreadable += 1;
      return false;
    }
    const signatures = turn.calls.map(signature);
    const isRepeated = signatures.length > 0 && signatures.every((call) => seen.has(call));
    for (const call of signatures) seen.add(call);
    if (rules.drop_repeated_calls && isRepeated) removed.repeated_calls += 1;
    return !(rules.drop_repeated_calls && isRepeated);
  });
}

/** A log's turn without a thought or a call says nothing that could be learnt. */
const isUnreadable = ({ thought, calls, hasUnreadableCall }: WrittenTurn): boolean =>
  thought === null || calls.length === 0 || hasUnreadableCall;

/** The same queries or addresses in any order; what a page is read for does not count. */
function signature({ tool, args }: ToolCall): string {
  const given = args['query'] ?? args['url'];
  const values = (Array.isArray(given) ? given : [given]).map((value) => String(value ?? '').trim());
  return JSON.stringify([tool, ...[...new Set(values)].filter((value) => value !== '').sort()]);
}

/** An agent's conversation: a question, then actions with one observation each, and the last with none that counts. */
function disorderOf({ disorder }: Conversation, turns: readonly WrittenTurn[]): DropReason | null {
  const unanswered = turns.slice(0, -1).some(({ observations }) => observations.length !== 1);
  if (disorder !== null || unanswered) return 'bad_roles';
  return turns.length === 0 ? 'no_turns' : null;
}

function formatProblem(turns: readonly WrittenTurn[], tools: readonly string[]): DropReason | null {
  for (const [index, turn] of turns.entries()) {
    const problem = index < turns.length - 1 ? callProblem(turn) : answerProblem(turn);
    if (problem !== null) return problem;
    if (parseAction(turn.text, tools).kind === 'malformed') return 'malformed';
  }
  return null;
}

function callProblem({ thought, calls, hasUnreadableCall, answer }: WrittenTurn): DropReason | null {
  if (thought === null) return 'no_think';
  if (calls.length > 1) return 'several_calls';
  if (hasUnreadableCall) return 'unreadable_call';
  if (answer !== null) return 'answer_before_end';
  const [call] = calls;
  if (call === undefined) return 'no_tool_call';
  return problemOfCall(call) === undefined ? null : 'bad_arguments';
}

function answerProblem({ thought, calls, hasUnreadableCall, answer }: WrittenTurn): DropReason | null {
  if (thought === null) return 'no_think';
  if (calls.length > 0 || hasUnreadableCall) return answer === null ? 'no_answer' : 'call_in_answer';
  return answer === null ? 'no_answer' : null;
}

function wrongness({ reference }: Conversation, answer: string | null, verdict: boolean | null): DropReason | null {
  if (verdict === null && reference === null) return 'correctness_unknown';
  const isCorrect = verdict ?? (answer !== null && reference !== null && isExactMatch(answer, reference));
  return isCorrect ? null : 'wrong_answer';
}
