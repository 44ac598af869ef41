/** Codes a caller may match on. Spec and plan problems share the list, so one table documents them all. */
export type ExpErrorCode = string;

/** Process exit codes of every verb. */
export const ExitCode = {
  done: 0,
  runFailed: 1,
  invalidInput: 2,
  gateFailed: 3,
  budget: 4,
  quarantined: 5,
  unavailable: 69,
} as const;

/** A failure with an answer for the user: what, where, and a code to match on. */
export class ExpError extends Error {
  override readonly name = 'ExpError';
  readonly code: ExpErrorCode;
  /** Where to look: `experiments/quickstart.yaml:14:7`, a node id, a trajectory id. */
  readonly at: string;

  constructor(code: ExpErrorCode, at: string, message: string, options?: ErrorOptions) {
    super(`${at}: ${code}: ${message}`, options);
    this.code = code;
    this.at = at;
  }
}
