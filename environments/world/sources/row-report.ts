import { ExpError } from '../../../schemas/errors.ts';

const MAX_BAD_SHARE = 0.01;
const EXAMPLES_KEPT = 5;

/**
 * Counts what a source yielded and what it could not. One bad page must not end a run; a source of which more
 * than 1 % is bad is the wrong file or the wrong format, and says so.
 */
export class RowReport {
  readonly source: string;
  readonly examples: string[] = [];
  good = 0;
  bad = 0;

  constructor(source: string) {
    this.source = source;
  }

  accept(): void {
    this.good += 1;
  }

  /** `at` is `file:line` or a file. */
  reject(at: string, reason: string): void {
    this.bad += 1;
    if (this.examples.length < EXAMPLES_KEPT) this.examples.push(`${at}: ${reason}`);
  }

  /** Call when the source has ended. Throws BAD_ROWS, EXPECT_RECORDS or EMPTY. */
  check(expectedRecords?: number): void {
    const rows = this.good + this.bad;
    if (this.bad > rows * MAX_BAD_SHARE) {
      const reasons = this.examples.join('; ');
      throw new ExpError(
        'BAD_ROWS',
        this.source,
        `${this.bad} of ${rows} rows are bad (at most 1 % may be): ${reasons}`,
      );
    }
    if (expectedRecords !== undefined && rows !== expectedRecords) {
      throw new ExpError('EXPECT_RECORDS', this.source, `expected ${expectedRecords} records, found ${rows}`);
    }
    if (this.good === 0) throw new ExpError('EMPTY', this.source, 'the source has no records');
  }
}
