import { createHash } from 'node:crypto';
import { CAPABILITIES, type Capability, type Task, type TaskFormat } from '../../../schemas/task.ts';
import { inMix } from './in-mix.ts';
import { apportion } from './quotas.ts';
import { hashFraction } from './seeded.ts';

/** Which columns hold what. */
export interface TaskColumns {
  id: string;
  question: string;
  answer: string;
  aliases: string;
  /** Ids of evidence pages; their URLs are `doc:<id>`. */
  gold_ids: string;
  deny_urls: string;
  capability: string;
}

/** A task before it is given to a split. */
export type ImportedTask = Omit<Task, 'split'>;

/** Longer questions and answers are documents in the wrong column. */
const MAX_QUESTION = 8_000;
const MAX_ANSWER = 2_000;

export interface TaskShape {
  format: TaskFormat;
  fields: TaskColumns;
  /** How the capability is found when no column names it. */
  capability: { judge: object } | { column: string; map: Readonly<Record<string, Capability>> } | null;
}

type Row = Record<string, unknown>;
const isRow = (value: unknown): value is Row => typeof value === 'object' && value !== null && !Array.isArray(value);

/** LiteResearcher's training sets are in verl's layout: the answer and the forbidden URLs are nested. */
function flattened(row: Row, format: TaskFormat): Row {
  if (format === 'columns') return row;
  const extra = isRow(row['extra_info']) ? row['extra_info'] : {};
  const truth = isRow(row['reward_model']) ? row['reward_model']['ground_truth'] : undefined;
  return {
    ...row,
    id: extra['index'],
    question: row['question'] ?? extra['question'],
    answer: isRow(truth) ? truth['target'] : truth,
    deny_urls: extra['mask_url'],
  };
}

/** The task of one record, or why there is none. `answer` may be a list: the first counts, the others are aliases. */
export function taskOfRow(row: unknown, shape: TaskShape, source: string): ImportedTask | string {
  if (!isRow(row)) return 'not a JSON object';
  const record = flattened(row, shape.format);
  const columns = shape.fields;
  const question = textOf(record[columns.question]);
  if (question === null) return `no ${columns.question}`;
  const [answer, ...others] = textsOf(record[columns.answer]) ?? [];
  if (answer === undefined) return `no ${columns.answer}`;
  if (question.length > MAX_QUESTION || answer.length > MAX_ANSWER) return 'question or answer is too long';
  const lists = {
    aliases: record[columns.aliases],
    gold_ids: record[columns.gold_ids],
    deny_urls: record[columns.deny_urls],
  };
  const { aliases, gold_ids, deny_urls } = Object.fromEntries(
    Object.entries(lists).map(([name, value]) => [name, textsOf(value)]),
  );
  if (!aliases) return `${columns.aliases} is not a list of texts`;
  if (!gold_ids) return `${columns.gold_ids} is not a list of ids`;
  if (!deny_urls) return `${columns.deny_urls} is not a list of URLs`;
  const id =
    textOf(record[columns.id]) ?? createHash('sha256').update(`${question}\n${answer}`).digest('hex').slice(0, 16);
  return {
    task_id: `${source}-${id}`,
    question,
    answer,
    aliases: [...new Set([...others, ...aliases])].filter((alias) => alias !== answer),
    capability: capabilityOf(record, shape),
    source,
    evidence: gold_ids.map((gold) => (/^[a-z][a-z0-9+.-]*:/i.test(gold) ? gold : `doc:${gold}`)),
    deny_urls,
  };
}

function textOf(value: unknown): string | null {
  if (typeof value === 'number' || typeof value === 'bigint' || typeof value === 'boolean') return String(value);
  return typeof value === 'string' && value.trim() !== '' ? value.trim() : null;
}

/** A text or a list of texts; none when the column is absent; null when it holds something else. */
function textsOf(value: unknown): string[] | null {
  if (value === undefined || value === null) return [];
  const items = (Array.isArray(value) ? value : [value]).map(textOf);
  return items.includes(null) ? null : (items as string[]);
}

function capabilityOf(record: Row, { fields, capability: found }: TaskShape): Capability | 'unknown' {
  if (found !== null && 'column' in found) return found.map[String(record[found.column])] ?? 'unknown';
  const value = record[fields.capability];
  return CAPABILITIES.find((capability) => capability === value) ?? 'unknown';
}

/** In an order that the seed and the ids decide alone. */
export function inSeededOrder(tasks: readonly ImportedTask[], seed: number): ImportedTask[] {
  return tasks
    .map((task) => ({ task, rank: hashFraction(`${seed}/order/${task.task_id}`) }))
    .sort((a, b) => a.rank - b.rank || (a.task.task_id < b.task.task_id ? -1 : 1))
    .map(({ task }) => task);
}

export interface Choice {
  /** Shares of the capabilities; null takes tasks as they come. */
  mix: Readonly<Record<string, number>> | null;
  /** A smaller choice is part of a larger one. */
  limit: number | null;
}

/** The first tasks of an order, or the first of each capability in the mix: fewer than the limit where one runs out. */
export const chooseTasks = (ordered: readonly ImportedTask[], { mix, limit }: Choice): ImportedTask[] =>
  (mix === null ? ordered : inMix(ordered, mix, ({ capability }) => capability)).slice(0, limit ?? ordered.length);

/** Give each task a split, in exact proportion; each takes a stretch of the order, and so what mix the order has. */
export function splitTasks(ordered: readonly ImportedTask[], splits: Readonly<Record<string, number>>): Task[] {
  const counts = apportion(ordered.length, splits);
  const names = Object.keys(counts).flatMap((split) => Array.from({ length: counts[split] as number }, () => split));
  return ordered.map((task, position) => ({ ...task, split: names[position] as string }));
}
