/** Every file a spec names: where it is, whether it may be read, and its content's digest. */
import { readFile, stat } from 'node:fs/promises';
import { dirname, isAbsolute, join } from 'node:path';
import type { Experiment } from '../schemas/experiment.ts';
import { UNKNOWN_DIGEST } from '../schemas/node-parameters.ts';
import type { DatasetEntry } from '../schemas/profile.ts';
import type { FileDigests } from './input-files.ts';
import { resolveInputPath } from './input-paths.ts';
import { type Located, nodeAt, type Path, placeAt } from './located.ts';
import { type Problem, problem, quoted } from './problem.ts';
import { datasetNames } from './spec-names.ts';
import { MAX_BYTES } from './strict-yaml.ts';

/** What one field of a spec brings into a node. */
export interface InputFiles {
  /** Absolute path or glob; for installed packages, the checkout. */
  absolute: string;
  /** `path` as the spec wrote it. A digest may be `UNKNOWN_DIGEST`. */
  files: { path: string; sha256: string }[];
  /** Of a prompt. */
  text?: string;
}

export interface SpecInputs {
  /** By dotted path of the source, the judge's prompt, or the stage's trajectories. */
  byField: Map<string, InputFiles>;
  problems: Problem[];
  /** Sentences: what is not here. */
  lacks: string[];
}

export interface InputContext {
  root: Located;
  /** Stands for the file of values given on the command line. */
  specFile: string;
  env: NodeJS.ProcessEnv;
  dataRoots: readonly string[];
  digests: FileDigests;
  /** Of the profile, by name. */
  datasets: ReadonlyMap<string, DatasetEntry>;
  profilesDir: string;
  repoRoot: string;
  /** Pinned Python packages, relative to the checkout. */
  pythonLock: string;
}

/** Slots that a judge's prompt must have. */
const PROMPT_SLOTS = ['question', 'answer', 'reference'];

export async function readSpecInputs(experiment: Experiment, context: InputContext): Promise<SpecInputs> {
  const inputs: SpecInputs = { byField: new Map(), problems: [], lacks: [] };
  const add = async (owner: Path, leaf: string, path: string): Promise<void> => {
    const found = await readOne([...owner, leaf], path, context, inputs);
    inputs.byField.set([...owner, leaf === 'path' ? [] : leaf].flat().join('.'), found);
  };
  for (const [name, source] of Object.entries(experiment.corpus.sources)) {
    const owner = ['corpus', 'sources', name];
    if (source.kind === 'installed_packages')
      inputs.byField.set(owner.join('.'), await lockfiles(source.ecosystems, context, inputs));
    else await add(owner, 'path', source.path);
  }
  for (const [name, source] of Object.entries(experiment.tasks.sources)) {
    if (source.kind !== 'generated') await add(['tasks', 'sources', name], 'path', source.path);
  }
  for (const [name, stage] of Object.entries(experiment.curriculum)) {
    if (stage.kind === 'sft' && stage.trajectories.source !== 'demonstrations') {
      await add(['curriculum', name, 'trajectories'], 'source', stage.trajectories.source);
    }
  }
  for (const name of datasetNames(experiment)) {
    const entry = context.datasets.get(name);
    inputs.byField.set(
      `datasets.${name}`,
      entry === undefined
        ? { absolute: name, files: [{ path: name, sha256: UNKNOWN_DIGEST }] }
        : await dataset(name, entry, context, inputs),
    );
  }
  if (experiment.judge) {
    await add(['judge'], 'prompt', experiment.judge.prompt);
    await checkPrompt(inputs, context);
  }
  await context.digests.save();
  return inputs;
}

async function readOne(field: Path, path: string, context: InputContext, inputs: SpecInputs): Promise<InputFiles> {
  const { root, specFile, env, dataRoots, digests } = context;
  const at = placeAt(root, field);
  const written = nodeAt(root, field)?.at.file ?? specFile;
  const outcome = resolveInputPath(path, written === 'command line' ? specFile : written, env, dataRoots);
  const unknown: InputFiles = { absolute: path, files: [{ path, sha256: UNKNOWN_DIGEST }] };
  if (outcome.status === 'outside') {
    inputs.problems.push(problem('PATH_OUTSIDE', at, `${quoted(path)} ${outcome.reason}`));
    return unknown;
  }
  if (outcome.status === 'unset') {
    inputs.lacks.push(`${field.join('.')}: the environment variable ${outcome.variable} is not set`);
    return unknown;
  }
  const found = await digests.of(outcome.absolute, outcome.root);
  switch (found.status) {
    case 'found':
      return { absolute: outcome.absolute, files: [{ path, sha256: found.sha256 }] };
    case 'absent':
      inputs.lacks.push(`${field.join('.')}: nothing is at ${outcome.absolute}`);
      return { ...unknown, absolute: outcome.absolute };
    case 'not_regular':
      inputs.problems.push(problem('NOT_REGULAR', at, `${quoted(path)} is neither a file nor a folder of files`));
      return unknown;
    case 'outside':
      inputs.problems.push(problem('PATH_OUTSIDE', at, `${quoted(path)} holds a link that leads out of its folder`));
      return unknown;
    case 'unreadable':
      inputs.problems.push(problem('FILE', at, `${quoted(found.path)} cannot be read (${found.why})`));
      return unknown;
  }
}

/** A dataset of the profile, whose authors are trusted with paths. */
async function dataset(
  name: string,
  { path, url, sha256 }: DatasetEntry,
  { profilesDir, env, digests }: InputContext,
  inputs: SpecInputs,
): Promise<InputFiles> {
  const unknown: InputFiles = { absolute: path ?? name, files: [{ path: name, sha256: sha256 ?? UNKNOWN_DIGEST }] };
  const lack = (what: string): InputFiles => {
    inputs.lacks.push(`dataset ${name}: ${what}`);
    return unknown;
  };
  if (path === undefined)
    return lack(`it is at ${url ?? 'no path'}; bring it here and give it a \`path\` in the profile`);
  const outcome = isAbsolute(path)
    ? ({ status: 'found', absolute: path, root: dirname(path) } as const)
    : resolveInputPath(path, join(profilesDir, 'profile.yaml'), env, []);
  if (outcome.status === 'outside') return lack(`${quoted(path)} ${outcome.reason}`);
  if (outcome.status === 'unset') return lack(`the environment variable ${outcome.variable} is not set`);
  const found = await digests.of(outcome.absolute, outcome.root);
  if (found.status !== 'found') return lack(`nothing that can be read is at ${outcome.absolute}`);
  if (sha256 !== undefined && found.sha256 !== sha256) return lack(`its SHA-256 is not the one in the profile`);
  return { absolute: outcome.absolute, files: [{ path: name, sha256: found.sha256 }] };
}

async function lockfiles(
  ecosystems: readonly string[],
  { repoRoot, pythonLock, digests }: InputContext,
  inputs: SpecInputs,
): Promise<InputFiles> {
  const locks = [
    { ecosystem: 'npm', path: 'package-lock.json' },
    { ecosystem: 'python', path: pythonLock },
  ] as const;
  const files = [];
  for (const { ecosystem, path } of locks) {
    if (!ecosystems.includes(ecosystem)) continue;
    const sha256 = await digests.ofLock(ecosystem, join(repoRoot, path));
    if (sha256 === null) inputs.lacks.push(`installed_packages: there is no ${path} in the checkout`);
    files.push({ path, sha256: sha256 ?? UNKNOWN_DIGEST });
  }
  return { absolute: repoRoot, files };
}

/** A prompt without a slot would ask the judge nothing; an unknown slot would reach it as braces. */
async function checkPrompt(inputs: SpecInputs, { root }: InputContext): Promise<void> {
  const input = inputs.byField.get('judge.prompt');
  if (input === undefined || input.files[0]?.sha256 === UNKNOWN_DIGEST) return;
  const at = placeAt(root, ['judge', 'prompt']);
  const info = await stat(input.absolute).catch(() => null); // a glob is no file
  if (!info?.isFile() || info.size > MAX_BYTES) {
    const message = `a prompt is one file of at most ${MAX_BYTES} bytes`;
    inputs.problems.push(problem(info?.isFile() ? 'SIZE' : 'NOT_REGULAR', at, message));
    return;
  }
  const text = await readFile(input.absolute, 'utf8');
  inputs.byField.set('judge.prompt', { ...input, text });
  const slots = [...text.matchAll(/\{([a-z_]+)\}/g)].map((match) => match[1] as string);
  const missing = PROMPT_SLOTS.filter((slot) => !slots.includes(slot));
  const strange = slots.filter((slot) => !PROMPT_SLOTS.includes(slot));
  if (missing.length > 0)
    inputs.problems.push(problem('TEMPLATE', at, `the prompt has no ${missing.map((slot) => `{${slot}}`).join(', ')}`));
  if (strange.length > 0)
    inputs.problems.push(
      problem(
        'TEMPLATE',
        at,
        `the prompt has slots that nothing fills: ${strange.map((slot) => `{${slot}}`).join(', ')}`,
      ),
    );
}
