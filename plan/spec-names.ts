/** What the names in a spec mean in a profile, and what the profile lacks. */
import type { Experiment } from '../schemas/experiment.ts';
import { UNKNOWN_DIGEST } from '../schemas/node-parameters.ts';
import type { DatasetEntry, Profile } from '../schemas/profile.ts';
import { digestOfModel, isMissing, lookUp } from './profile.ts';
import { agentOf, allProtocols, benchmarkAgent, benchmarkContext, datasetOf } from './stages.ts';
import { hasVerl, runsOnVerl, unexecutedByVerl } from './verl.ts';

export interface ResolvedNames {
  policy: { model: string; sha256: string; context_length: number | null };
  embedder: { model: string; sha256: string; dimension: number; max_tokens: number | null };
  judge: { model: string; sha256: string } | null;
  /** Datasets that benchmarks and decontamination name, as far as the profile has them. */
  datasets: Map<string, DatasetEntry>;
  /** Sentences; a spec with any of these validates and plans, and is not submitted. */
  lacks: string[];
}

export interface NameSources {
  profile: Profile;
  modelsDir: string;
  profilesDir: string;
  /** Digests found before, by model: arms name the same ones. */
  modelDigests?: Map<string, string>;
}

export function resolveNames(experiment: Experiment, sources: NameSources): ResolvedNames {
  const lacks: string[] = [];
  const { modelDigests = new Map<string, string>() } = sources;
  const digest = (name: string, entry: Parameters<typeof digestOfModel>[1]): string => {
    const sha256 = modelDigests.get(name) ?? digestOfModel(name, entry, sources.modelsDir, sources.profilesDir);
    modelDigests.set(name, sha256);
    if (sha256 === UNKNOWN_DIGEST)
      lacks.push(`${name}: its weights are not here yet${entry.made_at_setup ? '; `exp setup` makes them' : ''}`);
    return sha256;
  };
  const find = <R extends 'datasets' | 'models' | 'embedders'>(
    registry: R,
    name: string,
  ): Profile['registries'][R][string] | null => {
    const found = lookUp(sources.profile, registry, name);
    if (!isMissing(found)) return found;
    lacks.push(found.hint === undefined ? found.what : `${found.what} (${found.hint})`);
    return null;
  };

  const policy = find('models', experiment.policy.base);
  const { model: embedderName } = experiment.index.embedder;
  const embedder = find('embedders', embedderName);
  const judge = experiment.judge && find('models', experiment.judge.model);
  const names: ResolvedNames = {
    policy: {
      model: experiment.policy.base,
      sha256: policy ? digest(experiment.policy.base, policy) : UNKNOWN_DIGEST,
      context_length: policy?.context_length ?? null,
    },
    embedder: {
      model: embedderName,
      sha256: embedder ? digest(embedderName, embedder) : UNKNOWN_DIGEST,
      dimension: embedder?.dimension ?? 0,
      max_tokens: embedder?.max_tokens ?? null,
    },
    judge: experiment.judge
      ? { model: experiment.judge.model, sha256: judge ? digest(experiment.judge.model, judge) : UNKNOWN_DIGEST }
      : null,
    datasets: new Map(
      datasetNames(experiment).flatMap((name) => {
        const entry = find('datasets', name);
        return entry === null ? [] : [[name, entry] as const];
      }),
    ),
    lacks,
  };
  if (experiment.judge && experiment.judge.url === undefined)
    lacks.push('judge.url: the spec does not say where the judge is');
  lacks.push(...missingCapabilities(experiment, sources.profile), ...notExecutedYet(experiment));
  return names;
}

/** Datasets of the profile that a spec names, each once. */
export function datasetNames({ benchmarks, decontaminate }: Experiment): string[] {
  const asked = Object.values(benchmarks).map((benchmark) => datasetOf(benchmark).name);
  const named = [...asked, ...(decontaminate?.against ?? [])].filter((name) => name !== undefined);
  return [...new Set(named)].sort();
}

/** What a spec asks of the place where it runs. */
function missingCapabilities(experiment: Experiment, profile: Profile): string[] {
  const { capabilities, registries, embedded } = profile;
  const lacks: string[] = [];
  const lack = (path: string, what: string): void => void lacks.push(`${path}: profile ${profile.name} has no ${what}`);
  const { index, policy } = experiment;
  if (!capabilities.dense_indexes.includes(index.dense.type))
    lack('index.dense.type', `${index.dense.type} index (it has ${capabilities.dense_indexes.join(', ')})`);
  if (index.sparse !== 'none' && !capabilities.sparse_indexes.includes(index.sparse))
    lack('index.sparse', index.sparse);
  const embedder = registries.embedders[index.embedder.model];
  if (embedder && !embedder.precisions.includes(index.embedder.precision))
    lack(
      'index.embedder.precision',
      `${index.embedder.model} in ${index.embedder.precision} (it has ${embedder.precisions.join(', ')})`,
    );
  if (!Object.values(registries.engines).some(({ kind }) => kind === policy.engine))
    lack('policy.engine', `${policy.engine} engine`);
  for (const [name, stage] of Object.entries(experiment.curriculum)) {
    const { resources } = stage;
    if (runsOnVerl(stage) && !hasVerl(profile))
      lack(`curriculum.${name}.backend`, 'Ray cluster with verl (`ray`, and `verl` among `capabilities.trainers`)');
    if (resources && resources.gpu > capabilities.gpus)
      lack(`curriculum.${name}.resources.gpu`, `${resources.gpu} GPUs (it has ${capabilities.gpus})`);
    if (resources && resources.nodes > capabilities.nodes)
      lack(`curriculum.${name}.resources.nodes`, `${resources.nodes} machines (it has ${capabilities.nodes})`);
  }
  const served = embedded?.engine.max_model_len;
  for (const [path, length] of sampledLengths(experiment)) {
    if (served !== undefined && length > served) lack(path, `engine for ${length} tokens (it serves ${served})`);
  }
  return lacks;
}

function sampledLengths(experiment: Experiment): [string, number][] {
  const stages = Object.entries(experiment.curriculum).filter(([, { kind }]) => kind !== 'sft');
  return [
    ...stages.map(([name, { context_length }]): [string, number] => [
      `curriculum.${name}.context_length`,
      context_length,
    ]),
    ...Object.entries(experiment.benchmarks).flatMap(([name, benchmark]): [string, number][] => {
      const length = benchmarkContext(experiment, benchmark);
      return benchmark.context_length === undefined || length === null
        ? []
        : [[`benchmarks.${name}.context_length`, length]];
    }),
  ];
}

/** What the language can say and no executor of this version does; better refused at submit than ignored in a run. */
function notExecutedYet(experiment: Experiment): string[] {
  const found = [...unexecutedData(experiment), ...unexecutedSampling(experiment), ...unexecutedLearning(experiment)];
  const places = new Map<string, string[]>();
  for (const [path, what] of found) places.set(what, [...(places.get(what) ?? []), path]);
  return [...places].map(([what, paths]) => `${someOf(paths)}: ${what} is not executed by this version`);
}

const SHOWN_PLACES = 3;
const someOf = (paths: readonly string[]): string =>
  paths.length > SHOWN_PLACES
    ? `${paths.slice(0, SHOWN_PLACES).join(', ')} and ${paths.length - SHOWN_PLACES} more`
    : paths.join(', ');

type Unexecuted = Generator<[path: string, what: string]>;

function* unexecutedData({ corpus }: Experiment): Unexecuted {
  for (const [name, { kind }] of Object.entries(corpus.sources)) {
    if (kind === 'wet') yield [`corpus.sources.${name}.kind`, 'reading WET files'];
  }
}

function* unexecutedSampling(experiment: Experiment): Unexecuted {
  const stages = Object.entries(experiment.curriculum).filter(([, { kind }]) => kind !== 'sft');
  const agents = [
    ...stages.map(([name, stage]) => [`curriculum.${name}`, agentOf(experiment, stage)] as const),
    ...allProtocols(experiment).map(
      ([name, protocol]) => [`benchmarks.${name}`, benchmarkAgent(experiment, protocol)] as const,
    ),
  ];
  for (const [path, agent] of agents) {
    if (!agent.terminate_on_answer) yield [path, 'going on after an answer'];
  }
}

function* unexecutedLearning(experiment: Experiment): Unexecuted {
  const { curriculum } = experiment;
  for (const [name, stage] of Object.entries(curriculum)) {
    if (runsOnVerl(stage)) yield* unexecutedByVerl(experiment, name, stage);
  }
}
