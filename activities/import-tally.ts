import { type Bucket, histogram } from '../environments/deep-research/benchmarks/statistics.ts';
import { IMPORT_DROPS, type ImportedRecord } from '../environments/deep-research/trajectories/import-record.ts';
import type { Metric, TrajectoriesBody } from '../schemas/artifact.ts';
import type { ResampleParameters } from '../schemas/node-parameters.ts';

type Usable = Exclude<ImportedRecord, { status: 'bad' }>;

/** `report.json` of imported trajectories. */
export interface ImportReport extends TrajectoriesBody {
  records: number;
  /** Taken out of conversations, kept or not. */
  removed_turns: { other_tools: Record<string, number>; repeated_calls: number; unreadable: number };
  /** Actions of kept trajectories that are trained in our form and not as written. */
  rewritten_turns: number;
  /** By number of turns: `before` cleaning every readable record, `after` it what is kept, and its instances. */
  turns: { before: Bucket[]; after: Bucket[]; instances: Bucket[] };
  tokens_histogram: Bucket[];
  longest_tokens: number;
}

const TURN_EDGES = [2, 3, 4, 5, 6, 8, 11, 16, 21, 31, 51, 76, 101, 151, 201];
const TOKEN_EDGES = [1024, 2048, 4096, 8192, 16384, 32768, 49152, 65536, 98304, 131072, 200_000];

/** Counts what becomes of records while they stream by; holds a few numbers of each. */
export class ImportTally {
  readonly #resample: ResampleParameters | null;
  readonly #dropped = new Map<string, number>();
  readonly #removed: ImportReport['removed_turns'] = { other_tools: {}, repeated_calls: 0, unreadable: 0 };
  readonly #turnsBefore: number[] = [];
  readonly #turnsAfter: number[] = [];
  readonly #instanceTurns: number[] = [];
  readonly #lengths: number[] = [];
  #records = 0;
  #rewritten = 0;
  #tokens = 0;
  #trained = 0;

  constructor(resample: ResampleParameters | null) {
    this.#resample = resample;
  }

  bad(): void {
    this.#records += 1;
    this.#drop('bad_row');
  }

  /** Of a record that is dropped or kept; returns how many instances of it are trained on. */
  add(record: Usable): number {
    this.#records += 1;
    this.#turnsBefore.push(record.turnsBefore);
    this.#removed.repeated_calls += record.removed.repeated_calls;
    this.#removed.unreadable += record.removed.unreadable;
    for (const [tool, times] of Object.entries(record.removed.other_tools))
      this.#removed.other_tools[tool] = (this.#removed.other_tools[tool] ?? 0) + times;
    if (record.status === 'dropped') {
      this.#drop(record.reason);
      return 0;
    }
    const { turns, rendered } = record.written;
    const copies = weightOf(turns.length, this.#resample);
    this.#rewritten += record.rewritten;
    this.#turnsAfter.push(turns.length);
    this.#lengths.push(rendered.token_ids.length);
    for (let copy = 0; copy < copies; copy += 1) this.#instanceTurns.push(turns.length);
    this.#tokens += copies * rendered.token_ids.length;
    this.#trained += copies * rendered.mask.reduce((ones, bit) => ones + bit, 0);
    return copies;
  }

  get kept(): number {
    return this.#turnsAfter.length;
  }

  get records(): number {
    return this.#records;
  }

  report(): ImportReport {
    return {
      ...this.body(),
      records: this.#records,
      removed_turns: this.#removed,
      rewritten_turns: this.#rewritten,
      turns: {
        before: histogram(this.#turnsBefore, TURN_EDGES),
        after: histogram(this.#turnsAfter, TURN_EDGES),
        instances: histogram(this.#instanceTurns, TURN_EDGES),
      },
      tokens_histogram: histogram(this.#lengths, TOKEN_EDGES),
      longest_tokens: this.#lengths.reduce((longest, length) => Math.max(longest, length), 0),
    };
  }

  body(): TrajectoriesBody {
    const reasons = ['bad_row', ...IMPORT_DROPS].filter((reason) => this.#dropped.has(reason));
    return {
      trajectories: this.#turnsAfter.length,
      instances: this.#instanceTurns.length,
      tokens: this.#tokens,
      masked_share: 1 - this.#trained / Math.max(1, this.#tokens),
      dropped: Object.fromEntries(reasons.map((reason) => [reason, this.#dropped.get(reason) as number])),
    };
  }

  /** `12 of 100 records kept as 30 instances; dropped: wrong answer 80, bad row 8; 75.0 % of 9,000 tokens masked`. */
  inWords(): string {
    const { trajectories, instances, tokens, masked_share, dropped } = this.body();
    const reasons = Object.entries(dropped).map(([reason, times]) => `${reason.replaceAll('_', ' ')} ${times}`);
    return [
      `${trajectories} of ${this.#records} records kept as ${instances} instances`,
      ...(reasons.length === 0 ? [] : [`dropped: ${reasons.join(', ')}`]),
      `${(100 * masked_share).toFixed(1)} % of ${tokens.toLocaleString('en-US')} tokens masked`,
    ].join('; ');
  }

  /** Sums, and histograms as curves over turns or tokens. */
  metrics(timestamp_ms: number): Metric[] {
    const { turns, tokens_histogram, ...report } = this.report();
    const point = (name: string, value: number, step = 0): Metric => ({
      name: `trajectories/${name}`,
      step,
      value,
      timestamp_ms,
    });
    const curve = (name: string, buckets: readonly Bucket[]): Metric[] =>
      buckets.map(({ from, count }) => point(name, count, from));
    return [
      point('records', report.records),
      point('kept', report.trajectories),
      point('instances', report.instances),
      point('tokens', report.tokens),
      point('masked_share', report.masked_share),
      point('longest_tokens', report.longest_tokens),
      point('rewritten_turns', report.rewritten_turns),
      point('removed_turns/repeated_calls', report.removed_turns.repeated_calls),
      point('removed_turns/other_tools', sum(Object.values(report.removed_turns.other_tools))),
      point('removed_turns/unreadable', report.removed_turns.unreadable),
      ...Object.entries(report.dropped).map(([reason, times]) => point(`dropped/${reason}`, times)),
      ...curve('by_turns/before', turns.before),
      ...curve('by_turns/after', turns.after),
      ...curve('by_turns/instances', turns.instances),
      ...curve('by_tokens', tokens_histogram),
    ];
  }

  #drop(reason: string): void {
    this.#dropped.set(reason, (this.#dropped.get(reason) ?? 0) + 1);
  }
}

/** Copies of an instance: the weight of the first band that its turns fall into. */
export function weightOf(turns: number, resample: ResampleParameters | null): number {
  if (resample === null) return 1;
  return resample.bands.find(({ up_to }) => up_to === null || turns <= up_to)?.weight ?? 1;
}

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);
