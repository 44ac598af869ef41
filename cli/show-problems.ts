/** Problems of a spec as a person reads them: one line each, and on a terminal the line itself with a caret. */
import { type Problem, printable, problemLine } from '../plan/problem.ts';
import type { CommandIo } from './command.ts';
import { detectTerminal, paint, truncate } from './terminal.ts';

/** More of a line than this says nothing. */
const MAX_EXCERPT = 160;
/** Bytes of all that is shown of a spec's problems; `--json` has the rest. */
const MAX_SHOWN = 4000;

export function showProblems(problems: readonly Problem[], texts: ReadonlyMap<string, string>, io: CommandIo): void {
  let room = MAX_SHOWN;
  for (const [index, found] of problems.entries()) {
    const lines = [problemLine(found), ...(io.isTTY ? excerpt(found, texts, io) : [])];
    room -= Buffer.byteLength(lines.join('\n')) + 1;
    if (room < 0 && index > 0) {
      io.err(`… and ${problems.length - index} more; --json has all`);
      return;
    }
    for (const line of lines) io.err(line);
  }
}

/** The line and a caret below it. Lines that may hold a secret are not shown. */
function excerpt({ file, line, column, code }: Problem, texts: ReadonlyMap<string, string>, io: CommandIo): string[] {
  const text = texts.get(file)?.split(/\r?\n/)[line - 1];
  if (text === undefined || text.trim() === '' || code.startsWith('SECRET')) return [];
  const terminal = detectTerminal(io);
  const start = Math.max(0, column - 1 - MAX_EXCERPT / 2);
  const shown = printable(text.slice(start, start + MAX_EXCERPT), ' ');
  const gutter = `  ${line} | `;
  const caret = `${' '.repeat(gutter.length + column - 1 - start)}^`;
  return [truncate(`${gutter}${shown}`, terminal.columns), paint(terminal, 'red', caret)];
}

/** `validate --json` and `plan --json` say the same of a problem. */
export function problemsToJson(problems: readonly Problem[]): Problem[] {
  return problems.map(({ file, line, column, code, message, hint }) => ({
    file,
    line,
    column,
    code,
    message,
    ...(hint !== undefined && { hint }),
  }));
}
