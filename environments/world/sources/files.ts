import { stat } from 'node:fs/promises';
import { relative, resolve, sep } from 'node:path';
import { glob, isDynamicPattern } from 'tinyglobby';
import { ExpError } from '../../../schemas/errors.ts';

export interface SourceFile {
  path: string;
  /** Path below the folder or glob base, with `/`: stable across machines. */
  name: string;
}

/**
 * Files of a source, in name order, so that every machine reads them in the same order.
 * `path` is a file, a folder (all files with one of `extensions` below it), or a glob.
 */
export async function listFiles(path: string, extensions: readonly string[]): Promise<SourceFile[]> {
  const kind = await stat(path).catch(() => null);
  if (kind?.isFile()) return [{ path: resolve(path), name: path.split(sep).at(-1) ?? path }];
  if (kind !== null && !kind.isDirectory()) throw new ExpError('NOT_REGULAR', path, 'not a file or folder');
  if (kind === null && !isDynamicPattern(path)) throw new ExpError('NOT_FOUND', path, 'no such file or folder');

  const base = kind ? resolve(path) : globBase(path);
  const patterns = kind ? extensions.map((extension) => `**/*${extension}`) : [path];
  const found = await glob(patterns, { cwd: base, absolute: true, onlyFiles: true, followSymbolicLinks: false });
  if (found.length === 0) throw new ExpError('EMPTY', path, `no file matches (${extensions.join(', ')})`);
  return found
    .map((file) => ({ path: file, name: relative(base, file).split(sep).join('/') }))
    .sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** The folder above the first segment with a wildcard. */
function globBase(pattern: string): string {
  const segments = resolve(pattern).split(sep);
  const dynamic = segments.findIndex((segment) => isDynamicPattern(segment));
  return segments.slice(0, dynamic).join(sep) || sep;
}
