/** One collection at a time, and none beside work that no run stands for. */
import type { Pool } from 'pg';
import { ExpError } from '../../schemas/errors.ts';

const NAME = 'exp gc';

/** Collect while nobody else does, and no world is being built by hand. Throws GC_BUSY. */
export function whileCollecting<T>(pool: Pool, work: () => Promise<T>): Promise<T> {
  return locked(pool, 'pg_try_advisory_lock', 'another `exp gc` or an `exp world build` is at work; try later', work);
}

/** Build what no run keeps: nobody collects meanwhile. Throws GC_BUSY. */
export function whileNobodyCollects<T>(pool: Pool, work: () => Promise<T>): Promise<T> {
  return locked(pool, 'pg_try_advisory_lock_shared', '`exp gc` is at work; try again when it is done', work);
}

/** The lock belongs to a connection, and ends with it: a holder that died blocks nobody. */
async function locked<T>(pool: Pool, take: string, busy: string, work: () => Promise<T>): Promise<T> {
  const client = await pool.connect();
  let broken: Error | undefined;
  const onError = (error: Error): void => {
    broken = error; // the lock is lost, and the work finds out by itself
  };
  client.on('error', onError);
  try {
    const { rows } = await client.query<{ taken: boolean }>(`select ${take}(hashtextextended($1, 0)) as taken`, [NAME]);
    if (!rows[0]?.taken) throw new ExpError('GC_BUSY', 'exp gc', busy);
    return await work();
  } finally {
    await client.query('select pg_advisory_unlock_all()').catch(onError);
    client.off('error', onError);
    client.release(broken);
  }
}
