import type { SourcePage } from '../../environment.ts';
import { cleanText, cleanTitle } from './clean-text.ts';
import { listFiles } from './files.ts';
import { readLines } from './lines.ts';
import type { RowReport } from './row-report.ts';

type Row = Record<string, unknown>;

/** Which columns hold what. */
export interface PageFields {
  url: string;
  id: string;
  title: string;
  text: string;
}

export const DEFAULT_FIELDS: PageFields = { url: 'url', id: 'id', title: 'title', text: 'text' };

// A URL is a key in PostgreSQL, whose index rows end at 2,704 bytes.
const MAX_URL_BYTES = 2000;
const EXTENSIONS = ['.jsonl', '.ndjson', '.json'].flatMap((extension) => [
  extension,
  `${extension}.gz`,
  `${extension}.zst`,
]);

/**
 * Pages from JSONL files. Besides the columns named in `fields`, the shapes of neighbouring systems are read, row by
 * row: `_id` (BEIR), `metadata: {title, url}` (Dolma), `doc` (LiteResearcher), `contents` with the title on its first
 * line (Search-R1). A row without a URL gets `doc:<id>`.
 */
export async function* jsonlPages(path: string, fields: PageFields, report: RowReport): AsyncGenerator<SourcePage> {
  for (const file of await listFiles(path, EXTENSIONS)) {
    for await (const line of readLines(file.path)) {
      const at = `${file.name}:${line.number}`;
      if ('error' in line) {
        report.reject(at, line.error);
        continue;
      }
      if (line.text.trim() === '') continue;
      const page = parseLine(line.text, fields);
      if (typeof page === 'string') report.reject(at, page);
      else {
        report.accept();
        yield page;
      }
    }
  }
}

/** The page of one line, or why there is none. */
export function parseLine(line: string, fields: PageFields): SourcePage | string {
  let row: unknown;
  try {
    row = JSON.parse(line);
  } catch (error) {
    return `not JSON: ${(error as Error).message}`;
  }
  return isRow(row) ? pageOfRow(row, fields) : 'not a JSON object';
}

/** The page of one record, or why there is none. */
export function pageOfRow(row: Row, fields: PageFields): SourcePage | string {
  const url = urlOf(row, fields);
  if (url === null) return `no ${fields.url}, ${fields.id} or metadata.url`;
  if (Buffer.byteLength(url) > MAX_URL_BYTES) return `url is longer than ${MAX_URL_BYTES} bytes`;
  const body = bodyOf(row, fields);
  if (body === null) return `no ${fields.text}`;
  const title = cleanTitle(body.title);
  const text = cleanText(body.text);
  if (title === '' && text === '') return 'title and text are empty';
  return { url, title: title === '' ? url : title, text };
}

function isRow(value: unknown): value is Row {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function urlOf(row: Row, fields: PageFields): string | null {
  const metadata = isRow(row.metadata) ? row.metadata : {};
  const url = firstString(row[fields.url], metadata.url);
  if (url !== null) return cleanTitle(url);
  const id = row[fields.id] ?? row._id;
  return typeof id === 'string' || typeof id === 'number' || typeof id === 'bigint' ? `doc:${id}` : null;
}

function bodyOf(row: Row, fields: PageFields): { title: string; text: string } | null {
  const metadata = isRow(row.metadata) ? row.metadata : {};
  const title = firstString(row[fields.title], metadata.title);
  const text = typeof row[fields.text] === 'string' ? row[fields.text] : row.doc;
  if (typeof text === 'string') return { title: title ?? '', text };
  if (typeof row.contents !== 'string') return null;
  const end = row.contents.indexOf('\n');
  if (title !== null || end === -1) return { title: title ?? '', text: row.contents };
  return { title: row.contents.slice(0, end).replace(/^"|"$/g, ''), text: row.contents.slice(end + 1) };
}

function firstString(...values: unknown[]): string | null {
  for (const value of values) if (typeof value === 'string' && value.trim() !== '') return value;
  return null;
}
