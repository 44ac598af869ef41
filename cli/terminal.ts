/** What a line on a terminal needs: width, colour, symbols and an ASCII fallback. No layout lives here. */
import { styleText } from 'node:util';

type Format = Parameters<typeof styleText>[0];

/** How to draw on the terminal at hand. */
export interface Terminal {
  columns: number;
  rows: number;
  unicode: boolean;
  colour: boolean;
}

export interface TerminalSource {
  isTTY: boolean;
  env: NodeJS.ProcessEnv;
  columns?: number;
}

/** Colour follows NO_COLOR and FORCE_COLOR (no-color.org); Unicode follows the locale. */
export function detectTerminal(io: TerminalSource): Terminal {
  const { env } = io;
  const forced = env['FORCE_COLOR'] !== undefined && env['FORCE_COLOR'] !== '0';
  const refused = Boolean(env['NO_COLOR']) || env['FORCE_COLOR'] === '0' || env['TERM'] === 'dumb';
  const locale = env['LC_ALL'] || env['LC_CTYPE'] || env['LANG'] || '';
  return {
    columns: Math.max(40, process.stdout.columns ?? io.columns ?? 80),
    rows: Math.max(10, process.stdout.rows ?? 24),
    unicode: /utf-?8/i.test(locale) || (locale === '' && io.isTTY && env['TERM'] !== 'linux'),
    colour: forced || (io.isTTY && !refused),
  };
}

/** Text in a colour, or as it is where colours are off. */
export function paint(terminal: Pick<Terminal, 'colour'>, format: Format, text: string): string {
  return terminal.colour && text !== '' ? styleText(format, text, { validateStream: false }) : text;
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: these are what must not reach a terminal
const CONTROL = /\u001b\[[0-9;?]*[ -/]*[@-~]|[\u0000-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;

/** Text from outside (errors, page titles, details): one line, without escape sequences or direction overrides. */
export function oneLine(text: string): string {
  return (text.split(/\r?\n/).find((line) => line.trim() !== '') ?? '').replace(CONTROL, ' ').trim();
}

const WIDE =
  /[\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6\u{1f300}-\u{1faff}\u{20000}-\u{3fffd}]/u;
const ZERO_WIDTH = /\p{Mn}|[\u200b-\u200d]/u;

function characterWidth(character: string): number {
  if (ZERO_WIDTH.test(character)) return 0;
  return WIDE.test(character) ? 2 : 1;
}

/** Columns a text takes; colours take none. */
export function textWidth(text: string): number {
  let width = 0;
  for (const character of text.replace(CONTROL, '')) width += characterWidth(character);
  return width;
}

/** Cut to a width, with an ellipsis where something was lost. Takes text without colours. */
export function truncate(text: string, width: number, ellipsis = '…'): string {
  if (textWidth(text) <= width) return text;
  if (width <= ellipsis.length) return ellipsis.slice(0, Math.max(0, width));
  let used = ellipsis.length;
  let kept = '';
  for (const character of text) {
    used += characterWidth(character);
    if (used > width) break;
    kept += character;
  }
  return `${kept.trimEnd()}${ellipsis}`;
}

/** Exactly `width` columns: cut or filled. */
export function padTo(terminal: Terminal, text: string, width: number, align: 'left' | 'right' = 'left'): string {
  const shown = truncate(text, width, terminal.unicode ? '…' : '...');
  const fill = ' '.repeat(Math.max(0, width - textWidth(shown)));
  return align === 'left' ? shown + fill : fill + shown;
}

const ASCII_FOR: Record<string, string> = {
  '·': '-',
  '…': '...',
  '→': '->',
  '≤': '<=',
  '±': '+-',
  '×': 'x',
  '—': '-',
  '–': '-',
};

/** The same line for a terminal that shows ASCII only. */
export function plainAscii(text: string): string {
  return text.replace(/\P{ASCII}/gu, (character) => ASCII_FOR[character] ?? '?');
}

/** `done` of `total` as a bar of `width` columns, to an eighth of a column where Unicode is at hand. */
export function progressBar(terminal: Terminal, done: number, total: number, width: number): string {
  const share = total > 0 ? Math.min(1, Math.max(0, done / total)) : 0;
  if (!terminal.unicode) {
    const full = Math.floor(share * (width - 2));
    return `[${'#'.repeat(full)}${'.'.repeat(Math.max(0, width - 2 - full))}]`;
  }
  const eighths = Math.floor(share * width * 8);
  const full = Math.floor(eighths / 8);
  const part = ['', '▏', '▎', '▍', '▌', '▋', '▊', '▉'][eighths % 8] ?? '';
  return `${'█'.repeat(full)}${part}${'░'.repeat(Math.max(0, width - full - (part ? 1 : 0)))}`;
}

/** `0:42`, `12:07`, `1:02:33`. */
export function clock(seconds: number): string {
  const whole = Math.max(0, Math.floor(seconds));
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (value: number): string => String(value).padStart(2, '0');
  return hours > 0 ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

/** Digits grouped by thousands, whatever the locale of the machine. */
export function count(value: number): string {
  return Math.round(value).toLocaleString('en-US');
}

export interface Column {
  title: string;
  align?: 'left' | 'right';
}

/** A table without borders: titles, a rule, rows. Columns are as wide as their widest cell. */
export function renderTable(
  terminal: Terminal,
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
): string[] {
  const widths = columns.map((column, at) =>
    Math.max(textWidth(column.title), ...rows.map((row) => textWidth(row[at] ?? ''))),
  );
  const line = (cells: readonly string[]): string =>
    cells
      .map((cell, at) => {
        const fill = ' '.repeat(Math.max(0, (widths[at] ?? 0) - textWidth(cell)));
        return columns[at]?.align === 'right' ? fill + cell : cell + fill;
      })
      .join('  ')
      .trimEnd();
  const rule = widths.map((width) => (terminal.unicode ? '─' : '-').repeat(width)).join('  ');
  return [
    paint(terminal, 'bold', line(columns.map(({ title }) => title))),
    paint(terminal, 'dim', rule),
    ...rows.map(line),
  ];
}
