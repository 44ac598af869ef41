/** What MLflow accepts: names, lengths, batch sizes. Everything here is deterministic, so a resend is the same rows. */
import { createHash } from 'node:crypto';
import type { Metric } from '../../schemas/artifact.ts';

export interface KeyValue {
  key: string;
  value: string;
}

/** One `runs/log-batch`, within every limit of the server. */
export interface LogBatch {
  metrics: Metric[];
  params: KeyValue[];
  tags: KeyValue[];
}

/** Limits of one call (mlflow/utils/validation.py, 3.17.2). `bytes` leaves room below the server's 1,000,000. */
const PER_CALL = { metrics: 1000, params: 100, tags: 100, items: 1000, bytes: 900_000 } as const;
const KEY_LENGTH = 250;
const PARAM_LENGTH = 6000;
const TAG_LENGTH = 8000;

const shortHash = (text: string): string => createHash('sha256').update(text).digest('hex').slice(0, 12);

/** PostgreSQL's jsonb holds neither NUL nor lone surrogates; both become U+FFFD. */
const storable = (text: string): string => Buffer.from(text, 'utf8').toString('utf8').replaceAll('\0', '\uFFFD');

/** Text of at most `limit` characters; what was cut is named by the hash of the whole. */
function truncate(text: string, limit: number): string {
  const whole = storable(text);
  if (whole.length <= limit) return whole;
  const mark = `… [${whole.length} characters, sha256 ${shortHash(whole)}]`;
  return storable(whole.slice(0, limit - mark.length)) + mark;
}

/** A key MLflow takes: word characters and `/ . - : space`, no path that resolves to another. A changed key carries a hash. */
export function normalKey(key: string): string {
  const safe = key
    .replaceAll('@', '_at_')
    .replace(/[^\p{L}\p{N}_./\-: ]/gu, '_')
    .split('/')
    .map((part) => (/^\.*$/.test(part) ? '_' : part))
    .join('/');
  if (safe === key && key.length <= KEY_LENGTH) return key;
  return `${safe.slice(0, KEY_LENGTH - 13)}-${shortHash(key)}`;
}

/** Names under which a text is a secret, whatever it looks like. Numbers (`max_turn_tokens: 160`) are never secrets. */
const SECRET_NAME =
  /^token$|(^|[._-])((api|auth|access|bearer|refresh|session)[_-]?token|(api|access|private|secret)[_-]?key|secret|password|passwd|credentials?|authorization)$/i;
const SECRET_TEXT = [
  /\b(sk|rk|pk)-[A-Za-z0-9_-]{16,}/g,
  /\bgh[pousr]_[A-Za-z0-9]{20,}/g,
  /\bgithub_pat_[A-Za-z0-9_]{20,}/g,
  /\bhf_[A-Za-z0-9]{20,}/g,
  /\bxox[abeoprs]-[A-Za-z0-9-]{10,}/g,
  /\b(AKIA|ASIA)[A-Z0-9]{16}\b/g,
  /\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+/g,
  /\b(Bearer|Basic)\s+[\w.~+/-]{12,}=*/gi,
  /-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(-----END [A-Z ]*PRIVATE KEY-----|$)/g,
];
const REDACTED = '[redacted]';

/** A copy in which secret-shaped texts are replaced: by the name they stand under, or by what they look like. */
export function redact<T>(value: T, name = ''): T {
  if (typeof value === 'string') return redactText(value, name) as T;
  if (Array.isArray(value)) return value.map((item) => redact(item, name)) as T;
  if (value === null || typeof value !== 'object') return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, redact(item, key)])) as T;
}

function redactText(text: string, name: string): string {
  if (SECRET_NAME.test(name) && text !== '') return REDACTED;
  const known = SECRET_TEXT.reduce((rest, pattern) => rest.replace(pattern, REDACTED), text);
  return known.replace(/(:\/\/)[^\s/@:]*:[^\s/@]+@/g, `$1${REDACTED}@`);
}

/** Leaves of a document as params: `agent.max_turns`, lists of plain values as JSON, lists of objects by position. */
export function paramsOf(document: unknown): KeyValue[] {
  const params = new Map<string, string>();
  const visit = (path: string, value: unknown): void => {
    if (value === undefined) return;
    const isPlain = (item: unknown): boolean => item === null || typeof item !== 'object';
    if (isPlain(value) || (Array.isArray(value) && value.every(isPlain))) {
      params.set(normalKey(path), truncate(typeof value === 'string' ? value : JSON.stringify(value), PARAM_LENGTH));
      return;
    }
    for (const [key, item] of Object.entries(value as object)) visit(path === '' ? key : `${path}.${key}`, item);
  };
  visit('', redact(document));
  return [...params].map(([key, value]) => ({ key, value }));
}

export function tagsOf(tags: Record<string, string>): KeyValue[] {
  return Object.entries(redact(tags)).map(([key, value]) => ({
    key: normalKey(key),
    value: truncate(value, TAG_LENGTH),
  }));
}

/**
 * Points as MLflow can hold them. It would store Infinity as 1.797e308 and draw NaN as a gap, so a value that is
 * no number becomes a 1 under `<name>_nan_count` at the same step and time.
 */
export function finiteMetrics(metrics: readonly Metric[]): Metric[] {
  return metrics.map(({ name, step, value, timestamp_ms }) =>
    Number.isFinite(value)
      ? { name: normalKey(name), step, value, timestamp_ms }
      : { name: normalKey(`${name}_nan_count`), step, value: 1, timestamp_ms },
  );
}

/** Cut into calls that the server accepts, in a fixed order. */
export function splitBatches({ metrics, params, tags }: LogBatch): LogBatch[] {
  const batches: LogBatch[] = [];
  let batch: LogBatch = { metrics: [], params: [], tags: [] };
  let bytes = 0;
  let count = 0;
  const add = <K extends keyof LogBatch>(kind: K, item: LogBatch[K][number]): void => {
    const size = Buffer.byteLength(JSON.stringify(item)) + 2;
    if (batch[kind].length >= PER_CALL[kind] || count >= PER_CALL.items || bytes + size > PER_CALL.bytes) {
      batches.push(batch);
      batch = { metrics: [], params: [], tags: [] };
      bytes = 0;
      count = 0;
    }
    (batch[kind] as LogBatch[K][number][]).push(item);
    bytes += size;
    count += 1;
  };
  for (const tag of tags) add('tags', tag);
  for (const param of params) add('params', param);
  for (const metric of metrics) add('metrics', metric);
  if (count > 0) batches.push(batch);
  return batches;
}
