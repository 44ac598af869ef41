/** From a spec file to a plan: the one entrance for verbs. */
import { resolve } from 'node:path';
import { contentKey } from '../schemas/canonical.ts';
import type { Experiment } from '../schemas/experiment.ts';
import type { Plan, PlanNode } from '../schemas/plan.ts';
import type { Profile } from '../schemas/profile.ts';
import { type ArmDraft, armsOf, changesOf, withoutArms } from './arms.ts';
import { checkSpec } from './check.ts';
import { type CompileInput, compileNodes, type ReusedStage } from './compile.ts';
import { type ContaminationCheck, checkContamination } from './decontaminate.ts';
import { gatesOf } from './gates.ts';
import { FileDigests } from './input-files.ts';
import { loadSpec, readSpecFile } from './load-spec.ts';
import { child, commonParts, type Located, nodeAt } from './located.ts';
import { applyAssignments, parseOverrides } from './overrides.ts';
import { didYouMean, type Problem, placeText, problem, quoted, sortProblems } from './problem.ts';
import { composeLayers, type Layer, type Resolved, resolveSpec } from './resolve.ts';
import { readSpecInputs, type SpecInputs } from './spec-inputs.ts';
import { type ResolvedNames, resolveNames } from './spec-names.ts';

export interface LoadPlanOptions {
  profile: Profile;
  /** `key=value`, `+key=value`, `~key`, in order. */
  overrides?: readonly string[];
  /** Files laid over the spec, in order. */
  overlays?: readonly string[];
  /** Tells runs of one spec apart. */
  label?: string | undefined;
  env: NodeJS.ProcessEnv;
  /** Where digests of files are remembered. */
  cacheDir: string;
  /** Where set-up makes models. */
  modelsDir: string;
  profilesDir: string;
  repoRoot: string;
  /** Pinned Python packages, relative to the checkout. */
  pythonLock: string;
  /** Finds what `reuse` names; absent where no service is asked. */
  findStage?: StageLookup | undefined;
  /** Only look for problems: no node is compiled. */
  checkOnly?: boolean;
}

/** A stage of a run: `run` is an id, or `latest` among runs of specs with one of these names. Null when there is none. */
export type StageLookup = (stage: string, run: string, names: readonly string[]) => Promise<ReusedStage | null>;

export interface LoadedPlan {
  /** Null when there are problems, or only these were asked for. */
  plan: Plan | null;
  problems: Problem[];
  warnings: Problem[];
  /** Sentences: what the profile or this machine lacks. Such a plan is shown and not submitted. */
  unknown: string[];
  /** The resolved spec with the place of every value; null when nothing could be read. */
  root: Located | null;
  /** Text by file as named in problems, for excerpts. */
  texts: Map<string, string>;
}

/** Name of the arm of a spec that has neither ablations nor a sweep. */
const ONLY_ARM = 'main';

export async function loadPlan(specPath: string, options: LoadPlanOptions): Promise<LoadedPlan> {
  const { layers, problems, texts, isWhole } = readLayers(specPath, options);
  const failed = (found: readonly Problem[], root: Located | null = null): LoadedPlan => ({
    plan: null,
    problems: sortProblems(found),
    warnings: [],
    unknown: [],
    root,
    texts,
  });
  // A file that could not be read may be what the rest refers to: nothing more can be said.
  if (!isWhole) return failed(problems);

  const composed = composeLayers(layers);
  const { arms: drafts, problems: unarmed } = armsOf(composed.root);
  unarmed.push(...strangeControl(composed.root, drafts));
  const shared: Shared = {
    digests: new FileDigests(options.cacheDir),
    modelDigests: new Map(),
    known: new Map(),
    overlaps: new Map(),
    findStage: rememberedLookup(namesOf(layers), options.findStage),
    common: commonParts(),
    findings: new Map(),
  };
  // Too many arms are not looked at one by one, nor are their values.
  const isTooWide = unarmed.some(({ code }) => code === 'SWEEP_SIZE');
  const unarmedRoot = withoutArms(composed.root);
  const base = await compileSpec(isTooWide ? unarmedRoot : composed.root, specPath, shared, options);
  let found = [problems, composed.problems, base.problems, unarmed].reduce(withoutEchoes);
  const compiled: NamedArm[] = [];
  for (const { name, assignments } of drafts) {
    const changed = applyAssignments(unarmedRoot, assignments);
    const arm = await compileSpec(changed.root, specPath, shared, options);
    found = [found, changed.problems, arm.problems].reduce(withoutEchoes);
    compiled.push({ name, changes: changesOf(assignments), arm });
  }
  if (found.length > 0) return failed(found, base.resolved.root);
  const all = compiled.length > 0 ? compiled : [{ name: ONLY_ARM, changes: {}, arm: base }];
  const warned = [base, ...all.map(({ arm }) => arm)].map(({ warnings }, at) =>
    // An arm that takes another algorithm means to leave the settings of the first without effect.
    at === 0 ? warnings : warnings.filter(({ code }) => code !== 'NO_EFFECT'),
  );
  return {
    plan: options.checkOnly ? null : planOf(base.resolved.experiment, all, specPath, options),
    problems: [],
    warnings: sortProblems(warned.reduce(withoutEchoes)),
    unknown: [...new Set(all.flatMap(({ arm }) => arm.unknown))],
    root: base.resolved.root,
    texts,
  };
}

/** What the spec and those it extends are called, its own name first. */
function namesOf(layers: readonly Layer[]): string[] {
  const names = layers.flatMap((layer) => (layer.kind === 'document' ? [child(layer.root, 'name')] : []));
  const texts = names.flatMap((name) => (name?.kind === 'scalar' ? [String(name.value)] : []));
  return [...new Set(texts.toReversed())];
}

/** `compare.control` names an ablation, or one arm of a sweep. */
function strangeControl(root: Located, drafts: readonly ArmDraft[]): Problem[] {
  const control = nodeAt(root, ['compare', 'control']);
  if (control?.kind !== 'scalar' || typeof control.value !== 'string' || drafts.length === 0) return [];
  const names = [...new Set(drafts.flatMap(({ name }) => [name, name.split(',')[0] as string]))];
  if (names.includes(control.value)) return [];
  return [problem('REF', control.at, `there is no arm ${quoted(control.value)}`, didYouMean(control.value, names))];
}

interface NamedArm {
  name: string;
  changes: Record<string, unknown>;
  arm: Compiled;
}

/** What arms share, so that a thousand of them do not read a thousand times. */
interface Shared {
  digests: FileDigests;
  modelDigests: Map<string, string>;
  known: NonNullable<CompileInput['known']>;
  overlaps: ContaminationCheck['overlaps'];
  findStage: Lookup;
  common: ReturnType<typeof commonParts>;
  /** By the resolved spec without its seed. */
  findings: Map<Located, Promise<Findings>>;
}

interface Compiled {
  resolved: Resolved;
  nodes: PlanNode[];
  problems: Problem[];
  warnings: Problem[];
  unknown: string[];
}

/** One spec, or one arm of it: resolved, examined, and compiled when nothing is wrong. */
async function compileSpec(
  composed: Located,
  specPath: string,
  shared: Shared,
  options: LoadPlanOptions,
): Promise<Compiled> {
  const resolved = resolveSpec(composed, shared.common);
  const { experiment, isValid } = resolved;
  const unseeded = shared.common(withoutSeed(resolved.root));
  const known = isValid ? shared.findings.get(unseeded) : undefined;
  const findings = known ?? examine(resolved, specPath, shared, options);
  if (isValid) shared.findings.set(unseeded, findings);
  const { names, inputs, reused, warnings, unknown, problems: later } = await findings;
  const problems = [resolved.problems, resolved.invalid, later].reduce(withoutEchoes);
  const isCompiled = names !== null && problems.length === 0 && options.checkOnly !== true;
  const nodes = isCompiled ? compileNodes({ experiment, names, inputs, reused, known: shared.known }) : [];
  return { resolved, nodes, problems, warnings, unknown };
}

/** What a spec names and whether it makes sense. Arms share it that differ in the seed alone: nothing here reads that. */
interface Findings {
  /** Null where the shape is wrong already. */
  names: ResolvedNames | null;
  inputs: SpecInputs['byField'];
  reused: Map<string, ReusedStage | null>;
  problems: Problem[];
  warnings: Problem[];
  unknown: string[];
}

async function examine(
  { experiment, root, isValid }: Resolved,
  specPath: string,
  { digests, modelDigests, overlaps, findStage }: Shared,
  options: LoadPlanOptions,
): Promise<Findings> {
  const names = isValid ? resolveNames(experiment, { ...options, modelDigests }) : null;
  const limits = {
    policyContext: names?.policy.context_length ?? null,
    embedderTokens: names?.embedder.max_tokens ?? null,
  };
  const { problems, warnings } = checkSpec(experiment, root, limits, isValid);
  if (names === null) return { names, inputs: new Map(), reused: new Map(), problems, warnings, unknown: [] };

  const { env, repoRoot, pythonLock, profile, profilesDir } = options;
  const inputs = await readSpecInputs(experiment, {
    root,
    specFile: specPath,
    env,
    dataRoots: profile.data_roots,
    digests,
    datasets: names.datasets,
    profilesDir,
    repoRoot,
    pythonLock,
  });
  const contaminated = checkContamination({ experiment, root, names, inputs: inputs.byField, overlaps });
  const { reused, lacks } = await findReused(experiment, findStage);
  return {
    names,
    inputs: inputs.byField,
    reused,
    problems: [problems, inputs.problems, contaminated].reduce(withoutEchoes),
    warnings,
    unknown: [...names.lacks, ...inputs.lacks, ...lacks],
  };
}

function withoutSeed(root: Located): Located {
  if (root.kind !== 'map') return root;
  const entries = new Map(root.entries);
  entries.delete('seed');
  return { ...root, entries };
}

type Lookup = (stage: string, run: string) => Promise<ReusedStage | null>;

/** Arms ask for the same stages: each is looked up once. */
function rememberedLookup(names: readonly string[], findStage: StageLookup | undefined): Lookup {
  const asked = new Map<string, Promise<ReusedStage | null>>();
  return (stage, run) => {
    const found = asked.get(`${stage} ${run}`) ?? findStage?.(stage, run, names) ?? Promise.resolve(null);
    asked.set(`${stage} ${run}`, found);
    return found;
  };
}

/** What `reuse` names, frozen by being looked up now. */
async function findReused(
  { reuse = {}, name }: Experiment,
  findStage: Lookup,
): Promise<{ reused: Map<string, ReusedStage | null>; lacks: string[] }> {
  const reused = new Map<string, ReusedStage | null>();
  const lacks: string[] = [];
  for (const [path, { run }] of Object.entries(reuse)) {
    const stage = path.slice('stages.'.length);
    const found = await findStage(stage, run);
    reused.set(stage, found);
    const runs = run === 'latest' ? `no finished run of ${name}, or of what it extends,` : `no finished run ${run}`;
    if (found === null) lacks.push(`reuse.${path}: ${runs} with that stage is known here`);
  }
  return { reused, lacks };
}

function planOf(
  experiment: Experiment,
  arms: readonly NamedArm[],
  specPath: string,
  { profile, label, overlays = [], overrides = [] }: LoadPlanOptions,
): Plan {
  // The spec does not show what an arm unsets; its keys do.
  const keys = arms.map(({ name, arm }) => ({ name, keys: arm.nodes.map(({ key }) => key) }));
  return {
    api_version: 'exp/v1',
    run_key: contentKey({
      spec: experiment,
      profile: profile.name,
      label: label ?? null,
      ...(arms.length > 1 && { arms: keys }),
    }),
    name: experiment.name,
    profile: profile.name,
    spec_path: resolve(specPath),
    spec: experiment as unknown as Record<string, unknown>,
    tracking: { mlflow_experiment: experiment.tracking?.mlflow_experiment ?? experiment.name },
    made_from: {
      spec_path: resolve(specPath),
      overlays: overlays.map((file) => resolve(file)),
      overrides: [...overrides],
      label: label ?? null,
    },
    arms: arms.map(({ name, changes, arm }) => ({
      name,
      seed: arm.resolved.experiment.seed,
      changes,
      nodes: arm.nodes,
      ...gatesOf(arm.resolved.experiment, arm.nodes),
    })),
  };
}

/** One mistake is one problem: what a later pass finds at the very place of an earlier one follows from it. */
function withoutEchoes(first: readonly Problem[], later: readonly Problem[]): Problem[] {
  const places = new Set(first.map(placeText));
  return [...first, ...later.filter((found) => !places.has(placeText(found)))];
}

interface Layers {
  layers: Layer[];
  problems: Problem[];
  texts: Map<string, string>;
  isWhole: boolean;
}

/** The file and what it extends, the overlays, the command line. */
function readLayers(specPath: string, { overrides = [], overlays = [] }: LoadPlanOptions): Layers {
  const { documents, problems, texts } = loadSpec(specPath);
  let isWhole = documents.length > 0 && !problems.some(isFatal);
  const layers: Layer[] = documents.map((root) => ({ kind: 'document', root }));
  for (const file of overlays) {
    const overlay = readSpecFile(file);
    texts.set(file, overlay.text);
    problems.push(...overlay.problems);
    if (overlay.root) layers.push({ kind: 'document', root: overlay.root });
    else isWhole = false;
  }
  const { assignments, problems: misuse } = parseOverrides(overrides);
  problems.push(...misuse);
  layers.push({ kind: 'assignments', assignments });
  return { layers, problems, texts, isWhole };
}

const FATAL = new Set([
  'FILE',
  'SIZE',
  'EMPTY',
  'MULTI_DOC',
  'SYNTAX',
  'YAML_ALIAS',
  'DEPTH',
  'ENCODING',
  'CYCLE',
  'PATH_OUTSIDE',
  'NOT_REGULAR',
  'TAG',
]);
const isFatal = ({ code }: Problem): boolean => FATAL.has(code);
