import type { MilvusClient } from '@zilliz/milvus2-sdk-node';
import type { Pool } from 'pg';
import { loadTokenizer, type Tokenizer } from '../environments/deep-research/prompt.ts';
import type { World } from '../environments/environment.ts';
import type { CountTokens } from '../environments/world/chunker.ts';
import { type Embedder, openEmbedder } from '../environments/world/embedder.ts';
import { tokenCounter } from '../environments/world/embedder-model.ts';
import { openWorld } from '../environments/world/world.ts';
import type { CorpusBody, IndexBody } from '../schemas/artifact.ts';
import { type IndexParameters, nodeOf } from '../schemas/node-parameters.ts';
import type { NodeRef } from './index.ts';
import type { PlanReader } from './plan-reader.ts';

/** Opens each thing once per process; what failed to open is tried again the next time. */
export class OpenOnce<T> {
  readonly #opened = new Map<string, Promise<T>>();

  get(name: string, open: () => Promise<T>): Promise<T> {
    const known = this.#opened.get(name);
    if (known) return known;
    const opening = open();
    this.#opened.set(name, opening);
    opening.catch(() => this.#opened.delete(name));
    return opening;
  }

  async closeAll(close: (opened: T) => Promise<void>): Promise<void> {
    for (const opening of this.#opened.values()) await opening.then(close, () => undefined);
    this.#opened.clear();
  }
}

/** Embedders by model and precision. */
export class Embedders {
  readonly #open = new OpenOnce<Embedder>();
  readonly #counters = new OpenOnce<CountTokens>();
  readonly #folderOf: (model: string) => string;

  constructor(folderOf: (model: string) => string) {
    this.#folderOf = folderOf;
  }

  open({ model, precision }: Pick<IndexParameters['embedder'], 'model' | 'precision'>): Promise<Embedder> {
    return this.#open.get(`${model} ${precision}`, () =>
      openEmbedder({ folder: this.#folderOf(model), model, precision }),
    );
  }

  /** Counts tokens as an embedder's tokenizer does; needs no model. */
  tokenCounter(model: string): Promise<CountTokens> {
    return this.#counters.get(model, () => tokenCounter(this.#folderOf(model)));
  }

  close(): Promise<void> {
    return this.#open.closeAll((embedder) => embedder.close());
  }
}

/** Tokenizers by model. */
export class Tokenizers {
  readonly #open = new OpenOnce<Tokenizer>();
  readonly #folderOf: (model: string) => string;

  constructor(folderOf: (model: string) => string) {
    this.#folderOf = folderOf;
  }

  load(model: string): Promise<Tokenizer> {
    return this.#open.get(model, () => loadTokenizer(this.#folderOf(model)));
  }
}

export interface WorldsDeps {
  plans: PlanReader;
  pool: Pool;
  milvus: MilvusClient;
  embedders: Embedders;
}

/** The world of a node: the corpus and the index among its inputs. */
export class Worlds {
  readonly #deps: WorldsDeps;
  readonly #open = new OpenOnce<World>();

  constructor(deps: WorldsDeps) {
    this.#deps = deps;
  }

  async open(ref: NodeRef): Promise<World> {
    const { plans, pool, milvus, embedders } = this.#deps;
    const input = (await plans.inputs(ref)).find(({ kind }) => kind === 'index');
    if (!input) return plans.input(ref, 'index') as never; // says what is missing
    const node = nodeOf('index', await plans.node({ ...ref, id: input.id, kind: 'index' }));
    const { fusion, dense, sparse, embedder } = node.parameters;
    return this.#open.get(`${input.digest} ${JSON.stringify(fusion)}`, async () =>
      openWorld({
        pool,
        milvus,
        embedder: await embedders.open(embedder),
        corpus: (await plans.input({ ...ref, id: input.id }, 'corpus')).body as unknown as CorpusBody,
        index: input.manifest.body as unknown as IndexBody,
        fusion,
        dense,
        sparse,
      }),
    );
  }

  close(): Promise<void> {
    return this.#open.closeAll((world) => world.close());
  }
}
