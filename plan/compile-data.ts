/** The nodes of what a spec reads: corpus, index, and questions. */
import type { Experiment } from '../schemas/experiment.ts';
import type { CorpusParameters, TaskFields, TaskSource, TasksParameters, Unkeyed } from '../schemas/node-parameters.ts';
import type { PlanNode } from '../schemas/plan.ts';
import { TASK_COLUMNS } from '../schemas/task-columns.ts';
import { CAPABILITY_PROMPT, isJudged, judgeAddress, judgeParameters } from './judge.ts';
import { derivedSeed, type NodeList } from './node-list.ts';
import type { InputFiles } from './spec-inputs.ts';
import type { ResolvedNames } from './spec-names.ts';
import { splitOf, tasksNode, trains } from './stages.ts';

type SpecSource = Experiment['tasks']['sources'][string];
type ImportedSource = Exclude<TaskSource, { kind: 'generated' }>;

/** The only split of a dataset of the profile. */
export const WHOLE_DATASET = 'all';

export interface DataInput {
  experiment: Experiment;
  names: ResolvedNames;
  inputs: ReadonlyMap<string, InputFiles>;
}

/** Adds each node once, whoever asks for it. */
export class DataNodes {
  readonly #list: NodeList;
  readonly #spec: Experiment;
  readonly #names: ResolvedNames;
  readonly #inputs: ReadonlyMap<string, InputFiles>;

  constructor(list: NodeList, { experiment, names, inputs }: DataInput) {
    this.#list = list;
    this.#spec = experiment;
    this.#names = names;
    this.#inputs = inputs;
  }

  corpus(): void {
    const { corpus, index } = this.#spec;
    const names = Object.keys(corpus.sources).sort();
    const { embedder } = this.#names;
    const sources = Object.fromEntries(names.map((name) => [name, withoutPath(corpus.sources[name] as object)]));
    this.#list.add({
      id: 'corpus',
      kind: 'corpus',
      inputs: [],
      parameters: {
        sources: sources as unknown as CorpusParameters['sources'],
        limit: { pages: corpus.limit?.pages ?? null, chunks: corpus.limit?.chunks ?? null },
        near_duplicates: corpus.near_duplicates ?? null,
        chunk:
          corpus.limit?.chunks === undefined
            ? null
            : { ...index.chunk, tokenizer: { model: embedder.model, sha256: embedder.sha256 } },
      },
      ...this.#filesOf('corpus.sources', corpus.sources),
      needs: corpus.limit?.chunks === undefined ? [] : [{ name: embedder.model, sha256: embedder.sha256 }],
    });
  }

  /** Digests and absolute paths of the sources that read files. */
  #filesOf(
    section: string,
    sources: Record<string, object>,
    names = Object.keys(sources).sort(),
  ): { files: PlanNode['files']; unkeyed: Unkeyed } {
    const expected = names.flatMap((name) => {
      const { expect } = sources[name] as { expect?: { records: number } };
      return expect === undefined ? [] : [[name, expect.records] as const];
    });
    const found = names.flatMap((name) => {
      const input = this.#inputs.get(`${section}.${name}`);
      return input === undefined ? [] : [{ name, input }];
    });
    return {
      files: found.flatMap(({ input }) => input.files),
      unkeyed: {
        paths: Object.fromEntries(found.map(({ name, input }) => [name, input.absolute])),
        ...(expected.length > 0 && { expect: Object.fromEntries(expected) }),
      },
    };
  }

  index(): void {
    const { index } = this.#spec;
    const { model, sha256, dimension } = this.#names.embedder;
    this.#list.add({
      id: 'index',
      kind: 'index',
      inputs: ['corpus'],
      parameters: {
        embedder: { model, sha256, precision: index.embedder.precision, dimension },
        chunk: index.chunk,
        dense: index.dense,
        sparse: index.sparse,
        fusion: index.fusion,
      },
      needs: [{ name: model, sha256 }],
    });
  }

  /** The tasks of one source, or of all: a stage that names its source is not touched by the others. */
  tasks(source: string | undefined): string {
    const { tasks, seed } = this.#spec;
    const id = tasksNode(this.#spec, source);
    if (this.#list.has(id)) return id;
    const names = id === 'tasks' ? Object.keys(tasks.sources).sort() : [source as string];
    const isGenerated = names.some((name) => tasks.sources[name]?.kind === 'generated');
    const asksJudge = names.some((name) => isJudged(tasks.sources[name] as SpecSource));
    const sources = names.map((name) => {
      const written = tasks.sources[name] as SpecSource;
      const own = written.kind === 'generated' ? {} : { capability: this.#capability(written) };
      return [name, { ...withoutPath(written), ...own, seed: written.seed ?? derivedSeed(seed, `tasks.${name}`) }];
    });
    const found = this.#filesOf('tasks.sources', tasks.sources, names);
    const sets = this.#benchmarkSets();
    return this.#list.add({
      id,
      kind: 'tasks',
      inputs: isGenerated ? ['corpus'] : [],
      parameters: {
        sources: Object.fromEntries(sources) as TasksParameters['sources'],
        mix: (tasks.mix as Record<string, number> | undefined) ?? null,
        splits: tasks.splits,
        limit: tasks.limit ?? null,
        decontaminate: sets.parameters,
      },
      files: [...found.files, ...sets.files],
      unkeyed: {
        ...found.unkeyed,
        paths: { ...found.unkeyed.paths, ...sets.paths },
        ...(asksJudge && judgeAddress(this.#spec)),
      },
      seed: tasks.seed,
      needs:
        asksJudge && this.#names.judge ? [{ name: this.#names.judge.model, sha256: this.#names.judge.sha256 }] : [],
    });
  }

  #capability(source: Exclude<SpecSource, { kind: 'generated' }>): ImportedSource['capability'] {
    const judge = judgeParameters(this.#spec, this.#names, CAPABILITY_PROMPT);
    if (isJudged(source) && judge !== null) return { judge };
    return (source.capability as ImportedSource['capability'] | undefined) ?? null;
  }

  /** What training tasks may not overlap with. */
  #benchmarkSets(): {
    parameters: TasksParameters['decontaminate'];
    files: PlanNode['files'];
    paths: Record<string, string>;
  } {
    const { decontaminate, curriculum } = this.#spec;
    if (decontaminate === undefined) return { parameters: null, files: [], paths: {} };
    const against = [...decontaminate.against].sort();
    const trained = Object.values(curriculum).filter(trains).map(splitOf);
    const inputs = against.map((name) => this.#inputs.get(`datasets.${name}`) as InputFiles);
    return {
      parameters: {
        against: Object.fromEntries(against.map((name) => [name, this.#columnsOf(name)])),
        method: decontaminate.method,
        n: decontaminate.n,
        splits: [...new Set(trained)].sort(),
      },
      files: inputs.flatMap(({ files }) => files),
      paths: Object.fromEntries(against.map((name, index) => [`against.${name}`, inputs[index]?.absolute as string])),
    };
  }

  #columnsOf(dataset: string): TaskFields {
    return { ...TASK_COLUMNS, ...this.#names.datasets.get(dataset)?.fields };
  }

  /** The questions of a dataset of the profile: the same for every seed and every experiment. */
  dataset(name: string): string {
    const id = `dataset.${name}`;
    if (this.#list.has(id)) return id;
    const entry = this.#names.datasets.get(name);
    const { files, absolute } = this.#inputs.get(`datasets.${name}`) as InputFiles;
    const source: TaskSource = {
      kind: entry?.format === 'parquet' ? 'parquet' : 'jsonl',
      format: 'columns',
      fields: this.#columnsOf(name),
      limit: null,
      seed: 0,
      capability: null,
      licence: entry?.licence ?? 'unknown',
      provenance: `dataset ${name} of the profile`,
    };
    return this.#list.add({
      id,
      kind: 'tasks',
      inputs: [],
      parameters: {
        sources: { [name]: source },
        mix: null,
        splits: { [WHOLE_DATASET]: 1 },
        limit: null,
        decontaminate: null,
      },
      files,
      unkeyed: { paths: { [name]: absolute }, ...(entry?.records && { expect: { [name]: entry.records } }) },
      seed: 0,
    });
  }
}

/** Where the file is does not matter, only what is in it; what it must hold is checked, not hashed. */
function withoutPath(source: object): object {
  const { path: _path, expect: _expect, ...rest } = source as Record<string, unknown>;
  const readsRecords = _path !== undefined;
  return readsRecords ? { limit: null, ...rest } : rest;
}
