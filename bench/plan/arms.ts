/**
 * What it costs to validate a spec with many arms, and to start:
 *
 *     node dist/bench/plan/arms.js [ARMS]
 *
 * Ten ablations of the quickstart times seeds, through the built CLI, beside the quickstart alone and `exp --help`.
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
    const least = (pick: (run: Measured) => number): string => Math.min(...runs.map(pick)).toFixed(2);
    const failed = runs.filter(({ code }) => code !== 0).length;
    console.log(
      `${what}: at least ${least(({ seconds }) => seconds)} s, ${least(({ cpuSeconds }) => cpuSeconds)} CPU s, ${least(({ mebibytes }) => mebibytes)} MiB over ${ROUNDS} runs${failed > 0 ? `, ${failed} FAILED` : ''}`,
    );
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}

function withArms(count: number): string {
  const ablations = Array.from({ length: 9 }, (_, index) => `  a${index}: { agent.max_turns: ${index + 2} }\n`);
  const seeds = Array.from({ length: count / 10 }, (_, index) => index);
  return `extends: [quickstart.yaml]\nname: many-arms\nablations:\n  control: {}\n${ablations.join('')}sweep: { matrix: { seed: [${seeds.join(', ')}] } }\n`;
}
