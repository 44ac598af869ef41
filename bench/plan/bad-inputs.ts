/**
 * What each bad spec costs, through the built CLI: one process an input, one at a time.
 *
 *     node dist/bench/plan/bad-inputs.js [ROW …]
 *
 * Prints a line for each input: code expected and found, wall and CPU seconds, largest resident set; then the largest.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Table from 'cli-table3';
import { BAD_INPUTS, makeSpec } from '../../tests/bad-inputs.ts';
import { measureCli } from '../../tests/measured-cli.ts';

const asked = process.argv.slice(2);
const chosen = BAD_INPUTS.filter(({ row }) => asked.length === 0 || asked.includes(row));
const folder = mkdtempSync(join(tmpdir(), 'exp-bad-'));
const table = new Table({
  head: ['row', 'input', 'exit', 'code', 'as expected', 's', 'CPU s', 'MiB', 'bytes'],
  colAligns: ['left', 'left', 'right', 'left', 'left', 'right', 'right', 'right', 'right'],
  style: { head: [], border: [], compact: true },
});
const most = { seconds: 0, cpuSeconds: 0, mebibytes: 0, bytes: 0 };
let wrong = 0;
try {
  for (const bad of chosen) {
    const { code, err, seconds, cpuSeconds, mebibytes } = await measureCli([
      'validate',
      makeSpec(bad, mkdtempSync(join(folder, 'spec-'))),
    ]);
    const codes = [...err.matchAll(/:(\d+:\d+): ([A-Z_]+): /g)].map(([, place, name]) => `${name} ${place}`);
    const isRight = codes.join() === bad.expected.join() && code === (bad.expected.length > 0 ? 2 : 0);
    const bytes = Buffer.byteLength(err);
    if (!isRight) wrong++;
    for (const [name, value] of Object.entries({ seconds, cpuSeconds, mebibytes, bytes }))
      most[name as keyof typeof most] = Math.max(most[name as keyof typeof most], value);
    table.push([
      bad.row,
      bad.input,
      code,
      [...new Set(codes.map((one) => one.split(' ')[0]))].join(' ') || '–',
      isRight ? 'yes' : 'NO',
      seconds.toFixed(2),
      cpuSeconds.toFixed(2),
      mebibytes.toFixed(0),
      bytes,
    ]);
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
console.log(table.toString());
const { seconds, cpuSeconds, mebibytes, bytes } = most;
console.log(
  `${chosen.length} inputs, ${chosen.length - wrong} as expected; at most ${seconds.toFixed(2)} s, ${cpuSeconds.toFixed(2)} CPU s, ${mebibytes.toFixed(0)} MiB, ${bytes} bytes`,
);
process.exitCode = wrong === 0 ? 0 : 1;
