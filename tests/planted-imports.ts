/** For every rule of .dependency-cruiser.cjs a file that breaks it, laid out in a scratch checkout. */
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { runCommand } from './subprocess.ts';

/** Rule → the file that breaks it and what it imports. */
const PLANTED: Record<string, { file: string; imports: string }> = {
  'schemas-imports': { file: 'schemas/planted.ts', imports: "export { value } from '../plan/target.ts';" },
  'plan-imports': { file: 'plan/planted.ts', imports: "export { value } from '../activities/target.ts';" },
  'workflows-imports': {
    file: 'workflows/planted-plan.ts',
    imports: "import type { Value } from '../plan/target.ts';\nexport type V = Value;",
  },
  'activities-imports': { file: 'activities/planted.ts', imports: "export { value } from '../plan/target.ts';" },
  'environments-imports': {
    file: 'environments/planted.ts',
    imports: "import type { Value } from '../activities/target.ts';\nexport type V = Value;",
  },
  'services-imports': { file: 'services/planted.ts', imports: "export { value } from '../cli/target.ts';" },
  'workflows-see-types-only': {
    file: 'workflows/planted-value.ts',
    imports: "export { value } from '../activities/index.ts';",
  },
  'workflows-see-interfaces-only': {
    file: 'workflows/planted-adapter.ts',
    imports: "import type { Value } from '../activities/target.ts';\nexport type V = Value;",
  },
  'workflows-stay-pure': { file: 'workflows/planted-node.ts', imports: "export { createHash } from 'node:crypto';" },
  'workflows-packages': { file: 'workflows/planted-package.ts', imports: "export { Pool } from 'pg';" },
  'schemas-packages': { file: 'schemas/planted-package.ts', imports: "export { parse } from 'yaml';" },
  'report-page-stays-in-the-browser': {
    file: 'cli/report/page/planted.ts',
    imports: "export { value } from '../../target.ts';",
  },
  'environments-know-no-temporal': {
    file: 'environments/planted-temporal.ts',
    imports: "export { Context } from '@temporalio/activity';",
  },
  'nothing-of-ours-imports-tests': { file: 'cli/planted.ts', imports: "export { value } from '../tests/target.ts';" },
  // A cycle is reported once, from the file that sorts first.
  'no-cycles': {
    file: 'plan/planted-cycle-a.ts',
    imports: "export { back } from './planted-cycle-b.ts';\nexport const there = 1;",
  },
  resolvable: { file: 'plan/planted-missing.ts', imports: "export { gone } from './is-not-there.ts';" },
};
const TARGETS = ['plan/target.ts', 'activities/target.ts', 'activities/index.ts', 'cli/target.ts', 'tests/target.ts'];

interface CruiseJson {
  summary: { violations: { from: string; rule: { name: string } }[] };
}

/** What went unnoticed: one line for each planted import that its rule did not report, or rule without a plant. */
export async function unnoticedImports(root: string): Promise<string[]> {
  const config = join(root, '.dependency-cruiser.cjs');
  const rules = (createRequire(import.meta.url)(config) as { forbidden: { name: string }[] }).forbidden.map(
    ({ name }) => name,
  );
  const scratch = mkdtempSync(join(tmpdir(), 'exp-planted-'));
  try {
    for (const target of TARGETS) write(scratch, target, 'export const value = 1;\nexport type Value = number;\n');
    for (const { file, imports } of Object.values(PLANTED)) write(scratch, file, `${imports}\n`);
    write(scratch, 'plan/planted-cycle-b.ts', "export { there as back } from './planted-cycle-a.ts';\n");
    write(
      scratch,
      'tsconfig.json',
      '{ "compilerOptions": { "module": "nodenext", "allowImportingTsExtensions": true, "noEmit": true } }',
    );
    write(scratch, 'package.json', '{ "type": "module" }');
    symlinkSync(join(root, 'node_modules'), join(scratch, 'node_modules'));
    const cruise = await runCommand(
      process.execPath,
      [
        join(root, 'node_modules/dependency-cruiser/bin/dependency-cruise.mjs'),
        '--config',
        config,
        '-T',
        'json',
        ...FOLDERS,
      ],
      { cwd: scratch, timeoutMs: 60_000, output: 'capture' },
    );
    const { violations } = (JSON.parse(cruise.output) as CruiseJson).summary;
    const caught = new Set(violations.map(({ from, rule }) => `${rule.name} ${from}`));
    return rules.flatMap((rule) => {
      const plant = PLANTED[rule];
      if (!plant) return [`${rule}: no import is planted against this rule`];
      return caught.has(`${rule} ${plant.file}`) ? [] : [`${rule}: ${plant.file} was not reported`];
    });
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

const FOLDERS = ['schemas', 'plan', 'workflows', 'activities', 'environments', 'services', 'cli', 'tests'];

function write(folder: string, name: string, text: string): void {
  mkdirSync(dirname(join(folder, name)), { recursive: true });
  writeFileSync(join(folder, name), text);
}
