/** What a verb is: arguments in, lines and an exit code out. */

/** Where a verb writes, and what it may know of its surroundings. */
export interface CommandIo {
  /** One line (or more) of the answer, to stdout. With `--json`, data only. */
  out(text: string): void;
  /** Progress and complaints, to stderr. */
  err(text: string): void;
  /** Whether stdout is a terminal. */
  isTTY: boolean;
  /** Width of that terminal. */
  columns?: number;
  env: NodeJS.ProcessEnv;
  /** Aborted by the first Ctrl-C or SIGTERM; the second one ends the process. */
  signal: AbortSignal;
}

export interface Command {
  name: string;
  /** One sentence for `exp --help`. */
  summary: string;
  /** Shown by `exp <verb> --help`, after the line `exp <usage>`. */
  usage: string;
  /** Options and examples for `exp <verb> --help`; plain lines. */
  help?: string;
  /** Returns the exit code (schemas/errors.ts `ExitCode`); throws ExpError with an answer for the user. */
  run(argv: readonly string[], io: CommandIo): Promise<number>;
}
