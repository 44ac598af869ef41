/** Changes by dotted path: `key=value`, `+key=value`, `~key` of the command line, and those of an arm. */
import { type Located, type LocatedMap, merge, nodeAt, withValue } from './located.ts';
import { didYouMean, type Place, type Problem, problem, quoted } from './problem.ts';
import { readValue } from './strict-yaml.ts';

/** What stands for the file in problems of the command line; the line is the number of the argument. */
export const COMMAND_LINE = 'command line';

export interface Assignment {
  /** `set` changes what is there, `add` also makes what is not, `merge` lays a map over it, `remove` takes away. */
  mode: 'set' | 'add' | 'merge' | 'remove';
  path: string[];
  value: Located;
  at: Place;
}

const FORM = /^([+~]?)([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)(=)?/;

/** Whether an argument is meant as an override and not as a file. */
export const isOverride = (argument: string): boolean => /^[+~]/.test(argument) || /^[A-Za-z_][\w.]*=/.test(argument);

export function parseOverrides(args: readonly string[]): { assignments: Assignment[]; problems: Problem[] } {
  const assignments: Assignment[] = [];
  const problems: Problem[] = [];
  for (const [index, text] of args.entries()) {
    const at: Place = { file: COMMAND_LINE, line: index + 1, column: 1 };
    const [head, sign, key, equals] = text.match(FORM) ?? [];
    if (
      head === undefined ||
      key === undefined ||
      (sign === '~') !== (equals === undefined) ||
      (sign === '~' && head !== text)
    ) {
      problems.push(problem('USAGE', at, `${quoted(text)} is no override`, 'write key=value, +key=value or ~key'));
      continue;
    }
    const path = key.split('.');
    if (sign === '~') {
      assignments.push({ mode: 'remove', path, value: { kind: 'unset', at }, at });
      continue;
    }
    const reading = readValue(text.slice(head.length), { ...at, column: head.length + 1 });
    problems.push(...reading.problems);
    if (reading.root) assignments.push({ mode: sign === '+' ? 'add' : 'set', path, value: reading.root, at });
  }
  return { assignments, problems };
}

/** Lay assignments over a document, in order. */
export function applyAssignments(
  root: Located,
  assignments: readonly Assignment[],
): { root: Located; problems: Problem[] } {
  const problems: Problem[] = [];
  const copied = new Set<LocatedMap>();
  let changed = root;
  for (const { mode, path, value, at } of assignments) {
    const present = nodeAt(changed, path);
    if (mode !== 'add' && mode !== 'merge' && (present === undefined || present.kind === 'unset')) {
      problems.push(
        problem(
          'UNKNOWN_FIELD',
          at,
          `\`${path.join('.')}\` is not set in the spec`,
          nearPath(changed, path) ?? (mode === 'set' ? `write +${path.join('.')}=… to add it` : undefined),
        ),
      );
      continue;
    }
    const laid = mode === 'merge' && present !== undefined ? merge(present, value) : value;
    changed = withValue(changed, path, laid, at, copied);
  }
  return { root: changed, problems };
}

/** A nearby name for the first step that does not exist. */
function nearPath(root: Located, path: readonly string[]): string | undefined {
  for (let length = 1; length <= path.length; length++) {
    if (nodeAt(root, path.slice(0, length)) !== undefined) continue;
    const parent = nodeAt(root, path.slice(0, length - 1));
    return parent?.kind === 'map' ? didYouMean(path[length - 1] as string, [...parent.entries.keys()]) : undefined;
  }
  return undefined;
}
