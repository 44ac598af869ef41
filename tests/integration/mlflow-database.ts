import { Pool } from 'pg';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { randomBytes } from 'node:crypto';
import { repoRoot } from '../../services/home.ts';

export async function freshDatabase(): Promise<Pool> {
  const base = process.env['EXP_TEST_POSTGRES'] as string;
  const name = `t${randomBytes(4).toString('hex')}`;
  const admin = new Pool({ connectionString: `${base}/postgres` });
  await admin.query(`create database ${name}`);
  await admin.end();
  const pool = new Pool({ connectionString: `${base}/${name}` });
  await pool.query(readFileSync(join(repoRoot(), 'services/schema.sql'), 'utf8').replace('compression lz4', ''));
  return pool;
}
