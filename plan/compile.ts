/** From a checked spec to nodes: kinds, inputs, parameters with every default explicit, and content keys. */
import { contentKey } from '../schemas/canonical.ts';
import type { Benchmark, Experiment, Stage } from '../schemas/experiment.ts';
import {
  type BenchmarkParameters,
  type PolicyParameters,
  type RewardParameters,
  type RlParameters,
  UNKNOWN_DIGEST,
  type Unkeyed,
} from '../schemas/node-parameters.ts';
import type { NodeKind, PlanNode } from '../schemas/plan.ts';
import { type DataInput, DataNodes, WHOLE_DATASET } from './compile-data.ts';
import { judgeAddress, judgeParameters } from './judge.ts';
import { KIND_VERSIONS } from './kind-versions.ts';
import { derivedSeed, NodeList } from './node-list.ts';
import type { InputFiles } from './spec-inputs.ts';
import type { ResolvedNames } from './spec-names.ts';
import {
  adapterParameters,
  agentParameters,
  algorithmParameters,
  backendParameters,
  beliefsOf,
  healthParameters,
  type StageOf,
  stageUnkeyed,
} from './stage-parameters.ts';
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
  trains,
} from './stages.ts';

/** Stands for the base policy where a stage could. */
const BASE = 'base';

export interface CompileInput extends DataInput {
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

/** Nodes in an order in which every input comes before its readers. */
export const compileNodes = (input: CompileInput): PlanNode[] => new Compiler(input).compile();

class Compiler {
  readonly #list: NodeList;
  readonly #data: DataNodes;
  readonly #spec: Experiment;
  readonly #names: ResolvedNames;
  readonly #inputs: ReadonlyMap<string, InputFiles>;
  readonly #reused: ReadonlyMap<string, ReusedStage | null>;

  constructor(input: CompileInput) {
    const { experiment, names, inputs, reused = new Map(), known = new Map() } = input;
    this.#list = new NodeList(experiment.seed, known);
    this.#data = new DataNodes(this.#list, input);
    this.#spec = experiment;
    this.#names = names;
    this.#inputs = inputs;
    this.#reused = reused;
  }

  compile(): PlanNode[] {
    this.#data.corpus();
    this.#data.index();
    const above = new Set([...this.#reused.keys()].flatMap((name) => ancestorsOf(this.#spec, name)));
    for (const name of Object.keys(this.#spec.curriculum)) if (!above.has(name)) this.#stage(name);
    const benchmarks = allProtocols(this.#spec).flatMap(([name, protocol]) =>
      measuredAfter(this.#spec, protocol).map((after) => this.#benchmark(name, protocol, after)),
    );
    if (!this.#list.nodes.some(({ kind }) => kind === 'tasks')) this.#data.tasks(undefined);
    const sorted = [...benchmarks].sort();
    this.#list.add({ id: 'report', kind: 'report', inputs: sorted, parameters: { benchmarks: sorted } });
    return this.#list.nodes;
  }

  /** The nodes of a stage, after those of the stage it starts from. */
  #stage(name: string): void {
    if (this.#list.has(name)) return;
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
    this.#list.nodes.push({ ...stand, id: name, inputs: [], unkeyed: { ...unkeyed } });
  }

  #sft(name: string, stage: StageOf<'sft'>, start: string[]): void {
    const { trajectories } = stage;
    const agent = agentOf(this.#spec, stage);
    const { policy } = this.#names;
    const isImport = trajectories.source !== 'demonstrations';
    const imported = this.#inputs.get(`curriculum.${name}.trajectories.source`);
    const source = this.#list.add({
      id: `${name}.trajectories`,
      kind: 'trajectories',
      inputs: isImport ? [] : [this.#data.tasks(stage.tasks?.source), 'index'],
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
        agent: agentParameters(agent),
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
    this.#list.add({
      id: name,
      kind: 'sft',
      inputs: [source, ...start],
      parameters: {
        optimizer: stage.optimizer,
        context_length: stage.context_length,
        adapter: adapterParameters(this.#spec.policy),
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
    return this.#list.add({
      id,
      kind: 'profile',
      inputs: [this.#data.tasks(stage.tasks?.source), 'index', ...start],
      parameters: {
        tasks: difficulty.tasks ?? null,
        split: splitOf(stage),
        rollouts: difficulty.rollouts,
        keep: difficulty.keep,
        stop_decided: difficulty.stop_decided,
        keep_mix: difficulty.keep_mix,
        buckets: difficulty.buckets ? { ...difficulty.buckets, weights: difficulty.buckets.weights ?? null } : null,
        agent: agentParameters(agentOf(this.#spec, stage)),
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
    this.#list.add({
      id: name,
      kind: 'rl',
      inputs: [
        ...new Set([
          ...profiled,
          this.#data.tasks(stage.tasks?.source),
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
        agent: agentParameters(agentOf(this.#spec, stage)),
        context_length: stage.context_length,
        reward: this.#reward(stage.reward),
        adapter: adapterParameters(this.#spec.policy),
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
    return this.#list.add({
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
    return name === undefined ? this.#data.tasks(undefined) : this.#data.dataset(name);
  }

  #protocol(name: string, protocol: Protocol): Omit<BenchmarkParameters, 'benchmark' | 'after'> {
    const { split = WHOLE_DATASET, limit = null, seed } = datasetOf(protocol);
    return {
      dataset: { split, limit, seed: seed ?? derivedSeed(this.#spec.seed, `benchmarks.${name}`) },
      samples: protocol.samples,
      metrics: [...protocol.metrics].sort(),
      agent: agentParameters(benchmarkAgent(this.#spec, protocol)),
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

  #reward(own: Partial<Experiment['reward']> | undefined): RewardParameters {
    const reward = { ...this.#spec.reward, ...own };
    if (reward.outcome !== 'judge') return { ...reward, judge: null };
    const prompt = this.#inputs.get('judge.prompt')?.text ?? UNKNOWN_DIGEST;
    return { ...reward, judge: judgeParameters(this.#spec, this.#names, prompt) };
  }

  /** Where the judge is that a reward asks. */
  #judgeAt(own: Partial<Experiment['reward']> | undefined): Unkeyed {
    return (own?.outcome ?? this.#spec.reward.outcome) === 'judge' ? judgeAddress(this.#spec) : {};
  }
}
