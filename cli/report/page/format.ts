/** Numbers and times as people read them. */
import type { Interval } from '../document.ts';

export const percent = (share: number): string => `${(100 * share).toFixed(1)}`;

export const interval = ({ value, low, high }: Interval): string =>
  `${percent(value)} [${percent(low)}, ${percent(high)}]`;

/** A difference: with its sign. */
export function difference({ value, low, high }: Interval): string {
  const signed = (share: number): string => (share > 0 ? `+${percent(share)}` : percent(share));
  return `${signed(value)} [${signed(low)}, ${signed(high)}]`;
}

/** `avg_at_2` is what MLflow can hold; people write `avg@2`. */
export const metricTitle = (name: string): string => name.replace('_at_', '@');

export const words = (name: string): string => name.replaceAll('_', ' ');

export const count = (value: number): string => value.toLocaleString('en');

/** Four significant digits, and no more zeros than needed. */
export function number(value: number): string {
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

export function duration(seconds: number): string {
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export const time = (ms: number): string => new Date(ms).toISOString().replace('T', ' ').slice(0, 19);

export const shortHash = (hash: string): string => hash.slice(0, 12);
