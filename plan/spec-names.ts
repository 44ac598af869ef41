/** What the names in a spec mean in a profile, and what the profile lacks. */
import type { Experiment } from '../schemas/experiment.ts';
import { UNKNOWN_DIGEST } from '../schemas/node-parameters.ts';
import type { Profile } from '../schemas/profile.ts';
import { digestOfModel, isMissing, lookUp } from './profile.ts';
import { benchmarkContext } from './stages.ts';

export interface ResolvedNames {
  policy: { model: string; sha256: string; context_length: number | null };
  embedder: { model: string; sha256: string; dimension: number; max_tokens: number | null };
  judge: { model: string; sha256: string } | null;
  /** Sentences; a spec with any of these validates and plans, and is not submitted. */
  lacks: string[];
}

export interface NameSources {
  profile: Profile;
  modelsDir: string;
  profilesDir: string;
}

export function resolveNames(experiment: Experiment, sources: NameSources): ResolvedNames {
  const lacks: string[] = [];
  const digest = (name: string, entry: Parameters<typeof digestOfModel>[1]): string => {
    const sha256 = digestOfModel(name, entry, sources.modelsDir, sources.profilesDir);
    if (sha256 === UNKNOWN_DIGEST)
      lacks.push(`${name}: its weights are not here yet${entry.made_at_setup ? '; `exp setup` makes them' : ''}`);
    return sha256;
  };
  const find = <R extends 'models' | 'embedders'>(
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
    lacks,
  };
  lacks.push(...missingCapabilities(experiment, sources.profile), ...notExecutedYet(experiment));
  return names;
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
  for (const [name, { resources }] of Object.entries(experiment.curriculum)) {
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
  const lacks: string[] = [];
  const lack = (path: string, what: string): void =>
    void lacks.push(`${path}: ${what} is not executed by this version`);
  for (const [name, source] of Object.entries(experiment.corpus.sources)) {
    if (source.kind === 'wet') lack(`corpus.sources.${name}.kind`, 'reading WET files');
  }
  for (const [name, source] of Object.entries(experiment.tasks.sources)) {
    if (source.kind === 'parquet') lack(`tasks.sources.${name}.kind`, 'reading questions from Parquet');
  }
  const outcomes = [
    experiment.reward,
    ...Object.values(experiment.curriculum).map(({ reward }) => reward),
    ...Object.values(experiment.benchmarks).map(({ reward }) => reward),
  ];
  if (outcomes.some((reward) => reward?.outcome === 'judge')) lack('reward.outcome', 'scoring by a judge');
  for (const [name, stage] of Object.entries(experiment.curriculum)) {
    if (stage.kind === 'sft' && stage.trajectories.source !== 'demonstrations')
      lack(`curriculum.${name}.trajectories.source`, 'importing trajectories');
    if (stage.kind === 'rl' && stage.rollout.max_staleness > 0)
      lack(`curriculum.${name}.rollout.max_staleness`, 'overlapping rollouts with training');
    if (
      stage.kind === 'rl' &&
      (stage.optimizer.minibatch ?? stage.rollout.prompts_per_step) !== stage.rollout.prompts_per_step
    ) {
      lack(`curriculum.${name}.optimizer.minibatch`, 'more than one update a step');
    }
  }
  if (experiment.budget) lack('budget', 'a budget');
  return lacks;
}
