/**
 * A report as one HTML file that asks nothing of any network. Texts in it were written by a corpus and a model: they
 * are data that the page's script makes into text nodes, never markup.
 */
import { createHash, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { createWriteStream } from 'node:fs';
import { lstat, open, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { gzip } from 'node:zlib';
import { ExpError } from '../../schemas/errors.ts';
import { repoRoot } from '../../services/home.ts';
import { chunkId, type RunReport, type ShownTrajectory } from './document.ts';

const compress = promisify(gzip);
/** By this a file is known as a report of ours. */
const GENERATOR = '<meta name="generator" content="exp report">';
const HEAD_BYTES = 512;

/** Throws EXISTS where something other than a report of ours would be lost, NOT_REGULAR for anything but a file. */
export async function refuseForeignFile(path: string): Promise<void> {
  const found = await lstat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return null;
    throw error;
  });
  if (found === null) return;
  if (!found.isFile()) throw new ExpError('NOT_REGULAR', path, 'is not a file; name another with --out');
  const file = await open(path);
  try {
    const { buffer, bytesRead } = await file.read({ buffer: Buffer.alloc(HEAD_BYTES), position: 0 });
    if (buffer.subarray(0, bytesRead).includes(GENERATOR)) return;
  } finally {
    await file.close();
  }
  throw new ExpError('EXISTS', path, 'is there already and is no report of exp; name another file with --out');
}

/** The file appears whole, by rename, or not at all. `trajectories` come in the order of the report's index. */
export async function writePage(
  path: string,
  report: RunReport,
  trajectories: AsyncIterable<ShownTrajectory>,
): Promise<void> {
  const unfinished = `${path}.${randomUUID()}.tmp`;
  try {
    const stream = createWriteStream(unfinished, { flags: 'wx' });
    const failed = once(stream, 'error').then(([error]) => Promise.reject(error as Error));
    failed.catch(() => {}); // awaited below, once somebody waits
    for await (const part of partsOf(report, trajectories)) {
      if (!stream.write(part)) await Promise.race([once(stream, 'drain'), failed]);
    }
    stream.end();
    await Promise.race([once(stream, 'close'), failed]);
    await rename(unfinished, path);
  } finally {
    await rm(unfinished, { force: true });
  }
}

/** The chunks come last: the page shows itself while they are still being read. */
async function* partsOf(report: RunReport, trajectories: AsyncIterable<ShownTrajectory>): AsyncGenerator<string> {
  const [script, style] = await Promise.all(
    ['report-page.js', 'report-page.css'].map((name) => readFile(join(repoRoot(), 'dist', name), 'utf8')),
  );
  yield pageHead(report.run.name, style as string, script as string);
  yield `<script type="application/json" id="report">${asData(report)}</script>\n<script>${script}</script>\n`;
  const { chunk_size, embedded } = report.trajectories;
  let chunk: ShownTrajectory[] = [];
  let written = 0;
  for await (const trajectory of trajectories) {
    chunk.push(trajectory);
    if (chunk.length < chunk_size && written * chunk_size + chunk.length < embedded) continue;
    const packed = (await compress(JSON.stringify(chunk))).toString('base64');
    yield `<script type="application/octet-stream" id="${chunkId(written)}">${packed}</script>\n`;
    written += 1;
    chunk = [];
  }
  yield '</body>\n</html>\n';
}

/** Nothing may be loaded, and of scripts only this one runs. Styles are inline because the plots set them so. */
function pageHead(title: string, style: string, script: string): string {
  const digest = createHash('sha256').update(script).digest('base64');
  const policy = `default-src 'none'; script-src 'sha256-${digest}'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'`;
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
${GENERATOR}
<meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${asText(title)}</title>
<style>${style}</style>
</head>
<body>
<noscript>This report draws itself: it needs JavaScript, and no network.</noscript>
`;
}

/** JSON that cannot end the element it stands in. */
const asData = (value: unknown): string => JSON.stringify(value).replaceAll('<', '\\u003c');

const asText = (text: string): string => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;');
