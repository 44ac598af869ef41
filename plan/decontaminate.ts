/**
 * Imported training questions against benchmark sets, before anything runs: as far as both lie here as plain JSONL, and all
 * of a source is trained on. What is left (generated questions, other formats, parts of a source) the tasks node checks.
 */
import { readFileSync, statSync } from 'node:fs';
import type { Experiment } from '../schemas/experiment.ts';
import { BenchmarkQuestions, OverlapReport } from '../schemas/overlap.ts';
import { TASK_COLUMNS } from '../schemas/task-columns.ts';
import { type Located, placeAt } from './located.ts';
import { type Problem, problem } from './problem.ts';
import type { InputFiles } from './spec-inputs.ts';
import type { ResolvedNames } from './spec-names.ts';
import { splitOf, trains } from './stages.ts';

type Columns = Record<keyof typeof TASK_COLUMNS, string>;
/** Larger files are left to the node, which streams. */
const MAX_BYTES = 64 * 1024 * 1024;

export interface ContaminationCheck {
  experiment: Experiment;
  root: Located;
  names: ResolvedNames;
  inputs: ReadonlyMap<string, InputFiles>;
  /** What other arms have found, by what was compared. */
  overlaps: Map<string, string | null>;
}

export function checkContamination({ experiment, root, names, inputs, overlaps }: ContaminationCheck): Problem[] {
  const { decontaminate, tasks } = experiment;
  if (decontaminate === undefined) return [];
  const trained = Object.values(experiment.curriculum).filter(trains);
  const splits = new Set(trained.map(splitOf));
  if (!Object.keys(tasks.splits).every((split) => splits.has(split))) return [];
  return Object.entries(tasks.sources).flatMap(([name, source]) => {
    if (source.kind !== 'jsonl' || source.format !== 'columns') return [];
    if (!trained.some((stage) => (stage.tasks?.source ?? name) === name)) return [];
    const input = inputs.get(`tasks.sources.${name}`);
    const compared = JSON.stringify([input, source.fields, decontaminate]);
    const message = overlaps.has(compared)
      ? (overlaps.get(compared) ?? null)
      : overlapOf(input, source.fields, benchmarkQuestions(decontaminate, names, inputs));
    overlaps.set(compared, message);
    if (message === null) return [];
    return [problem('CONTAMINATED', placeAt(root, ['tasks', 'sources', name, 'path']), message)];
  });
}

function benchmarkQuestions(
  { against, n }: NonNullable<Experiment['decontaminate']>,
  { datasets }: ResolvedNames,
  inputs: ReadonlyMap<string, InputFiles>,
): BenchmarkQuestions {
  const questions = new BenchmarkQuestions(n);
  for (const name of against) {
    const columns: Columns = { ...TASK_COLUMNS, ...datasets.get(name)?.fields };
    for (const { item } of rowsOf(inputs.get(`datasets.${name}`), columns)) questions.add(name, item);
  }
  return questions;
}

function overlapOf(input: InputFiles | undefined, columns: Columns, questions: BenchmarkQuestions): string | null {
  const report = new OverlapReport();
  for (const { line, item } of rowsOf(input, columns)) report.note(`line ${line}`, questions.find(item));
  return report.message();
}

function* rowsOf(
  input: InputFiles | undefined,
  columns: Columns,
): Generator<{ line: number; item: { id: string; question: string; urls: string[] } }> {
  const file = input?.absolute;
  if (file === undefined || !file.endsWith('.jsonl') || !isSmallFile(file)) return;
  for (const [index, text] of readFileSync(file, 'utf8').split('\n').entries()) {
    const row = parsed(text);
    const question = row?.[columns.question];
    if (row === null || typeof question !== 'string') continue; // bad rows are counted where they are imported
    const gold = row[columns.gold_ids];
    const urls = (Array.isArray(gold) ? gold : [gold]).filter((url) => typeof url === 'string');
    yield { line: index + 1, item: { id: String(row[columns.id] ?? index + 1), question, urls } };
  }
}

function isSmallFile(file: string): boolean {
  const info = statSync(file, { throwIfNoEntry: false });
  return info?.isFile() === true && info.size <= MAX_BYTES;
}

function parsed(text: string): Record<string, unknown> | null {
  try {
    const row: unknown = JSON.parse(text);
    return typeof row === 'object' && row !== null ? (row as Record<string, unknown>) : null;
  } catch {
    return null;
  }
}
