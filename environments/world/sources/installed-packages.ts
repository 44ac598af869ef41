import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ExpError } from '../../../schemas/errors.ts';
import type { SourcePage } from '../../environment.ts';
import { readNpmPackage } from './npm-package.ts';
import { normalizePythonName, npmUrl, pythonUrl } from './package-url.ts';
import { readPythonPackage } from './python-package.ts';

export type Ecosystem = 'npm' | 'python';

export interface InstalledPackagesOptions {
  /** Both when absent. */
  ecosystems?: readonly string[];
  /** The checkout whose packages are read. */
  root?: string;
  /** How much of each README a page holds; the rest of a long one would crowd out other packages. */
  readmeChars?: number;
}

/** Each page carries its own licence as a fact; there is none for the source as a whole. */
export const INSTALLED_PACKAGES_LICENCE = 'as each package declares (fact "license")';
export const INSTALLED_PACKAGES_PROVENANCE = 'installed in this checkout';

const DEFAULT_README_CHARS = 2400;

interface PackageLocation {
  url: string;
  read: (readmeChars: number) => Promise<SourcePage | null>;
}

/**
 * The documentation of the packages installed in a checkout: one page a package, its URL a purl without version.
 *
 * Ordered by the hash of the URL, not by name: a corpus cut off at a limit is then a fair sample of both
 * ecosystems. What a page says follows from the lockfiles alone: manifests, README and metadata, nothing measured.
 */
export async function* installedPackages(options: InstalledPackagesOptions): AsyncGenerator<SourcePage> {
  const { ecosystems = ['npm', 'python'], root = process.cwd() } = options;
  const locations = new Map<string, PackageLocation>();
  if (ecosystems.includes('npm')) {
    for (const location of await npmLocations(root)) locations.set(location.url, location);
  }
  if (ecosystems.includes('python')) {
    for (const location of await pythonLocations(root)) locations.set(location.url, location);
  }
  const ordered = [...locations.values()].map((location) => ({ ...location, order: sha256(location.url) }));
  ordered.sort((a, b) => (a.order < b.order ? -1 : 1));
  for (const { read } of ordered) {
    const page = await read(options.readmeChars ?? DEFAULT_README_CHARS);
    if (page) yield page;
  }
}

/** One location a package name: the top-level copy if there is one, else the first in the order of the lockfile. */
async function npmLocations(root: string): Promise<PackageLocation[]> {
  const lockfile = join(root, 'package-lock.json');
  const lock = JSON.parse(await readText(lockfile, 'npm')) as { packages: Record<string, { link?: boolean }> };
  const byName = new Map<string, string>();
  for (const [path, entry] of Object.entries(lock.packages)) {
    if (path === '' || entry.link) continue;
    const name = path.slice(path.lastIndexOf('node_modules/') + 'node_modules/'.length);
    if (!byName.has(name) || path === `node_modules/${name}`) byName.set(name, path);
  }
  return [...byName].map(([name, path]) => ({
    url: npmUrl(name),
    read: (readmeChars: number) => readNpmPackage(name, join(root, path), readmeChars),
  }));
}

/** Packages that `requirements.txt` pins: what else is in the environment is there on this machine only. */
async function pythonLocations(root: string): Promise<PackageLocation[]> {
  const requirements = await readText(join(root, 'requirements.txt'), 'python');
  const pinned = new Set(
    [...requirements.matchAll(/^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?\s*==/gm)].map(([, name]) =>
      normalizePythonName(name as string),
    ),
  );
  const lib = join(root, '.exp/venv/lib');
  const python = (await list(lib, 'python')).find((name) => name.startsWith('python3'));
  const sitePackages = join(lib, python ?? 'python3', 'site-packages');
  const locations: PackageLocation[] = [];
  for (const folder of (await list(sitePackages, 'python')).sort()) {
    const match = /^(.+?)-[^-]+\.dist-info$/.exec(folder);
    if (!match) continue;
    const name = normalizePythonName(match[1] as string);
    if (!pinned.has(name)) continue;
    locations.push({
      url: pythonUrl(name),
      read: (readmeChars: number) => readPythonPackage(name, join(sitePackages, folder), readmeChars),
    });
  }
  return locations;
}

async function readText(path: string, ecosystem: Ecosystem): Promise<string> {
  return readFile(path, 'utf8').catch((cause: unknown) => {
    throw new ExpError('SOURCE_MISSING', path, `the ${ecosystem} packages of this checkout are not installed`, {
      cause,
    });
  });
}

async function list(path: string, ecosystem: Ecosystem): Promise<string[]> {
  return readdir(path).catch((cause: unknown) => {
    throw new ExpError('SOURCE_MISSING', path, `the ${ecosystem} packages of this checkout are not installed`, {
      cause,
    });
  });
}

function sha256(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}
