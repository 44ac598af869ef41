/** One record of published trajectories, from its shape to ids and mask. Pure: a record that is of no use is data. */
import type { Trajectory } from '../../../schemas/trajectory.ts';
import { isExactMatch } from '../answer.ts';
import { parseAction } from '../parse.ts';
import { renderTrajectory, type Tokenizer, type ToolName } from '../prompt.ts';
import { type CleaningRules, cleanConversation, DROP_REASONS, type Removed } from './clean-conversation.ts';
import { isRecord, type WrittenTurn } from './conversation.ts';
import { conversationOf, type TrajectoryFormat } from './read-record.ts';
import type { ShownTurn, WrittenTrajectory } from './written-trajectory.ts';

export interface ImportOptions {
  clean: (CleaningRules & { verdict: string | null }) | null;
  /** Of the agent: its prompt describes them. */
  tools: readonly string[];
  /** Longer trajectories are dropped whole: a cut one would teach to stop in the middle. */
  context_length: number;
  tokenizer: Tokenizer;
}

/** Why a record that could be read is not trained on. Each falls under one, the first that holds. */
export const IMPORT_DROPS = [...DROP_REASONS, 'context_too_long', 'over_count'] as const;
export type ImportDrop = (typeof IMPORT_DROPS)[number];

export type Written = Omit<WrittenTrajectory, 'trajectory_id' | 'task_id' | 'sample' | 'checkpoint'>;

interface Read {
  /** Actions of the record before cleaning. */
  turnsBefore: number;
  removed: Removed;
}
export type ImportedRecord =
  | { status: 'bad'; reason: string }
  | ({ status: 'dropped'; reason: ImportDrop } & Read)
  | ({ status: 'kept'; written: Written; rewritten: number } & Read);

export function importRecord(row: unknown, format: TrajectoryFormat, options: ImportOptions): ImportedRecord {
  const conversation = conversationOf(row, format);
  if (typeof conversation === 'string') return { status: 'bad', reason: conversation };
  const { clean, tools, tokenizer } = options;
  const verdict = clean?.verdict && isRecord(row) ? verdictOf(row[clean.verdict]) : null;
  const cleaned = cleanConversation(conversation, clean, verdict);
  const read: Read = { turnsBefore: conversation.turns.length, removed: cleaned.removed };
  if (cleaned.status === 'dropped') return { status: 'dropped', reason: cleaned.reason, ...read };

  const { question } = conversation;
  const turns = cleaned.turns.map((turn, index) => shownTurn(turn, index === cleaned.turns.length - 1, tools));
  const rendered = renderTrajectory(tokenizer, { question, tools: tools as ToolName[], turns });
  if (rendered.token_ids.length > options.context_length)
    return { status: 'dropped', reason: 'context_too_long', ...read };
  const reference = conversation.reference ?? { answer: '', aliases: [] };
  const { answer } = cleaned;
  const written: Written = {
    question,
    reference,
    isCorrect: verdict ?? (answer !== null && isExactMatch(answer, reference)),
    answer,
    termination: endOf(cleaned.turns),
    turns,
    rendered,
  };
  return { status: 'kept', written, rewritten: cleaned.turns.filter((turn) => turn.isRewritten).length, ...read };
}

/** Nothing was said after the last observation, so nothing of it would be learnt. */
function shownTurn({ text, observations }: WrittenTurn, isLast: boolean, tools: readonly string[]): ShownTurn {
  const action = parseAction(text, tools);
  const tool = action.kind === 'tool_call' ? action.tool : action.kind === 'answer' ? 'answer' : null;
  return { action: text, tool, observation: isLast ? null : (observations[0] ?? '') };
}

/** A record without an answer does not say what stopped it. */
const endOf = (turns: readonly WrittenTurn[]): Trajectory['termination'] =>
  turns.at(-1)?.answer === null ? 'max_turns' : 'answer';

const YES = new Set(['true', '1', 'yes', 'correct', 'right']);
const NO = new Set(['false', '0', 'no', 'incorrect', 'wrong']);

/** A judge's word in whatever spelling; null when it is none. */
function verdictOf(value: unknown): boolean | null {
  const word = String(value ?? '')
    .trim()
    .toLowerCase();
  return YES.has(word) ? true : NO.has(word) ? false : null;
}
