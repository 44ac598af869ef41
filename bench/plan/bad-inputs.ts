/**
 * What each bad spec costs, through the built CLI: one process an input, one at a time.
 *
 *     npm run bench -- bad_inputs [ROW …]
 *
 * Says of each input the codes that were found and whether these were expected, wall and CPU seconds, and the largest
 * resident set; then the largest of all.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { BAD_INPUTS, makeSpec } from '../../tests/bad-inputs.ts';
import { measureCli } from '../../tests/measured-cli.ts';

const asked = process.argv.slice(2);
const chosen = BAD_INPUTS.filter(({ row }) => asked.length === 0 || asked.includes(row));
const folder = mkdtempSync(join(tmpdir(), 'exp-bad-'));
const say = (row: object): void => console.log(JSON.stringify(row));
const rounded = (value: number): number => Number(value.toFixed(2));
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
    say({
      row: bad.row,
      input: bad.input,
      exit: code,
      codes: [...new Set(codes.map((one) => one.split(' ')[0]))].join(' ') || '–',
      as_expected: isRight ? 'yes' : 'NO',
      seconds: rounded(seconds),
      cpu_seconds: rounded(cpuSeconds),
      mebibytes: Math.round(mebibytes),
      bytes,
    });
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
say({
  inputs: chosen.length,
  as_expected: chosen.length - wrong,
  most_seconds: rounded(most.seconds),
  most_cpu_seconds: rounded(most.cpuSeconds),
  most_mebibytes: Math.round(most.mebibytes),
  most_bytes: most.bytes,
});
process.exitCode = wrong === 0 ? 0 : 1;
