/** Worlds built by hand: made without a run, kept under a name. */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { join } from 'node:path';
import type { Pool } from 'pg';
import type { World } from '../environments/environment.ts';
import { openEmbedder } from '../environments/world/embedder.ts';
import { connectMilvus } from '../environments/world/milvus.ts';
import { openWorld } from '../environments/world/world.ts';
import type { CorpusBody, IndexBody } from '../schemas/artifact.ts';
import { ExpError } from '../schemas/errors.ts';
import type { IndexParameters } from '../schemas/node-parameters.ts';
import type { Connections } from '../services/connections.ts';
import { modelsDir } from '../services/home.ts';

export interface NamedWorld {
  name: string;
  corpus: CorpusBody;
  index: IndexBody;
  parameters: IndexParameters;
}

export async function saveWorld(pool: Pool, { name, corpus, index, parameters }: NamedWorld): Promise<void> {
  await pool.query(
    `insert into worlds (name, corpus, index, parameters) values ($1, $2, $3, $4)
     on conflict (name) do update set corpus = excluded.corpus, index = excluded.index,
       parameters = excluded.parameters, created_at = now()`,
    [name, JSON.stringify(corpus), JSON.stringify(index), JSON.stringify(parameters)],
  );
}

/** Throws WORLD_UNKNOWN, naming the worlds there are. */
export async function findWorld(pool: Pool, name: string): Promise<NamedWorld> {
  const { rows } = await pool.query<NamedWorld>('select name, corpus, index, parameters from worlds where name = $1', [
    name,
  ]);
  if (rows[0]) return rows[0];
  const all = await pool.query<{ name: string }>('select name from worlds order by name limit 20');
  const known = all.rows.map((row) => row.name).join(', ');
  throw new ExpError(
    'WORLD_UNKNOWN',
    name,
    known ? `no world has this name; there are: ${known}` : 'there is no world yet; `exp world build` makes one',
  );
}

export interface OpenedWorld {
  world: World;
  countTokens(text: string): number;
  close(): Promise<void>;
}

/** Open a named world; everything opened here is closed by `close`. */
export async function openNamedWorld(
  pool: Pool,
  { milvus: address }: Connections,
  named: NamedWorld,
): Promise<OpenedWorld> {
  const { tokenCounter } = await import('../environments/world/embedder-model.ts');
  const { model, precision } = named.parameters.embedder;
  const embedder = await openEmbedder({ folder: join(modelsDir(), model), model, precision, processes: 1 });
  const milvus = connectMilvus(address);
  const close = async (): Promise<void> => {
    await Promise.allSettled([embedder.close(), milvus.closeConnection()]);
  };
  try {
    const { fusion, dense, sparse } = named.parameters;
    const world = await openWorld({
      pool,
      milvus,
      embedder,
      corpus: named.corpus,
      index: named.index,
      fusion,
      dense,
      sparse,
    });
    const countTokens = await tokenCounter(join(modelsDir(), embedder.model.name));
    return { world, countTokens, close };
  } catch (error) {
    await close();
    throw error;
  }
}

export async function sha256OfFile(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const bytes of createReadStream(path)) hash.update(bytes as Buffer);
  return hash.digest('hex');
}
