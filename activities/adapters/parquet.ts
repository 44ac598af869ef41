/** Parquet files through DuckDB: rows stream through an NDJSON file beside the target, so memory holds one row. */
import { randomUUID } from 'node:crypto';
import { open, rename, rm } from 'node:fs/promises';
import { pipeline } from 'node:stream/promises';
import {
  type DuckDBConnection,
  DuckDBInstance,
  type DuckDBValueConverter,
  JSDuckDBValueConverter,
} from '@duckdb/node-api';
import { ExpError } from '../../schemas/errors.ts';

/** Column name → DuckDB type. */
export type Columns = Readonly<Record<string, string>>;

/** schemas/trajectory.ts as columns. */
export const trajectoryColumns: Columns = {
  trajectory_id: 'VARCHAR',
  task_id: 'VARCHAR',
  group_id: 'VARCHAR',
  sample: 'INTEGER',
  branch: 'INTEGER',
  checkpoint: 'VARCHAR',
  sampling: 'STRUCT(temperature DOUBLE, top_p DOUBLE, seed BIGINT)',
  token_ids: 'INTEGER[]',
  mask: 'TINYINT[]',
  logprobs: 'FLOAT[]',
  spans:
    'STRUCT(turn INTEGER, kind VARCHAR, "start" INTEGER, "end" INTEGER, tool VARCHAR, status VARCHAR, latency_ms DOUBLE, cached BOOLEAN, denied INTEGER, weight_version VARCHAR)[]',
  reward: 'STRUCT(outcome DOUBLE, turns DOUBLE[])',
  score: 'STRUCT(exact_match DOUBLE, f1 DOUBLE, format_valid BOOLEAN, answer_in_observation BOOLEAN)',
  judge: 'STRUCT(correct BOOLEAN, reply VARCHAR)',
  advantages: 'FLOAT[]',
  beliefs: 'DOUBLE[]',
  termination: 'VARCHAR',
  failure_class: 'VARCHAR',
  answer: 'VARCHAR',
  messages: 'STRUCT("role" VARCHAR, "content" VARCHAR)[]',
};

/** A trainer batch: one row a sequence, blind to the algorithm. */
export const batchColumns: Columns = {
  sequence_id: 'VARCHAR',
  token_ids: 'INTEGER[]',
  mask: 'TINYINT[]',
  behavior_logprobs: 'FLOAT[]',
  advantages: 'FLOAT[]',
  temperature: 'FLOAT',
  weight: 'FLOAT',
  // Which of the step's updates the sequence belongs to.
  update: 'INTEGER',
  // For the reader of a report; the trainer does not look at it.
  turn_rewards: 'DOUBLE[]',
};

/** What the trainer measures beliefs on: one row a sequence. */
export const beliefColumns: Columns = {
  sequence_id: 'VARCHAR',
  token_ids: 'INTEGER[]',
  boundaries: 'INTEGER[]',
  suffix_ids: 'INTEGER[]',
  suffix_mask: 'TINYINT[]',
};

/** Write rows in their order; the file appears whole (rename) or not at all. The same rows give the same bytes. */
export async function writeParquet(
  path: string,
  rows: AsyncIterable<object> | Iterable<object>,
  columns: Columns,
): Promise<{ rows: number }> {
  const attempt = `${path}.${randomUUID()}`;
  const lines = `${attempt}.ndjson`;
  const unfinished = `${attempt}.tmp`;
  try {
    const { count, longest } = await writeLines(lines, rows);
    const types = Object.entries(columns).map(([name, type]) => `${quote(name)}: ${quote(type)}`);
    await withDuckDb((connection) =>
      connection.run(
        `COPY (SELECT * FROM read_json(${quote(lines)}, format = 'newline_delimited', columns = {${types.join(', ')}},
           maximum_object_size = ${Math.max(2 ** 24, longest + 2)}))
         TO ${quote(unfinished)} (FORMAT parquet, COMPRESSION zstd)`,
      ),
    );
    await rename(unfinished, path);
    return { rows: count };
  } finally {
    await rm(lines, { force: true });
    await rm(unfinished, { force: true });
  }
}

/** Names of the columns of a file. */
export function columnsOf(path: string): Promise<string[]> {
  return withDuckDb(async (connection) =>
    (await connection.run(`SELECT * FROM read_parquet(${quote(path)}) LIMIT 0`)).columnNames(),
  );
}

/** Rows in file order, one at a time. Throws PARQUET when the file is no Parquet or a column is missing. */
export async function* readParquet<T>(path: string, columns?: readonly string[]): AsyncGenerator<T> {
  const database = await openDuckDb();
  try {
    const connection = await database.connect();
    const selected = columns?.map((name) => `"${name.replaceAll('"', '""')}"`).join(', ') ?? '*';
    const result = await connection.stream(`SELECT ${selected} FROM read_parquet(${quote(path)})`);
    const names = result.columnNames();
    for (
      let chunk = await result.fetchChunk();
      chunk !== null && chunk.rowCount > 0;
      chunk = await result.fetchChunk()
    ) {
      const types = result.columnTypes();
      for (let row = 0; row < chunk.rowCount; row += 1) {
        const values = names.map((name, column) => [
          name,
          plain(chunk.getColumnVector(column).getItem(row), types[column] as never, plain),
        ]);
        yield Object.fromEntries(values) as T;
      }
    }
  } catch (cause) {
    throw new ExpError('PARQUET', path, `cannot read it: ${(cause as Error).message.split('\n')[0]}`, { cause });
  } finally {
    database.closeSync();
  }
}

async function writeLines(
  path: string,
  rows: AsyncIterable<object> | Iterable<object>,
): Promise<{ count: number; longest: number }> {
  let count = 0;
  let longest = 0;
  async function* lines(): AsyncGenerator<string> {
    for await (const row of rows) {
      const line = `${JSON.stringify(row)}\n`;
      count += 1;
      longest = Math.max(longest, Buffer.byteLength(line));
      yield line;
    }
  }
  // Opened first: a stream that is destroyed while it still opens its file would make the file after it was removed.
  const file = await open(path, 'w');
  await pipeline(lines, file.createWriteStream());
  return { count, longest };
}

/** DuckDB's values as plain JavaScript: integers of any width are numbers. */
const plain: DuckDBValueConverter<unknown> = (value, type) => {
  const converted = JSDuckDBValueConverter(value, type, plain as typeof JSDuckDBValueConverter);
  return typeof converted === 'bigint' ? Number(converted) : converted;
};

/** One thread: rows keep their order and the bytes do not depend on the machine. */
function openDuckDb(): Promise<DuckDBInstance> {
  return DuckDBInstance.create(':memory:', { threads: '1' });
}

async function withDuckDb<T>(work: (connection: DuckDBConnection) => Promise<T>): Promise<T> {
  const database = await openDuckDb();
  try {
    return await work(await database.connect());
  } finally {
    database.closeSync();
  }
}

function quote(text: string): string {
  return `'${text.replaceAll("'", "''")}'`;
}
