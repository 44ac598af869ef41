/** Pages that no corpus has any more. */
import type { Pool } from 'pg';
import type { Amount } from './node-rows.ts';
import { inTransaction } from './transaction.ts';

const WINDOW = 2_000;

/** What would be left over without these corpora, and what is left over already. */
export async function measurePages(pool: Pool, dropped: readonly string[]): Promise<Amount> {
  const { rows } = await pool.query<{ count: string; bytes: string }>(
    `select count(*) as count, coalesce(sum(octet_length(text)), 0) as bytes from pages
     where not exists (
       select 1 from corpus_pages where corpus_pages.hash = pages.hash and corpus_key <> all($1)
     )`,
    [dropped],
  );
  return { count: Number(rows[0]?.count), bytes: Number(rows[0]?.bytes) };
}

/**
 * Window by window along the primary key. Who loads a corpus writes its pages before it refers to them: a loader that
 * has written some holds the lock that this needs, and one that comes waits until a window is done.
 */
export async function deletePages(pool: Pool): Promise<Amount> {
  const gone = { count: 0, bytes: 0 };
  for (let after = ''; ; ) {
    const { rows } = await pool.query<{ hash: string }>(
      `select hash from pages where hash > $1 order by hash limit ${WINDOW}`,
      [after],
    );
    const last = rows.at(-1);
    if (last === undefined) return gone;
    const deleted = await inTransaction(pool, async (client) => {
      await client.query('lock table pages in share row exclusive mode');
      return client.query<{ bytes: string }>(
        `delete from pages where hash > $1 and hash <= $2
         and not exists (select 1 from corpus_pages where corpus_pages.hash = pages.hash)
         returning octet_length(text) as bytes`,
        [after, last.hash],
      );
    });
    gone.count += deleted.rows.length;
    gone.bytes += deleted.rows.reduce((sum, { bytes }) => sum + Number(bytes), 0);
    after = last.hash;
  }
}
