/** Reads a spec file and the files it extends, lowest first. A file is refused unread when it is too large. */
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs';
import { dirname, join, normalize, resolve } from 'node:path';
import { escapes } from './input-paths.ts';
import { child, type Located, type LocatedMap } from './located.ts';
import { type Place, type Problem, problem, quoted } from './problem.ts';
import { decodeUtf8, MAX_BYTES, readDocument } from './strict-yaml.ts';

/** Files read for one spec; what several extend is read, and counted, for each. */
const MAX_FILES = 64;

export interface LoadedFiles {
  /** Documents in the order they are laid over each other; `extends` itself is gone. */
  documents: LocatedMap[];
  problems: Problem[];
  /** Text by file as named in problems, for excerpts. */
  texts: Map<string, string>;
  filesRead: number;
  /** Of all files together. */
  bytesRead: number;
}

/** One file alone. Used for overlays and profiles too. */
export function readSpecFile(
  file: string,
  askedAt?: Place,
): { root: LocatedMap | null; problems: Problem[]; text: string } {
  const failed = (found: Problem): ReturnType<typeof readSpecFile> => ({ root: null, problems: [found], text: '' });
  const start: Place = { file, line: 1, column: 1 };
  const bytes = readBounded(file, askedAt ?? start);
  if ('code' in bytes) return failed(bytes);
  const decoded = decodeUtf8(bytes.bytes, file);
  if ('problem' in decoded) return failed(decoded.problem);
  const { root, problems } = readDocument(decoded.text, file);
  return { root: root as LocatedMap | null, problems, text: decoded.text };
}

/** The file and everything it extends. */
export function loadSpec(file: string): LoadedFiles {
  const loaded: LoadedFiles = { documents: [], problems: [], texts: new Map(), filesRead: 0, bytesRead: 0 };
  loadChain(normalize(file), [], undefined, loaded);
  return loaded;
}

function loadChain(file: string, above: readonly string[], askedAt: Place | undefined, loaded: LoadedFiles): void {
  if (above.includes(resolve(file))) {
    loaded.problems.push(problem('CYCLE', askedAt as Place, `\`extends\` comes back to ${quoted(file)}`));
    return;
  }
  if (loaded.filesRead > MAX_FILES || loaded.bytesRead > MAX_BYTES) return; // said already
  if (++loaded.filesRead > MAX_FILES) {
    loaded.problems.push(problem('SIZE', askedAt as Place, `more than ${MAX_FILES} files`));
    return;
  }
  const { root, problems, text } = readSpecFile(file, askedAt);
  loaded.texts.set(file, text);
  loaded.bytesRead += Buffer.byteLength(text);
  if (loaded.bytesRead > MAX_BYTES) {
    loaded.problems.push(problem('SIZE', askedAt as Place, `with this file, more than ${MAX_BYTES} bytes are read`));
    return;
  }
  loaded.problems.push(...problems);
  if (root === null) return;
  for (const { path, at } of extended(root, loaded.problems)) {
    loadChain(join(dirname(file), path), [...above, resolve(file)], at, loaded);
  }
  const entries = new Map(root.entries);
  entries.delete('extends');
  loaded.documents.push({ ...root, entries });
}

/** The paths `extends` names; what is no path is a problem. */
function extended(root: LocatedMap, problems: Problem[]): { path: string; at: Place }[] {
  const value = child(root, 'extends');
  if (value === undefined) return [];
  if (value.kind !== 'list') {
    problems.push(problem('TYPE', value.at, '`extends` is a list of files', 'write [file.yaml]'));
    return [];
  }
  return value.items.flatMap((item: Located) => {
    if (item.kind !== 'scalar' || typeof item.value !== 'string' || item.value === '') {
      problems.push(problem('TYPE', item.at, '`extends` names files'));
      return [];
    }
    const reason = escapes(item.value);
    if (reason !== null) {
      problems.push(problem('PATH_OUTSIDE', item.at, `${quoted(item.value)} ${reason}`));
      return [];
    }
    return [{ path: item.value, at: item.at }];
  });
}

/** At most `MAX_BYTES` of a regular file; a pipe or device is not waited for. */
function readBounded(file: string, at: Place): { bytes: Buffer } | Problem {
  let descriptor: number;
  try {
    descriptor = openSync(file, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const why =
      code === 'ENOENT'
        ? 'there is no such file'
        : code === 'EACCES'
          ? 'the file may not be read'
          : `the file cannot be opened (${code})`;
    return problem('FILE', at, `${quoted(file)}: ${why}`);
  }
  try {
    const info = fstatSync(descriptor);
    if (!info.isFile()) return problem('NOT_REGULAR', at, `${quoted(file)} is not a regular file`);
    if (info.size > MAX_BYTES) return problem('SIZE', at, `${info.size} bytes; a spec has at most ${MAX_BYTES}`);
    const bytes = Buffer.alloc(Number(info.size));
    return { bytes: bytes.subarray(0, readSync(descriptor, bytes, 0, bytes.length, 0)) };
  } finally {
    closeSync(descriptor);
  }
}
