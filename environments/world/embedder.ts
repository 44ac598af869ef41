import { type ChildProcess, fork } from 'node:child_process';
import { existsSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { extname, join } from 'node:path';
import { ExpError } from '../../schemas/errors.ts';
import type { ChildConfig, ChildMessage, EmbedRequest } from './embedder-child.ts';
import { type EmbedderModel, type Precision, readEmbedderModel } from './embedder-model.ts';

/** Queries are what an agent waits for; they go before indexing. */
export type EmbedPriority = 'query' | 'index';

export interface EmbedOptions {
  priority: EmbedPriority;
  /** Called for each text done; must not throw. */
  onText?(): void;
  /** Once aborted, what has not begun is rejected. */
  signal?: AbortSignal;
}

export interface EmbedderFingerprint {
  embedder: string;
  embedder_sha256: string;
  precision: Precision;
  dimension: number;
}

export interface Embedder {
  readonly model: EmbedderModel;
  readonly dimension: number;
  readonly fingerprint: EmbedderFingerprint;
  /** Unit vectors, in the order of the texts. */
  embed(texts: readonly string[], options: EmbedOptions): Promise<Float32Array[]>;
  close(): Promise<void>;
}

export interface EmbedderOptions {
  /** Folder of the model: `model.<precision>.onnx`, `tokenizer.json`. */
  folder: string;
  model: string;
  precision: Precision;
  /** Most child processes; one is started at first use, more only while work waits. */
  processes?: number;
  /** Compiled child, when it is not beside this file's own compiled form. */
  childPath?: string;
}

/** Read the model's folder and make a pool for it; no process is started yet. */
export async function openEmbedder(options: EmbedderOptions): Promise<Embedder> {
  const model = await readEmbedderModel(options.folder, options.model, options.precision);
  return new EmbedderPool(model, options.processes ?? availableParallelism(), options.childPath ?? compiledChild());
}

interface Item {
  text: string;
  resolve(vector: Float32Array): void;
  reject(error: Error): void;
}

interface Batch {
  id: number;
  items: Item[];
  priority: EmbedPriority;
  signal: AbortSignal | undefined;
  /** Children that died with this batch. */
  deaths: number;
}

interface Child {
  process: ChildProcess;
  ready: boolean;
  batch: Batch | null;
  /** Runs while the child has nothing to do. */
  idle: NodeJS.Timeout | null;
}

// On one thread a bigger batch is no faster and only pads more, and a query waits for the batch before it.
const BATCH_CHARACTERS = 2400;
const BATCH_TEXTS = 16;
const MAX_DEATHS = 3;
// A child holds 200 MB: the others go soon, the last one when nobody has asked for a while.
const IDLE_MS = 30_000;
const LAST_IDLE_MS = 600_000;

/**
 * Child processes that embed. Texts of one call are sorted by length and cut into small batches, so that little is
 * padded; a child that dies is replaced and its batch done again, elsewhere, up to three times.
 */
class EmbedderPool implements Embedder {
  readonly model: EmbedderModel;
  readonly #maxChildren: number;
  readonly #childPath: string;
  readonly #children = new Set<Child>();
  readonly #waiting: Record<EmbedPriority, Batch[]> = { query: [], index: [] };
  #nextId = 0;
  #startFailures = 0;
  #closed = false;

  constructor(model: EmbedderModel, maxChildren: number, childPath: string) {
    this.model = model;
    this.#maxChildren = Math.max(1, maxChildren);
    this.#childPath = childPath;
  }

  get dimension(): number {
    return this.model.dimension;
  }

  get fingerprint(): EmbedderFingerprint {
    const { name, sha256, precision, dimension } = this.model;
    return { embedder: name, embedder_sha256: sha256, precision, dimension };
  }

  embed(texts: readonly string[], { priority, onText, signal }: EmbedOptions): Promise<Float32Array[]> {
    if (this.#closed)
      return Promise.reject(new ExpError('EMBEDDER_UNAVAILABLE', this.model.name, 'the embedder is closed'));
    const results = new Array<Promise<Float32Array>>(texts.length);
    const items = texts.map((text, index) => {
      const { promise, resolve, reject } = withResolvers<Float32Array>();
      results[index] = promise;
      if (onText) promise.then(onText, () => undefined);
      return { text, resolve, reject };
    });
    items.sort((a, b) => a.text.length - b.text.length);
    for (const batch of batchesOf(items)) {
      this.#waiting[priority].push({ id: this.#nextId++, items: batch, priority, signal, deaths: 0 });
    }
    this.#dispatch();
    return Promise.all(results);
  }

  async close(): Promise<void> {
    this.#closed = true;
    const closed = new ExpError('EMBEDDER_UNAVAILABLE', this.model.name, 'the embedder was closed');
    for (const batch of [...this.#waiting.query, ...this.#waiting.index]) rejectAll(batch, closed);
    this.#waiting.query = [];
    this.#waiting.index = [];
    await Promise.all([...this.#children].map(endChild));
  }

  #dispatch(): void {
    for (const child of this.#children) {
      if (!child.ready || child.batch) continue;
      const batch = this.#next();
      if (!batch) return;
      child.batch = batch;
      this.#letGoWhenIdle(child);
      const request: EmbedRequest = { id: batch.id, texts: batch.items.map(({ text }) => text) };
      child.process.send(request, (error) => {
        if (error) child.process.kill('SIGKILL'); // its exit puts the batch back
      });
    }
    const waits = this.#waiting.query.length + this.#waiting.index.length;
    let starting = [...this.#children].filter(({ ready }) => !ready).length;
    for (; waits > starting && this.#children.size < this.#maxChildren; starting += 1) this.#start();
  }

  #next(): Batch | undefined {
    for (;;) {
      const batch = this.#waiting.query.shift() ?? this.#waiting.index.shift();
      if (!batch?.signal?.aborted) return batch;
      rejectAll(batch, batch.signal.reason as Error);
    }
  }

  #start(): void {
    const { onnxPath, tokenizerPath, tokenizerConfigPath, maxTokens, pooling } = this.model;
    const config: ChildConfig = { onnxPath, tokenizerPath, tokenizerConfigPath, maxTokens, pooling };
    const process = fork(this.#childPath, [JSON.stringify(config)], {
      serialization: 'advanced',
      execArgv: [],
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    });
    const child: Child = { process, ready: false, batch: null, idle: null };
    this.#children.add(child);
    process.on('message', (message: ChildMessage) => this.#onMessage(child, message));
    process.on('error', () => this.#onExit(child));
    process.on('exit', () => this.#onExit(child));
    this.#letGoWhenIdle(child);
  }

  #onMessage(child: Child, message: ChildMessage): void {
    if (message.kind === 'ready') {
      child.ready = true;
      this.#startFailures = 0;
    } else if (child.batch?.id === message.id) {
      const { batch } = child;
      child.batch = null;
      if (message.kind === 'vectors') this.#settle(batch, message.vectors);
      else rejectAll(batch, new ExpError('EMBEDDER_FAILED', this.model.name, message.message));
    }
    this.#dispatch();
    this.#letGoWhenIdle(child);
  }

  #settle(batch: Batch, vectors: Float32Array): void {
    const { dimension } = this.model;
    if (vectors.length !== batch.items.length * dimension) {
      const got = vectors.length / batch.items.length;
      rejectAll(
        batch,
        new ExpError('INDEX_FINGERPRINT', this.model.name, `yields ${got} dimensions, not ${dimension}`),
      );
      return;
    }
    for (const [index, item] of batch.items.entries()) {
      item.resolve(vectors.slice(index * dimension, (index + 1) * dimension));
    }
  }

  #onExit(child: Child): void {
    if (child.idle) clearTimeout(child.idle);
    if (!this.#children.delete(child) || this.#closed) {
      if (child.batch)
        rejectAll(child.batch, new ExpError('EMBEDDER_UNAVAILABLE', this.model.name, 'the embedder was closed'));
      return;
    }
    const { batch } = child;
    if (batch) {
      batch.deaths += 1;
      if (batch.deaths < MAX_DEATHS) this.#waiting[batch.priority].unshift(batch);
      else
        rejectAll(
          batch,
          new ExpError('EMBEDDER_FAILED', this.model.name, `${MAX_DEATHS} processes died with one batch`),
        );
    } else if (!child.ready) {
      this.#startFailures += 1;
    }
    if (this.#startFailures >= MAX_DEATHS) this.#giveUp();
    else this.#dispatch();
  }

  /** Processes die before they are ready: trying for ever would look like work. */
  #giveUp(): void {
    this.#startFailures = 0;
    const error = new ExpError(
      'EMBEDDER_UNAVAILABLE',
      this.model.name,
      `its process does not start (${this.#childPath})`,
    );
    for (const batch of [...this.#waiting.query, ...this.#waiting.index]) rejectAll(batch, error);
    this.#waiting.query = [];
    this.#waiting.index = [];
  }

  /** An idle child keeps no one from exiting, and ends after a while; one at work does neither. */
  #letGoWhenIdle(child: Child): void {
    const isIdle = child.ready && child.batch === null;
    if (child.idle) clearTimeout(child.idle);
    child.idle = null;
    if (isIdle) {
      child.idle = setTimeout(() => this.#retire(child), IDLE_MS).unref();
      child.process.unref();
      child.process.channel?.unref();
    } else {
      child.process.ref();
      child.process.channel?.ref();
    }
  }

  #retire(child: Child, isLast = false): void {
    if (this.#children.size === 1 && !isLast) {
      child.idle = setTimeout(() => this.#retire(child, true), LAST_IDLE_MS).unref();
      return;
    }
    this.#children.delete(child);
    void endChild(child);
  }
}

function* batchesOf(items: readonly Item[]): Generator<Item[]> {
  let batch: Item[] = [];
  for (const item of items) {
    // Sorted: the new item is the longest, and all before it would be padded to its length.
    const padded = (batch.length + 1) * item.text.length;
    if (batch.length > 0 && (padded > BATCH_CHARACTERS || batch.length >= BATCH_TEXTS)) {
      yield batch;
      batch = [];
    }
    batch.push(item);
  }
  if (batch.length > 0) yield batch;
}

function rejectAll(batch: Batch, error: Error): void {
  for (const { reject } of batch.items) reject(error);
}

function endChild({ process }: Child): Promise<void> {
  if (process.exitCode !== null || process.signalCode !== null) return Promise.resolve();
  return new Promise((resolve) => {
    process.ref();
    process.once('exit', () => resolve());
    process.kill('SIGKILL'); // it holds no state
  });
}

function withResolvers<T>(): { promise: Promise<T>; resolve(value: T): void; reject(error: Error): void } {
  let resolve!: (value: T) => void;
  let reject!: (error: Error) => void;
  const promise = new Promise<T>((yes, no) => {
    resolve = yes;
    reject = no;
  });
  return { promise, resolve, reject };
}

/** The child as JavaScript: beside this file when it runs compiled, in `dist` when it runs from source (tests). */
function compiledChild(): string {
  const here = import.meta.dirname;
  const path =
    extname(import.meta.filename) === '.js'
      ? join(here, 'embedder-child.js')
      : join(here, '..', '..', 'dist', 'environments', 'world', 'embedder-child.js');
  if (!existsSync(path)) throw new ExpError('MODEL_MISSING', path, 'not built; run `./exp setup`');
  return path;
}
