/** From a checked spec to nodes: kinds, inputs, parameters with every default explicit, and content keys. */
import { createHash } from 'node:crypto';
import { canonicalJson, contentKey } from '../schemas/canonical.ts';
import type { Benchmark, Experiment, Stage } from '../schemas/experiment.ts';
import {
  type AdapterParameters,
  type AgentParameters,
  type CorpusParameters,
  type NodeParameters,
  type PolicyParameters,
  type RewardParameters,
  type TasksParameters,
  UNKNOWN_DIGEST,
  type Unkeyed,
} from '../schemas/node-parameters.ts';
import type { NodeKind, PlanNode } from '../schemas/plan.ts';
import { KIND_VERSIONS } from './kind-versions.ts';
import type { InputFiles } from './spec-inputs.ts';
import type { ResolvedNames } from './spec-names.ts';
import { agentOf, benchmarkAgent, benchmarkContext, measuredAfter, parentOf, splitOf, trains } from './stages.ts';

const STOCHASTIC: readonly NodeKind[] = ['tasks', 'trajectories', 'profile', 'sft', 'rl', 'benchmark'];

export interface CompileInput {
  experiment: Experiment;
  names: ResolvedNames;
  inputs: ReadonlyMap<string, InputFiles>;
}

type StageOf<K extends Stage['kind']> = Extract<Stage, { kind: K }>;

/** Nodes in an order in which every input comes before its readers. */
export function compileNodes(input: CompileInput): PlanNode[] {
  const compiler = new Compiler(input);
  compiler.compile();
  return compiler.nodes;
}

/** First 31 bits of SHA-256 of `<root seed>:<name>`. */
export function derivedSeed(root: number, name: string): number {
  return createHash('sha256').update(`${root}:${name}`).digest().readUInt32BE(0) >>> 1;
}

interface NodeDraft<K extends NodeKind> {
  id: string;
  kind: K;
  inputs: string[];
  parameters: NodeParameters[K];
  files?: PlanNode['files'];
  seed?: number | undefined;
  unkeyed?: Unkeyed;
  /** What makes this key unknown, besides unknown inputs and files. */
  needs?: readonly { name: string; sha256: string }[];
}

class Compiler {
  readonly nodes: PlanNode[] = [];
  readonly #spec: Experiment;
  readonly #names: ResolvedNames;
  readonly #inputs: ReadonlyMap<string, InputFiles>;

  constructor({ experiment, names, inputs }: CompileInput) {
    this.#spec = experiment;
    this.#names = names;
    this.#inputs = inputs;
  }

  compile(): void {
    this.#corpus();
    this.#index();
    this.#tasks();
    for (const name of Object.keys(this.#spec.curriculum)) this.#stage(name);
    const benchmarks = Object.entries(this.#spec.benchmarks).flatMap(([name, benchmark]) =>
      measuredAfter(this.#spec, benchmark).map((after) => this.#benchmark(name, benchmark, after)),
    );
    const sorted = [...benchmarks].sort();
    this.#add({ id: 'report', kind: 'report', inputs: sorted, parameters: { benchmarks: sorted } });
  }

  #add<K extends NodeKind>({
    id,
    kind,
    inputs,
    parameters,
    files = [],
    seed,
    unkeyed = {},
    needs = [],
  }: NodeDraft<K>): string {
    const parents = inputs.map((input) => this.#node(input));
    const kind_version = KIND_VERSIONS[kind];
    const ownSeed = STOCHASTIC.includes(kind) ? (seed ?? derivedSeed(this.#spec.seed, id)) : null;
    const sorted = JSON.parse(canonicalJson(parameters)) as PlanNode['parameters'];
    const unknown = new Set([
      ...parents.flatMap((parent) => (parent.unkeyed as Unkeyed).unknown ?? []),
      ...needs.filter(({ sha256 }) => sha256 === UNKNOWN_DIGEST).map(({ name }) => name),
      ...files.filter(({ sha256 }) => sha256 === UNKNOWN_DIGEST).map(({ path }) => path),
    ]);
    const key = contentKey({
      kind,
      kind_version,
      parameters: sorted,
      inputs: parents.map((parent) => parent.key),
      files: files.map(({ sha256 }) => sha256),
      seed: ownSeed,
    });
    const open: Unkeyed = { ...unkeyed, ...(unknown.size > 0 && { unknown: [...unknown] }) };
    this.nodes.push({
      id,
      kind,
      kind_version,
      key,
      inputs,
      parameters: sorted,
      files,
      seed: ownSeed,
      unkeyed: { ...open },
    });
    return id;
  }

  #node(id: string): PlanNode {
    const found = this.nodes.find((node) => node.id === id);
    if (!found) throw new Error(`node ${id} is read before it is made`);
    return found;
  }

  #corpus(): void {
    const { corpus, index } = this.#spec;
    const names = Object.keys(corpus.sources).sort();
    const { embedder } = this.#names;
    const sources = Object.fromEntries(names.map((name) => [name, withoutPath(corpus.sources[name] as object)]));
    this.#add({
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
      ...this.#filesOf('corpus.sources', names),
      needs: corpus.limit?.chunks === undefined ? [] : [{ name: embedder.model, sha256: embedder.sha256 }],
    });
  }

  /** Digests and absolute paths of the sources that read files. */
  #filesOf(section: string, names: readonly string[]): { files: PlanNode['files']; unkeyed: Unkeyed } {
    const found = names.flatMap((name) => {
      const input = this.#inputs.get(`${section}.${name}`);
      return input === undefined ? [] : [{ name, input }];
    });
    return {
      files: found.flatMap(({ input }) => input.files),
      unkeyed: { paths: Object.fromEntries(found.map(({ name, input }) => [name, input.absolute])) },
    };
  }

  #index(): void {
    const { index } = this.#spec;
    const { model, sha256, dimension } = this.#names.embedder;
    this.#add({
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

  #tasks(): void {
    const { tasks, seed } = this.#spec;
    const names = Object.keys(tasks.sources).sort();
    const isGenerated = Object.values(tasks.sources).some(({ kind }) => kind === 'generated');
    const sources = names.map((name) => {
      const source = tasks.sources[name] as Experiment['tasks']['sources'][string];
      return [name, { ...withoutPath(source), seed: source.seed ?? derivedSeed(seed, `tasks.${name}`) }];
    });
    this.#add({
      id: 'tasks',
      kind: 'tasks',
      inputs: isGenerated ? ['corpus'] : [],
      parameters: {
        sources: Object.fromEntries(sources) as TasksParameters['sources'],
        mix: isGenerated && tasks.mix ? (tasks.mix as Record<string, number>) : null,
        splits: tasks.splits,
        limit: tasks.limit ?? null,
      },
      ...this.#filesOf('tasks.sources', names),
      seed: tasks.seed,
    });
  }

  /** The nodes of a stage, after those of the stage it starts from. */
  #stage(name: string): void {
    if (this.nodes.some(({ id }) => id === name)) return;
    const stage = this.#spec.curriculum[name] as Stage;
    const parent = parentOf(stage);
    if (parent !== null) this.#stage(parent);
    const start = parent === null ? [] : [parent];
    if (stage.kind === 'sft') this.#sft(name, stage, start);
    else if (stage.kind === 'rl') this.#rl(name, stage, start);
    else this.#profile(name, stage, stage.sampling, start);
  }

  #sft(name: string, stage: StageOf<'sft'>, start: string[]): void {
    const { trajectories } = stage;
    const { policy } = this.#names;
    const isImport = trajectories.source !== 'demonstrations';
    const imported = this.#inputs.get(`curriculum.${name}.trajectories.source`);
    const source = this.#add({
      id: `${name}.trajectories`,
      kind: 'trajectories',
      inputs: isImport ? [] : ['tasks', 'index'],
      parameters: {
        source: isImport ? 'import' : 'demonstrations',
        count: trajectories.count ?? null,
        resample: trajectories.resample
          ? {
              by: 'turns',
              bands: trajectories.resample.bands.map(({ up_to, weight }) => ({ up_to: up_to ?? null, weight })),
            }
          : null,
        clean: trajectories.clean ?? null,
        agent: this.#agent(agentOf(this.#spec, stage)),
        context_length: stage.context_length,
        model: { name: policy.model, sha256: policy.sha256 },
        split: splitOf(stage),
      },
      ...(imported && { files: imported.files, unkeyed: { paths: { trajectories: imported.absolute } } }),
      seed: stage.seed,
      needs: [this.#policyNeed()],
    });
    this.#add({
      id: name,
      kind: 'sft',
      inputs: [source, ...start],
      parameters: {
        optimizer: stage.optimizer,
        context_length: stage.context_length,
        adapter: this.#adapter(),
        policy: { ...this.#policy(), dtype: this.#spec.policy.dtype },
        loss: stage.loss,
      },
      seed: stage.seed,
      unkeyed: stageUnkeyed(stage),
      needs: [this.#policyNeed()],
    });
  }

  #profile(
    id: string,
    stage: StageOf<'profile' | 'rl'>,
    sampling: { temperature: number; top_p: number },
    start: string[],
  ): string {
    const difficulty = stage.difficulty as NonNullable<typeof stage.difficulty>;
    return this.#add({
      id,
      kind: 'profile',
      inputs: ['tasks', 'index', ...start],
      parameters: {
        tasks: difficulty.tasks ?? null,
        split: splitOf(stage),
        rollouts: difficulty.rollouts,
        keep: difficulty.keep,
        agent: this.#agent(agentOf(this.#spec, stage)),
        context_length: stage.context_length,
        sampling: { temperature: sampling.temperature, top_p: sampling.top_p },
        reward: this.#reward(stage.reward),
        policy: this.#policy(),
      },
      seed: stage.seed,
      needs: [this.#policyNeed()],
    });
  }

  #rl(name: string, stage: StageOf<'rl'>, start: string[]): void {
    const { algorithm, rollout, optimizer, until } = stage;
    const profiled = stage.difficulty ? [this.#profile(`${name}.profile`, stage, rollout, start)] : [];
    this.#add({
      id: name,
      kind: 'rl',
      inputs: [...profiled, 'tasks', 'index', ...start],
      parameters: {
        algorithm: {
          name: algorithm.name,
          clip: { low: algorithm.clip.low, high: algorithm.clip.high, dual: algorithm.clip.dual ?? null },
          kl: algorithm.kl === undefined || algorithm.kl === 0 ? null : algorithm.kl,
          loss: algorithm.loss,
          importance: algorithm.importance
            ? { ...algorithm.importance, veto: algorithm.importance.veto ?? null }
            : null,
          normalize_std: algorithm.normalize_std,
        },
        rollout,
        optimizer: { ...optimizer, minibatch: optimizer.minibatch ?? rollout.prompts_per_step },
        until: { steps: until.steps ?? null, epochs: until.epochs ?? null },
        keep: stage.difficulty?.keep ?? null,
        agent: this.#agent(agentOf(this.#spec, stage)),
        context_length: stage.context_length,
        reward: this.#reward(stage.reward),
        adapter: this.#adapter(),
        policy: { ...this.#policy(), dtype: this.#spec.policy.dtype },
        tasks: { split: splitOf(stage) },
      },
      seed: stage.seed,
      unkeyed: stageUnkeyed(stage),
      needs: [this.#policyNeed()],
    });
  }

  #benchmark(name: string, benchmark: Benchmark, after: string): string {
    const { dataset } = benchmark;
    return this.#add({
      id: `${name}.${after}`,
      kind: 'benchmark',
      inputs: ['tasks', 'index', ...(trains(this.#spec.curriculum[after]) ? [after] : [])],
      parameters: {
        benchmark: name,
        after,
        dataset: {
          split: dataset.split,
          limit: dataset.limit ?? null,
          seed: dataset.seed ?? derivedSeed(this.#spec.seed, `benchmarks.${name}`),
        },
        samples: benchmark.samples,
        metrics: [...benchmark.metrics].sort(),
        agent: this.#agent(benchmarkAgent(this.#spec, benchmark)),
        context_length: benchmarkContext(this.#spec, benchmark) as number,
        sampling: benchmark.sampling,
        policy: this.#policy(),
        reward: this.#reward(benchmark.reward),
      },
      seed: benchmark.seed,
      needs: [this.#policyNeed()],
    });
  }

  #policy(): PolicyParameters {
    return { model: this.#names.policy.model, sha256: this.#names.policy.sha256 };
  }

  #policyNeed(): { name: string; sha256: string } {
    return { name: this.#names.policy.model, sha256: this.#names.policy.sha256 };
  }

  #adapter(): AdapterParameters | null {
    const { adapter } = this.#spec.policy;
    if (adapter === undefined) return null;
    return {
      lora_rank: adapter.lora_rank,
      lora_alpha: adapter.lora_alpha ?? 2 * adapter.lora_rank,
      lora_dropout: adapter.lora_dropout,
    };
  }

  #agent(agent: Experiment['agent']): AgentParameters {
    return { ...agent, tools: [...agent.tools].sort() };
  }

  #reward(own: Partial<Experiment['reward']> | undefined): RewardParameters {
    const reward = { ...this.#spec.reward, ...own };
    const { judge } = this.#names;
    const prompt_sha256 = this.#inputs.get('judge.prompt')?.files[0]?.sha256 ?? UNKNOWN_DIGEST;
    return { ...reward, judge: reward.outcome === 'judge' && judge ? { ...judge, prompt_sha256 } : null };
  }
}

/** Where the file is does not matter, only what is in it; what it must hold is checked, not hashed. */
function withoutPath(source: object): object {
  const { path: _path, expect: _expect, ...rest } = source as Record<string, unknown>;
  const readsRecords = _path !== undefined;
  return readsRecords ? { limit: null, ...rest } : rest;
}

function stageUnkeyed({ resources, checkpoint }: Stage): Unkeyed {
  return { checkpoint, ...(resources && { resources }) };
}
