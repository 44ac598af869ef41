/** From a checked spec to nodes: kinds, inputs, parameters with every default explicit, and content keys. */
import { createHash } from 'node:crypto';
import { ALGORITHM_DEFAULTS, IGPO_PRESETS, type IgpoSettings } from '../schemas/algorithms.ts';
import { canonicalJson, contentKey } from '../schemas/canonical.ts';
import type { Benchmark, Experiment, Stage } from '../schemas/experiment.ts';
import {
  type AdapterParameters,
  type AgentParameters,
  type AlgorithmParameters,
  type BackendParameters,
  type BenchmarkParameters,
  type CorpusParameters,
  type HealthParameters,
  type NodeParameters,
  type PolicyParameters,
  type RewardParameters,
  type RlParameters,
  type TaskFields,
  type TaskSource,
  type TasksParameters,
  UNKNOWN_DIGEST,
  type Unkeyed,
} from '../schemas/node-parameters.ts';
import type { NodeKind, PlanNode } from '../schemas/plan.ts';
import { TASK_COLUMNS } from '../schemas/task.ts';
import { KIND_VERSIONS } from './kind-versions.ts';
import { nodeKey } from './node-key.ts';
import type { InputFiles } from './spec-inputs.ts';
import type { ResolvedNames } from './spec-names.ts';
import {
  agentOf,
  allProtocols,
  ancestorsOf,
  benchmarkAgent,
  benchmarkContext,
  datasetOf,
  measuredAfter,
  type Protocol,
  parentOf,
  resultNames,
  splitOf,
  stageNamed,
  tasksNode,
  trains,
} from './stages.ts';

const STOCHASTIC: readonly NodeKind[] = ['tasks', 'trajectories', 'profile', 'sft', 'rl', 'benchmark'];

/** The only split of a dataset of the profile. */
const WHOLE_DATASET = 'all';
/** Stands for the base policy where a stage could. */
const BASE = 'base';

export interface CompileInput {
  experiment: Experiment;
  names: ResolvedNames;
  inputs: ReadonlyMap<string, InputFiles>;
  /** Stages that `reuse` takes from a run, as that run's plan has them; null where the run is not known. */
  reused?: ReadonlyMap<string, ReusedStage | null>;
  /** Parameters by key, of the arms before: what arms have in common is put in order once, and kept once. */
  known?: Map<string, PlanNode['parameters']>;
}

/** A node of an earlier run that stands for a stage of this spec. */
export interface ReusedStage {
  run: string;
  node: PlanNode;
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
  readonly #reused: ReadonlyMap<string, ReusedStage | null>;
  readonly #known: Map<string, PlanNode['parameters']>;

  constructor({ experiment, names, inputs, reused = new Map(), known = new Map() }: CompileInput) {
    this.#reused = reused;
    this.#known = known;
    this.#spec = experiment;
    this.#names = names;
    this.#inputs = inputs;
  }

  compile(): void {
    this.#corpus();
    this.#index();
    const above = new Set([...this.#reused.keys()].flatMap((name) => ancestorsOf(this.#spec, name)));
    for (const name of Object.keys(this.#spec.curriculum)) if (!above.has(name)) this.#stage(name);
    const benchmarks = allProtocols(this.#spec).flatMap(([name, protocol]) =>
      measuredAfter(this.#spec, protocol).map((after) => this.#benchmark(name, protocol, after)),
    );
    if (!this.nodes.some(({ kind }) => kind === 'tasks')) this.#tasks(undefined);
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
    const unknown = new Set([
      ...parents.flatMap((parent) => (parent.unkeyed as Unkeyed).unknown ?? []),
      ...needs.filter(({ sha256 }) => sha256 === UNKNOWN_DIGEST).map(({ name }) => name),
      ...files.filter(({ sha256 }) => sha256 === UNKNOWN_DIGEST).map(({ path }) => path),
    ]);
    const key = nodeKey(
      { kind, kind_version, parameters: { ...parameters }, files, seed: ownSeed },
      parents.map((parent) => parent.key),
    );
    const sorted = this.#known.get(key) ?? (JSON.parse(canonicalJson(parameters)) as PlanNode['parameters']);
    this.#known.set(key, sorted);
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

  #has(id: string): boolean {
    return this.nodes.some((node) => node.id === id);
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

  /** The tasks of one source, or of all: a stage that names its source is not touched by the others. */
  #tasks(source: string | undefined): string {
    const { tasks, seed } = this.#spec;
    const id = tasksNode(this.#spec, source);
    if (this.#has(id)) return id;
    const names = id === 'tasks' ? Object.keys(tasks.sources).sort() : [source as string];
    const isGenerated = names.some((name) => tasks.sources[name]?.kind === 'generated');
    const sources = names.map((name) => {
      const written = tasks.sources[name] as Experiment['tasks']['sources'][string];
      const own = written.kind === 'generated' ? {} : { capability: written.capability ?? null };
      return [name, { ...withoutPath(written), ...own, seed: written.seed ?? derivedSeed(seed, `tasks.${name}`) }];
    });
    const found = this.#filesOf('tasks.sources', tasks.sources, names);
    const sets = this.#benchmarkSets();
    return this.#add({
      id,
      kind: 'tasks',
      inputs: isGenerated ? ['corpus'] : [],
      parameters: {
        sources: Object.fromEntries(sources) as TasksParameters['sources'],
        mix: isGenerated && tasks.mix ? (tasks.mix as Record<string, number>) : null,
        splits: tasks.splits,
        limit: tasks.limit ?? null,
        decontaminate: sets.parameters,
      },
      files: [...found.files, ...sets.files],
      unkeyed: { ...found.unkeyed, paths: { ...found.unkeyed.paths, ...sets.paths } },
      seed: tasks.seed,
    });
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
  #dataset(name: string): string {
    const id = `dataset.${name}`;
    if (this.#has(id)) return id;
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
    return this.#add({
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

  /** The nodes of a stage, after those of the stage it starts from. */
  #stage(name: string): void {
    if (this.#has(name)) return;
    const stage = this.#spec.curriculum[name] as Stage;
    const parent = this.#reused.has(name) ? null : parentOf(stage);
    if (parent !== null) this.#stage(parent);
    const start = parent === null ? [] : [parent];
    if (this.#reused.has(name)) this.#reuse(name, stage.kind);
    else if (stage.kind === 'sft') this.#sft(name, stage, start);
    else if (stage.kind === 'rl') this.#rl(name, stage, start);
    else this.#profile(name, stage, stage.sampling, start);
  }

  /** What an earlier run made stands here under its own key; what that was made from is not asked again. */
  #reuse(name: string, kind: NodeKind): void {
    const found = this.#reused.get(name);
    const unknown = [`the run of reuse.stages.${name}`];
    const stand = found?.node ?? {
      kind,
      kind_version: KIND_VERSIONS[kind],
      key: contentKey({ reuse: name, unknown: true }),
      parameters: {},
      files: [],
      seed: null,
    };
    const unkeyed: Unkeyed = found ? { reused_from: found.run } : { reused_from: 'unknown', unknown };
    this.nodes.push({ ...stand, id: name, inputs: [], unkeyed: { ...unkeyed } });
  }

  #sft(name: string, stage: StageOf<'sft'>, start: string[]): void {
    const { trajectories } = stage;
    const agent = agentOf(this.#spec, stage);
    const { policy } = this.#names;
    const isImport = trajectories.source !== 'demonstrations';
    const imported = this.#inputs.get(`curriculum.${name}.trajectories.source`);
    const source = this.#add({
      id: `${name}.trajectories`,
      kind: 'trajectories',
      inputs: isImport ? [] : [this.#tasks(stage.tasks?.source), 'index'],
      parameters: {
        ...(isImport
          ? {
              source: 'import' as const,
              licence: trajectories.licence ?? 'unknown',
              provenance: trajectories.provenance ?? 'unknown',
            }
          : { source: 'demonstrations' as const }),
        format: trajectories.format ?? null,
        count: trajectories.count ?? null,
        resample: trajectories.resample
          ? {
              by: 'turns',
              bands: trajectories.resample.bands.map(({ up_to, weight }) => ({ up_to: up_to ?? null, weight })),
            }
          : null,
        clean: trajectories.clean
          ? {
              ...trajectories.clean,
              tools: [...(trajectories.clean.tools ?? agent.tools)].sort(),
              verdict: trajectories.clean.verdict ?? null,
            }
          : null,
        agent: this.#agent(agent),
        context_length: stage.context_length,
        model: { name: policy.model, sha256: policy.sha256 },
        split: splitOf(stage),
      },
      ...(imported && {
        files: imported.files,
        unkeyed: {
          paths: { trajectories: imported.absolute },
          ...(trajectories.expect && { expect: { trajectories: trajectories.expect.records } }),
        },
      }),
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
      inputs: [this.#tasks(stage.tasks?.source), 'index', ...start],
      parameters: {
        tasks: difficulty.tasks ?? null,
        split: splitOf(stage),
        rollouts: difficulty.rollouts,
        keep: difficulty.keep,
        stop_decided: difficulty.stop_decided,
        keep_mix: difficulty.keep_mix,
        buckets: difficulty.buckets ? { ...difficulty.buckets, weights: difficulty.buckets.weights ?? null } : null,
        agent: this.#agent(agentOf(this.#spec, stage)),
        context_length: stage.context_length,
        sampling: { temperature: sampling.temperature, top_p: sampling.top_p },
        reward: this.#reward(stage.reward),
        policy: this.#policy(),
      },
      seed: stage.seed,
      unkeyed: this.#judgeAt(stage.reward),
      needs: [this.#policyNeed()],
    });
  }

  #rl(name: string, stage: StageOf<'rl'>, start: string[]): void {
    const { rollout, optimizer, until, difficulty } = stage;
    const profiled = stage.difficulty ? [this.#profile(`${name}.profile`, stage, rollout, start)] : [];
    const evaluated = stage.evaluate && this.#evaluation(stage.evaluate, until.plateau?.metric);
    const reference = this.#klReference(stage);
    this.#add({
      id: name,
      kind: 'rl',
      inputs: [
        ...new Set([
          ...profiled,
          this.#tasks(stage.tasks?.source),
          'index',
          ...start,
          ...(evaluated?.inputs ?? []),
          ...(reference === null || reference === BASE ? [] : [reference]),
        ]),
      ],
      parameters: {
        backend: backendParameters(stage.backend, this.#spec.policy.engine),
        algorithm: algorithmParameters(stage, reference),
        rollout: { ...rollout, cutoff: rollout.cutoff ?? null },
        optimizer: { ...optimizer, minibatch: optimizer.minibatch ?? rollout.prompts_per_step },
        until: { steps: until.steps ?? null, epochs: until.epochs ?? null, plateau: until.plateau ?? null },
        evaluate: evaluated?.parameters ?? null,
        health: stage.health ? healthParameters(stage.health) : null,
        refresh_every: difficulty?.refresh_every ?? null,
        keep: difficulty ? { ...difficulty.keep, of: difficulty.rollouts } : null,
        agent: this.#agent(agentOf(this.#spec, stage)),
        context_length: stage.context_length,
        reward: this.#reward(stage.reward),
        adapter: this.#adapter(),
        policy: { ...this.#policy(), dtype: this.#spec.policy.dtype },
        tasks: { split: splitOf(stage) },
      },
      seed: stage.seed,
      unkeyed: {
        ...stageUnkeyed(stage),
        ...this.#judgeAt(stage.reward),
        ...beliefsOf(stage),
      },
      needs: [this.#policyNeed()],
    });
  }

  /** The stage a KL term is measured to; null for the weights the stage starts from. */
  #klReference({ from, algorithm: { kl } }: StageOf<'rl'>): string | null {
    if (kl === undefined || kl === 0 || kl.reference === undefined || kl.reference === from) return null;
    const stage = stageNamed(kl.reference);
    if (stage !== null) this.#stage(stage);
    return stage ?? BASE;
  }

  /** A benchmark measured within a stage, with all that decides its numbers. */
  #evaluation(
    { benchmark: name, every }: NonNullable<StageOf<'rl'>['evaluate']>,
    plateauMetric: string | undefined,
  ): { inputs: string[]; parameters: RlParameters['evaluate'] } {
    const benchmark = this.#spec.benchmarks[name] as Benchmark;
    const { max_turns, ...rest } = benchmark;
    const protocol: Protocol = { ...rest, ...(typeof max_turns === 'number' && { max_turns }) };
    const questions = this.#questions(protocol);
    const metric = plateauMetric ?? `eval/${name}/${resultNames(protocol)[0]}`;
    return {
      inputs: [questions, 'index'],
      parameters: { benchmark: name, every, metric, questions, protocol: this.#protocol(name, protocol) },
    };
  }

  #benchmark(name: string, protocol: Protocol, after: string): string {
    const questions = this.#questions(protocol);
    if (trains(this.#spec.curriculum[after])) this.#stage(after);
    return this.#add({
      id: `${name}.${after}`,
      kind: 'benchmark',
      inputs: [questions, 'index', ...(trains(this.#spec.curriculum[after]) ? [after] : [])],
      parameters: { benchmark: name, after, ...this.#protocol(name, protocol) },
      seed: protocol.seed,
      unkeyed: this.#judgeAt(protocol.reward),
      needs: [this.#policyNeed()],
    });
  }

  /** The node that holds the questions of a benchmark. */
  #questions(protocol: Protocol): string {
    const { name } = datasetOf(protocol);
    return name === undefined ? this.#tasks(undefined) : this.#dataset(name);
  }

  #protocol(name: string, protocol: Protocol): Omit<BenchmarkParameters, 'benchmark' | 'after'> {
    const { split = WHOLE_DATASET, limit = null, seed } = datasetOf(protocol);
    return {
      dataset: { split, limit, seed: seed ?? derivedSeed(this.#spec.seed, `benchmarks.${name}`) },
      samples: protocol.samples,
      metrics: [...protocol.metrics].sort(),
      agent: this.#agent(benchmarkAgent(this.#spec, protocol)),
      context_length: benchmarkContext(this.#spec, protocol) as number,
      sampling: protocol.sampling,
      policy: this.#policy(),
      reward: this.#reward(protocol.reward),
    };
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
    return { ...agent, tools: [...agent.tools].sort(), faults: (agent.faults as AgentParameters['faults']) ?? null };
  }

  #reward(own: Partial<Experiment['reward']> | undefined): RewardParameters {
    const reward = { ...this.#spec.reward, ...own };
    const { judge } = this.#names;
    if (reward.outcome !== 'judge' || !judge || !this.#spec.judge) return { ...reward, judge: null };
    const { temperature, max_tokens } = this.#spec.judge;
    const prompt = this.#inputs.get('judge.prompt')?.text ?? UNKNOWN_DIGEST;
    return { ...reward, judge: { ...judge, prompt, temperature, max_tokens } };
  }

  /** Where the judge is that a reward asks. */
  #judgeAt(own: Partial<Experiment['reward']> | undefined): Unkeyed {
    const { judge, reward } = this.#spec;
    if ((own?.outcome ?? reward.outcome) !== 'judge' || judge?.url === undefined) return {};
    const { url, api_key, retries, on_failure } = judge;
    return { judge: { url, ...(api_key && { api_key }), retries, on_failure } };
  }
}

/** Tokens up to which the engine computes beliefs unless the spec says: it prefills the whole context for each. */
const ENGINE_BELIEFS_CONTEXT = 8192;

function algorithmParameters({ algorithm }: StageOf<'rl'>, reference: string | null): AlgorithmParameters {
  const { name, clip, kl, entropy, loss, importance, normalize_std, overlong } = algorithm;
  const defaults = ALGORITHM_DEFAULTS[name];
  return {
    name,
    clip: { ...defaults.clip, ...clip, dual: clip.dual ?? null },
    kl: kl === undefined || kl === 0 ? null : { coefficient: kl.coefficient, estimator: kl.estimator, reference },
    entropy,
    loss: loss ?? defaults.loss,
    importance: importance ? { ...importance, veto: importance.veto ?? null } : null,
    normalize_std: normalize_std ?? defaults.normalize_std,
    overlong: overlong ?? null,
    igpo: name === 'igpo' ? igpoSettings(algorithm) : null,
  };
}

/** The preset with what is written in its place; its name is no part of the result. */
function igpoSettings({ preset = 'dr_venus', gamma, information_gain }: StageOf<'rl'>['algorithm']): IgpoSettings {
  const { beliefs: _, ...written } = information_gain ?? {};
  const settings = { ...IGPO_PRESETS[preset], ...(gamma !== undefined && { gamma }), ...written };
  return { ...settings, scope: settings.scope && [...settings.scope].sort() };
}

/** What computes the beliefs of a stage. An engine scores prompts at temperature 1 whatever it is asked for. */
function beliefsOf({ algorithm, rollout, context_length }: StageOf<'rl'>): Unkeyed {
  if (algorithm.name !== 'igpo') return {};
  const isForEngine = context_length <= ENGINE_BELIEFS_CONTEXT && rollout.temperature === 1;
  return { beliefs: algorithm.information_gain?.beliefs ?? (isForEngine ? 'engine' : 'trainer') };
}

function healthParameters({ limits, for: steps, on_breach }: NonNullable<StageOf<'rl'>['health']>): HealthParameters {
  const bounds = Object.entries(limits).map(([name, { min, max }]) => [name, { min: min ?? null, max: max ?? null }]);
  return { limits: Object.fromEntries(bounds) as HealthParameters['limits'], for: steps, on_breach };
}

/** Another verl reads other settings and trains otherwise: raised together with what the stage's activities write for it. */
const VERL_VERSION = '0.9.1';

function backendParameters(name: StageOf<'rl'>['backend'], engine: Experiment['policy']['engine']): BackendParameters {
  return name === 'verl' ? { name, version: VERL_VERSION, engine } : { name };
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
