/**
 * What it costs to validate a spec with many arms, and to start:
 *
 *     npm run bench -- plan [ARMS]
 *
 * Ten ablations of the quickstart times seeds, through the built CLI, beside the quickstart alone and `exp --help`. Of
 * several runs the least counts: what else the machine does only adds to it.
 */
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { repoRoot } from '../../services/home.ts';
import { type Measured, measureCli } from '../../tests/measured-cli.ts';

const ROUNDS = 5;
const arms = Number(process.argv[2] ?? 1000);
const quickstart = join(repoRoot(), 'experiments/quickstart.yaml');
const folder = mkdtempSync(join(tmpdir(), 'exp-arms-'));
try {
  const spec = join(folder, 'spec.yaml');
  copyFileSync(quickstart, join(folder, 'quickstart.yaml'));
  writeFileSync(spec, withArms(arms));
  for (const [what, args] of [
    ['exp --help', ['--help']],
    ['exp validate quickstart', ['validate', quickstart]],
    [`exp validate, ${arms} arms`, ['validate', spec]],
  ] as const) {
    const runs: Measured[] = [];
    for (let round = 0; round < ROUNDS; round++) runs.push(await measureCli(args));
    const failed = runs.find(({ code }) => code !== 0);
    if (failed !== undefined) throw new Error(`${what} ended with ${failed.code}: ${failed.err}`);
    const least = (pick: (run: Measured) => number): number => Number(Math.min(...runs.map(pick)).toFixed(2));
    const row = {
      command: what,
      runs: ROUNDS,
      seconds: least(({ seconds }) => seconds),
      cpu_seconds: least(({ cpuSeconds }) => cpuSeconds),
      mebibytes: Math.round(least(({ mebibytes }) => mebibytes)),
    };
    console.log(JSON.stringify(row));
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}

function withArms(count: number): string {
  const ablations = Array.from({ length: 9 }, (_, index) => `  a${index}: { agent.max_turns: ${index + 2} }\n`);
  const seeds = Array.from({ length: count / 10 }, (_, index) => index);
  return `extends: [quickstart.yaml]\nname: many-arms\nablations:\n  control: {}\n${ablations.join('')}sweep: { matrix: { seed: [${seeds.join(', ')}] } }\n`;
}
