import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Tokenizer } from '../environments/deep-research/prompt.ts';
import { hashFraction } from '../environments/deep-research/tasks/seeded.ts';
import {
  type ImportedRecord,
  type ImportOptions,
  importRecord,
} from '../environments/deep-research/trajectories/import-record.ts';
import { formatOf, type TrajectoryFormat } from '../environments/deep-research/trajectories/read-record.ts';
import { writtenTrajectory } from '../environments/deep-research/trajectories/written-trajectory.ts';
import { RowReport } from '../environments/world/sources/row-report.ts';
import type { ArtifactRef } from '../schemas/artifact.ts';
import { ExpError } from '../schemas/errors.ts';
import type { ImportParameters, Unkeyed } from '../schemas/node-parameters.ts';
import type { Trajectory } from '../schemas/trajectory.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import { ImportTally } from './import-tally.ts';
import type { NodeRef } from './index.ts';
import type { PlanReader } from './plan-reader.ts';
import { sourceRows } from './source-rows.ts';
import { throttled } from './throttled-progress.ts';
import { writeTrajectories } from './write-trajectories.ts';

export interface ImportDeps {
  plans: PlanReader;
  store: ArtifactStore;
  tokenizers: { load(model: string): Promise<Tokenizer> };
  progress(key: string, done: number, total: number, detail: string): Promise<void>;
  /** Scratch space. */
  work: string;
}

/** Trajectories of a file, cleaned and weighed, as the artifact of a node. One record is in memory at a time. */
export async function importTrajectories(
  deps: ImportDeps,
  ref: NodeRef,
  { parameters, seed, unkeyed }: { parameters: ImportParameters; seed: number | null; unkeyed: Unkeyed },
  moved: () => void,
): Promise<ArtifactRef> {
  const { plans, store, tokenizers, progress, work } = deps;
  const path = unkeyed.paths?.['trajectories'];
  if (path === undefined) throw new ExpError('REF', ref.id, 'the source of the trajectories has no path');
  const total = unkeyed.expect?.['trajectories'] ?? 0;
  const report = throttled((done, detail) => progress(ref.key, done, total, detail));
  const imported = new TrajectoryImport({
    path,
    source: `${ref.id} (${path})`,
    parameters,
    seed: seed ?? 0,
    tokenizer: await tokenizers.load(parameters.model.name),
    ...(unkeyed.expect && { expect: total }),
    moved(tally) {
      moved();
      report(tally.records, tally.inWords());
    },
  });

  await mkdir(work, { recursive: true });
  const folder = await mkdtemp(join(work, 'trajectories-'));
  try {
    const files = await writeTrajectories(folder, imported.trajectories(ref.key.slice(0, 12)));
    files['report.json'] = join(folder, 'report.json');
    await writeFile(files['report.json'], `${JSON.stringify(imported.report(), null, 2)}\n`);
    await report.last();
    await progress(ref.key, imported.tally.records, imported.tally.records, imported.tally.inWords());
    return await store.publish({
      key: ref.key,
      kind: 'trajectories',
      inputs: await plans.lineage(ref),
      files,
      onStored: moved,
      body: imported.tally.body(),
      metrics: imported.tally.metrics(Date.now()),
    });
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

export interface TrajectoryImportOptions {
  /** A file, a folder or a glob. */
  path: string;
  /** What messages call the source. */
  source: string;
  parameters: Pick<
    ImportParameters,
    'format' | 'clean' | 'resample' | 'count' | 'context_length' | 'licence' | 'provenance'
  > & { agent: Pick<ImportParameters['agent'], 'tools'> };
  seed: number;
  tokenizer: Tokenizer;
  /** Records the source must have. */
  expect?: number;
  /** After every record. */
  moved(tally: ImportTally): void;
}

/** One pass over the records of a source; two when `count` has to choose among them. */
export class TrajectoryImport {
  readonly #options: TrajectoryImportOptions;
  readonly #rows: RowReport;
  readonly tally: ImportTally;
  #format: TrajectoryFormat | null;

  constructor(options: TrajectoryImportOptions) {
    this.#options = options;
    this.#rows = new RowReport(options.source);
    this.#format = options.parameters.format;
    this.tally = new ImportTally(options.parameters.resample);
  }

  /**
   * Every instance that is trained on, in the order of the source. A record that cannot be read is counted; when more
   * than 1 % cannot, or the source has not as many as it should, or nothing is kept, it throws.
   */
  async *trajectories(prefix: string): AsyncGenerator<Trajectory> {
    const chosen = await this.#choose();
    for await (const { at, record } of this.#records()) {
      if (record.status === 'bad') {
        this.#rows.reject(at, record.reason);
        this.tally.bad();
      } else {
        this.#rows.accept();
        const isOver = record.status === 'kept' && chosen !== null && !chosen.has(at);
        const taken: typeof record = isOver ? { ...record, status: 'dropped', reason: 'over_count' } : record;
        const copies = this.tally.add(taken);
        for (let copy = 0; copy < copies && taken.status === 'kept'; copy += 1)
          yield writtenTrajectory({
            ...taken.written,
            trajectory_id: `${prefix}/${at}/${copy}`,
            task_id: taskId(taken.written.question),
            sample: copy,
            checkpoint: 'imported',
          });
      }
      this.#options.moved(this.tally);
    }
    this.#rows.check(this.#options.expect);
    const { instances, dropped } = this.tally.body();
    if (instances > 0) return;
    const hint = dropped['wrong_answer']
      ? '. An answer is right when it is the reference; name a column with a verdict in `clean.verdict`, or keep all by `clean.require_correct: false`'
      : '';
    throw new ExpError('NO_TRAJECTORIES', this.#options.source, `nothing is left: ${this.tally.inWords()}${hint}`);
  }

  report(): object {
    const { licence, provenance } = this.#options.parameters;
    return { ...this.tally.report(), format: this.#format, licence, provenance, bad_rows: this.#rows.examples };
  }

  /** Which records `count` keeps: by a seeded order, so that a smaller number is part of a larger one. Null is all. */
  async #choose(): Promise<Set<string> | null> {
    const { parameters, seed, moved } = this.#options;
    if (parameters.count === null) return null;
    const ranks: { at: string; rank: number }[] = [];
    for await (const { at, record } of this.#records()) {
      if (record.status === 'kept') ranks.push({ at, rank: hashFraction(`${seed}/count/${at}`) });
      moved(this.tally);
    }
    ranks.sort((a, b) => a.rank - b.rank || (a.at < b.at ? -1 : 1));
    return new Set(ranks.slice(0, parameters.count).map(({ at }) => at));
  }

  async *#records(): AsyncGenerator<{ at: string; record: ImportedRecord }> {
    const { path, parameters, tokenizer } = this.#options;
    const { clean, agent, context_length } = parameters;
    const options: ImportOptions = { clean, tools: agent.tools, context_length, tokenizer };
    for await (const { at, row, error } of sourceRows(path)) {
      this.#format ??= formatOf(row);
      const reason =
        error ?? (this.#format === null ? 'no shape of trajectories that is known; name its `format`' : null);
      yield {
        at,
        record:
          reason === null && this.#format !== null
            ? importRecord(row, this.#format, options)
            : { status: 'bad', reason: reason as string },
      };
    }
  }
}

/** Trajectories of the same question belong together. */
const taskId = (question: string): string =>
  `imported-${createHash('sha256').update(question).digest('hex').slice(0, 16)}`;
