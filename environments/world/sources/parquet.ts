import { DuckDBInstance } from '@duckdb/node-api';
import type { SourcePage } from '../../environment.ts';
import { listFiles } from './files.ts';
import { type PageFields, pageOfRow } from './jsonl.ts';
import type { RowReport } from './row-report.ts';

/** Pages from Parquet files, streamed by row group; columns as in JSONL. */
export async function* parquetPages(path: string, fields: PageFields, report: RowReport): AsyncGenerator<SourcePage> {
  const database = await DuckDBInstance.create(':memory:');
  const connection = await database.connect();
  try {
    for (const file of await listFiles(path, ['.parquet'])) {
      let number = 0;
      const result = await connection.stream('select * from read_parquet($1)', [file.path]);
      for await (const rows of result.yieldRowObjectJson()) {
        for (const row of rows) {
          number += 1;
          const page = pageOfRow(row, fields);
          if (typeof page === 'string') report.reject(`${file.name}:${number}`, page);
          else {
            report.accept();
            yield page;
          }
        }
      }
    }
  } finally {
    connection.closeSync();
    database.closeSync();
  }
}
