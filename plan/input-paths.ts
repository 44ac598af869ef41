/** Where a path of a spec leads, and whether it may: below the spec's folder, `${env:NAME}`, or a data root. */
import { existsSync, realpathSync } from 'node:fs';
import { dirname, isAbsolute, join, relative, resolve, sep } from 'node:path';

const ENV_ROOT = /^\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}(?:\/|$)/;

export type PathOutcome =
  | { status: 'found'; absolute: string; root: string }
  | { status: 'outside'; reason: string }
  /** The variable is not set: the path is known later, on the machine that has it. */
  | { status: 'unset'; variable: string };

/** Why a path may not be used at all, whatever lies there; null when nothing is wrong with its text. */
export function escapes(path: string): string | null {
  const rest = path.replace(ENV_ROOT, '');
  if (/^[a-z][a-z0-9+.-]*:\/\//i.test(rest) || /^file:/i.test(rest)) return 'is a URL, not a path';
  if (rest.includes('\\')) return 'holds a backslash';
  if (/%2e|%2f|%5c|%00/i.test(rest)) return 'holds an escaped path';
  if (rest.split('/').includes('..')) return 'leaves its folder by `..`';
  if (rest.startsWith('~')) return 'begins with `~`, which is not expanded';
  return null;
}

/** Resolve a path written in `file`. Globs are resolved as far as their fixed part. */
export function resolveInputPath(
  path: string,
  file: string,
  env: NodeJS.ProcessEnv,
  dataRoots: readonly string[],
): PathOutcome {
  const reason = escapes(path);
  if (reason !== null) return { status: 'outside', reason };
  const variable = path.match(ENV_ROOT)?.[1];
  const value = variable === undefined ? undefined : env[variable];
  if (variable !== undefined && !value) return { status: 'unset', variable };
  const rest = path.replace(ENV_ROOT, '');
  if (isAbsolute(rest) && variable === undefined) return belowDataRoot(rest, dataRoots);
  const root = value === undefined ? dirname(resolve(file)) : resolve(value);
  return checkLinks(join(root, rest), root);
}

function belowDataRoot(path: string, dataRoots: readonly string[]): PathOutcome {
  const root = dataRoots.find((candidate) => isBelow(path, resolve(candidate)));
  if (root === undefined)
    return { status: 'outside', reason: 'is absolute; write it relative to the spec, or below ${env:NAME}' };
  return checkLinks(path, resolve(root));
}

/** Links may not lead out of the root; what does not exist yet cannot. */
function checkLinks(absolute: string, root: string): PathOutcome {
  let fixed = fixedPart(absolute);
  while (!existsSync(fixed) && fixed !== root && fixed !== dirname(fixed)) fixed = dirname(fixed);
  if (existsSync(root) && !isBelow(realpathSync(fixed), realpathSync(root))) {
    return { status: 'outside', reason: 'leads out of its folder by a link' };
  }
  return { status: 'found', absolute, root };
}

/** The folders of a glob before its first pattern. */
export function fixedPart(path: string): string {
  const parts = path.split(sep);
  const first = parts.findIndex((part) => isGlob(part));
  return first === -1 ? path : parts.slice(0, first).join(sep) || sep;
}

export const isGlob = (path: string): boolean => /[*?[\]]/.test(path);

export function isBelow(path: string, root: string): boolean {
  const way = relative(root, path);
  return way === '' || (way !== '..' && !way.startsWith(`..${sep}`) && !isAbsolute(way));
}
