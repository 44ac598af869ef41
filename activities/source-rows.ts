/** Rows of the files that a spec names, one at a time, each with its place. */
import { readFile, stat } from 'node:fs/promises';
import { listFiles, type SourceFile } from '../environments/world/sources/files.ts';
import { readLines } from '../environments/world/sources/lines.ts';
import { readParquet } from './adapters/parquet.ts';

export interface SourceRow {
  /** `file:line`, or the number of the row in a Parquet file or a JSON list. */
  at: string;
  row?: unknown;
  error?: string;
}

const LINES = ['.jsonl', '.ndjson'].flatMap((name) => [name, `${name}.gz`, `${name}.zst`]);

export async function* jsonRows(path: string): AsyncGenerator<SourceRow> {
  for (const file of await listFiles(path, LINES)) yield* rowsOfLines(file);
}

export async function* parquetRows(path: string): AsyncGenerator<SourceRow> {
  for (const file of await listFiles(path, ['.parquet'])) yield* rowsOfParquet(file);
}

/** Rows of whatever a path holds; each file is read by its ending. */
export async function* sourceRows(path: string): AsyncGenerator<SourceRow> {
  for (const file of await listFiles(path, [...LINES, '.json', '.parquet'])) {
    const document = file.path.endsWith('.json') ? await wholeDocument(file) : undefined;
    if (document !== undefined) yield* rowsOfDocument(file, document);
    else if (file.path.endsWith('.parquet')) yield* rowsOfParquet(file);
    else yield* rowsOfLines(file);
  }
}

async function* rowsOfLines(file: SourceFile): AsyncGenerator<SourceRow> {
  for await (const line of readLines(file.path)) {
    const at = `${file.name}:${line.number}`;
    if ('error' in line) yield { at, error: line.error };
    else if (line.text.trim() !== '') yield { at, ...parsed(line.text) };
  }
}

async function* rowsOfParquet(file: SourceFile): AsyncGenerator<SourceRow> {
  let number = 0;
  for await (const row of readParquet<object>(file.path)) {
    number += 1;
    yield { at: `${file.name}:${number}`, row };
  }
}

/** Under these names an object holds records beside facts of the whole. */
const LISTS = ['cases', 'data'];

/** A list of records, an object that holds one, or one record. */
function* rowsOfDocument(file: SourceFile, document: object): Generator<SourceRow> {
  const listed = Array.isArray(document)
    ? document
    : LISTS.map((name) => (document as Record<string, unknown>)[name]).find((value) => Array.isArray(value));
  for (const [index, row] of ((listed ?? [document]) as unknown[]).entries())
    yield { at: `${file.name}:${index + 1}`, row };
}

/** A larger document would not fit a string of Node; such files hold lines. */
const LARGEST_DOCUMENT = 256 * 2 ** 20;

/** Undefined when the file is not one JSON document: then its lines are read. */
async function wholeDocument(file: SourceFile): Promise<object | undefined> {
  if ((await stat(file.path)).size > LARGEST_DOCUMENT) return undefined;
  const { row } = parsed(await readFile(file.path, 'utf8')) as { row?: unknown };
  return typeof row === 'object' && row !== null ? row : undefined;
}

function parsed(text: string): { row: unknown } | { error: string } {
  try {
    return { row: JSON.parse(text) as unknown };
  } catch (error) {
    return { error: `not JSON: ${(error as Error).message}` };
  }
}
