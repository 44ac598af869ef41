/** Input files by content: SHA-256 of files, folders and globs, and what lockfiles install. */
import { createHash } from 'node:crypto';
import { constants, existsSync } from 'node:fs';
import { type FileHandle, mkdir, open, readFile, readlink, realpath, rename, stat, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { contentKey } from '../schemas/canonical.ts';
import { fixedPart, isBelow, isGlob } from './input-paths.ts';

/** A file changed within this long of its digest may change again without a new mtime. */
const SETTLED_MS = 2_000;

interface CachedDigest {
  size: string;
  mtime: string;
  inode: string;
  sha256: string;
}

export type FilesOutcome =
  | { status: 'found'; sha256: string; count: number }
  | { status: 'absent' }
  /** A device, pipe or socket: reading it could wait for ever. */
  | { status: 'not_regular'; path: string }
  /** It is there, and the system does not let us read it. */
  | { status: 'unreadable'; path: string; why: string }
  | { status: 'outside'; path: string };

/**
 * Digests of files, remembered by size, mtime and inode. One instance serves one plan: it looks at a path once, however
 * many sources and arms name it.
 */
export class FileDigests {
  readonly #cacheFile: string;
  readonly #asked = new Map<string, Promise<FilesOutcome>>();
  readonly #locks = new Map<string, Promise<string | null>>();
  #known: Record<string, CachedDigest> | undefined;
  #changed = false;

  constructor(cacheDir: string) {
    this.#cacheFile = join(cacheDir, 'file-digests.json');
  }

  /** One digest for whatever a path names: a file, a glob, or every file below a folder. */
  of(path: string, root: string): Promise<FilesOutcome> {
    const question = `${root}\0${path}`;
    const outcome = this.#asked.get(question) ?? this.#look(path, root);
    this.#asked.set(question, outcome);
    return outcome;
  }

  /** What a lockfile pins, as one digest; null where there is none. */
  ofLock(ecosystem: 'npm' | 'python', file: string): Promise<string | null> {
    const digest = this.#locks.get(file) ?? (ecosystem === 'npm' ? npmLockDigest(file) : pythonLockDigest(file));
    this.#locks.set(file, digest);
    return digest;
  }

  async #look(path: string, root: string): Promise<FilesOutcome> {
    if (!isGlob(path)) {
      if (!existsSync(path)) return { status: 'absent' };
      const info = await stat(path);
      if (info.isFile()) return this.#ofFile(path, root);
      if (!info.isDirectory()) return { status: 'not_regular', path };
    }
    return this.#ofMany(path, root);
  }

  async #ofMany(path: string, root: string): Promise<FilesOutcome> {
    const base = fixedPart(path);
    if (!existsSync(base)) return { status: 'absent' };
    const pattern = isGlob(path) ? path.slice(base.length).replace(/^\//, '') : '**/*';
    const { glob } = await import('tinyglobby'); // few specs name folders, and it takes a while to load
    const names = (await glob(pattern, { cwd: base, dot: false, followSymbolicLinks: false })).sort();
    const listing: [string, string][] = [];
    for (const name of names) {
      const file = join(base, name);
      if (!isBelow(await realpath(file), await realpath(root))) return { status: 'outside', path: file };
      if (!(await stat(file)).isFile()) return { status: 'not_regular', path: file };
      const found = await this.#ofFile(file, root);
      if (found.status !== 'found') return found;
      listing.push([name, found.sha256]);
    }
    if (listing.length === 0) return { status: 'absent' };
    return { status: 'found', sha256: contentKey(listing), count: listing.length };
  }

  async #ofFile(path: string, root: string): Promise<FilesOutcome> {
    const info = await stat(path, { bigint: true });
    const seen = { size: String(info.size), mtime: String(info.mtimeNs), inode: String(info.ino) };
    const known = await this.#load();
    const cached = known[path];
    if (cached && cached.size === seen.size && cached.mtime === seen.mtime && cached.inode === seen.inode)
      return { status: 'found', sha256: cached.sha256, count: 1 };
    const found = await hashFileBelow(path, root);
    if (found.status === 'found' && Date.now() - Number(info.mtimeMs) > SETTLED_MS) {
      known[path] = { ...seen, sha256: found.sha256 };
      this.#changed = true;
    }
    return found;
  }

  async #load(): Promise<Record<string, CachedDigest>> {
    if (this.#known === undefined) {
      try {
        this.#known = JSON.parse(await readFile(this.#cacheFile, 'utf8')) as Record<string, CachedDigest>;
      } catch {
        this.#known = {}; // absent or torn: it is only a cache
      }
    }
    return this.#known;
  }

  /** Keep what was learnt. Losing it costs time only, so a full disk is no failure. */
  async save(): Promise<void> {
    if (!this.#changed) return;
    try {
      await mkdir(dirname(this.#cacheFile), { recursive: true });
      const temporary = `${this.#cacheFile}.${process.pid}`;
      await writeFile(temporary, JSON.stringify(this.#known));
      await rename(temporary, this.#cacheFile);
    } catch {
      // the next plan reads the files again
    }
  }
}

/**
 * What the path was checked to be may have been swapped since. So it is opened first, without waiting for a writer, and
 * what was opened is asked what it is and where it lies.
 */
async function hashFileBelow(path: string, root: string): Promise<FilesOutcome> {
  let file: FileHandle | undefined;
  try {
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    if (!isBelow(await readlink(`/proc/self/fd/${file.fd}`), await realpath(root))) return { status: 'outside', path };
    if (!(await file.stat()).isFile()) return { status: 'not_regular', path };
    return { status: 'found', sha256: await hashOpen(file), count: 1 };
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === undefined) throw error;
    return { status: 'unreadable', path, why: code };
  } finally {
    await file?.close();
  }
}

async function hashOpen(file: FileHandle): Promise<string> {
  const hash = createHash('sha256');
  const blocks = file.createReadStream({ highWaterMark: 1 << 20, autoClose: false });
  for await (const block of blocks) hash.update(block as Buffer);
  return hash.digest('hex');
}

/** (name, version, integrity) of every package that package-lock.json installs, as one digest. */
async function npmLockDigest(file: string): Promise<string | null> {
  const text = await readIfThere(file);
  if (text === null) return null;
  const { packages = {} } = JSON.parse(text) as { packages?: Record<string, { version?: string; integrity?: string }> };
  const installed = Object.entries(packages)
    .filter(([name]) => name !== '')
    .map(([name, { version = '', integrity = '' }]) => [name, version, integrity]);
  return contentKey(installed.sort(([a = ''], [b = '']) => (a < b ? -1 : 1)));
}

/** (name, version, hashes) of every pinned line of a requirements file, as one digest. */
async function pythonLockDigest(file: string): Promise<string | null> {
  const text = await readIfThere(file);
  if (text === null) return null;
  const pins = text
    .replaceAll(/\\\r?\n/g, ' ')
    .split(/\r?\n/)
    .map((line) => line.replace(/(^|\s)#.*$/, '').trim())
    .filter((line) => line !== '' && !line.startsWith('-'))
    .map((line) => {
      const [pin = '', ...options] = line.split(/\s+(?=--hash)|\s*;\s*/);
      const [name = '', version = ''] = pin.split(/==|\s+@\s+/);
      return [
        name
          .trim()
          .toLowerCase()
          .replaceAll(/[-_.]+/g, '-'),
        version.trim(),
        ...options.filter((option) => option.startsWith('--hash')).sort(),
      ];
    });
  return contentKey(pins.sort(([a = ''], [b = '']) => (a < b ? -1 : 1)));
}

async function readIfThere(file: string): Promise<string | null> {
  try {
    return await readFile(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
}
