/** Reads a profile: where things run, and what the names in a spec mean there. */
import { existsSync, readFileSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { ExpError } from '../schemas/errors.ts';
import { UNKNOWN_DIGEST } from '../schemas/node-parameters.ts';
import type { Profile } from '../schemas/profile.ts';
import { compiledSchemas } from './compiled-schemas.ts';
import { readSpecFile } from './load-spec.ts';
import { placeAt, toPlain } from './located.ts';
import { didYouMean, type Problem, problem, problemLine } from './problem.ts';
import { schemaErrors } from './schema-errors.ts';

/** A profile by name (`profiles/NAME.yaml`) or by path (anything with a slash or `.yaml`). Throws PROFILE with every problem. */
export function loadProfile(nameOrPath: string, profilesDir: string): Profile {
  const file = /[/]|\.ya?ml$/.test(nameOrPath) ? nameOrPath : join(profilesDir, `${nameOrPath}.yaml`);
  if (!existsSync(file)) throw new ExpError('PROFILE', file, `there is no profile ${basename(nameOrPath)}`);
  const { root, problems } = readSpecFile(file);
  const found = root === null ? problems : [...problems, ...profileProblems(root)];
  const [first, ...others] = found;
  if (first) throw new ExpError('PROFILE', problemLine(first), `${1 + others.length} problem(s) in the profile`);
  const profile = toPlain(root as NonNullable<typeof root>) as Profile;
  if ((profile.embedded === undefined) === (profile.addresses === undefined)) {
    throw new ExpError('PROFILE', file, 'exactly one of `embedded` and `addresses` is given');
  }
  if (!Object.hasOwn(profile.launchers, profile.launcher)) {
    const known = Object.keys(profile.launchers).join(', ');
    throw new ExpError('PROFILE', file, `\`launcher\` ${profile.launcher} is none of \`launchers\`: ${known}`);
  }
  return profile;
}

function profileProblems(root: NonNullable<ReturnType<typeof readSpecFile>['root']>): Problem[] {
  return schemaErrors(compiledSchemas.profile, root).map(({ instancePath, message, params }) => {
    const path = instancePath.split('/').slice(1);
    const extra = (params as { additionalProperty?: string }).additionalProperty;
    const field = [...path, ...(extra === undefined ? [] : [extra])].join('.');
    return problem('PROFILE', placeAt(root, path), `\`${field}\` ${message}`);
  });
}

type RegistryName = keyof Profile['registries'];

/** What a spec asked for and the profile does not have. The key of the node that needs it is unknown. */
export interface Missing {
  what: string;
  hint?: string;
}

/** An entry of a registry, or what is missing. */
export function lookUp<R extends RegistryName>(
  profile: Profile,
  registry: R,
  name: string,
): Profile['registries'][R][string] | Missing {
  const entries = profile.registries[registry] as Record<string, Profile['registries'][R][string]>;
  const entry = Object.hasOwn(entries, name) ? entries[name] : undefined;
  if (entry !== undefined) return entry;
  const hint = didYouMean(name, Object.keys(entries));
  return { what: `${registry}: profile ${profile.name} has no ${name}`, ...(hint !== undefined && { hint }) };
}

export const isMissing = (found: object): found is Missing => 'what' in found;

/**
 * Digest of a model's weights: as the registry states it, or as the model's folder does in digest.json.
 * `UNKNOWN_DIGEST` where neither does; such a plan is not submitted.
 */
export function digestOfModel(
  name: string,
  entry: { sha256?: string; path?: string; made_at_setup?: boolean },
  modelsDir: string,
  profilesDir: string,
): string {
  if (entry.sha256 !== undefined) return entry.sha256;
  const folder = entry.path === undefined ? join(modelsDir, name) : resolve(profilesDir, entry.path);
  for (const file of [join(folder, 'digest.json'), join(dirname(folder), `${basename(folder)}.digest.json`)]) {
    const digest = readDigest(file);
    if (digest !== null) return digest;
  }
  return UNKNOWN_DIGEST;
}

function readDigest(file: string): string | null {
  if (!existsSync(file)) return null;
  const { sha256 } = JSON.parse(readFileSync(file, 'utf8')) as { sha256?: unknown };
  return typeof sha256 === 'string' && /^[0-9a-f]{64}$/.test(sha256) ? sha256 : null;
}
