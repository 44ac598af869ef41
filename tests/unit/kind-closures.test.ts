import { appendFileSync, cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, expect, test, vi } from 'vitest';
import { KIND_VERSIONS } from '../../plan/kind-versions.ts';
import { recordKinds, staleKinds } from '../kind-closures.ts';
import { temporaryFolder } from '../temporary-folder.ts';
import { ROOT } from './plan-fixture.ts';

/** What kinds execute, in a checkout that may be changed. */
const COPIED = ['activities', 'environments', 'schemas', 'workflows', 'trainer/exp_trainer', 'plan/kind-versions.ts'];
let root: string;

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 }); // the first test transpiles them all

beforeEach(() => {
  root = temporaryFolder('exp-kinds-');
  for (const path of [...COPIED, 'package-lock.json', 'requirements.txt'])
    cpSync(join(ROOT, path), join(root, path), {
      recursive: true,
      filter: (source) => !source.endsWith('__pycache__'),
    });
  recordKinds(root, undefined);
});

const kindsOf = (lines: readonly string[]): string[] => lines.map((line) => line.split(':')[0] as string);

function edit(file: string, change: (text: string) => string): void {
  const before = readFileSync(join(root, file), 'utf8');
  const after = change(before);
  expect(after).not.toBe(before);
  writeFileSync(join(root, file), after);
}

test('what was recorded is current, and comments, types and layout change nothing', () => {
  expect(staleKinds(root)).toEqual([]);
  appendFileSync(
    join(root, 'environments/deep-research/reward.ts'),
    '\n\n// A remark.\nexport type Remark   = string;\n',
  );
  expect(staleKinds(root)).toEqual([]);
});

test('a change of what is executed names every kind that executes it, the file, and what to do', () => {
  appendFileSync(join(root, 'environments/deep-research/prompt.ts'), '\nexport const planted = 1;\n');
  const stale = staleKinds(root);
  expect(kindsOf(stale)).toEqual(['trajectories', 'profile', 'sft', 'rl', 'benchmark']);
  expect(stale[0]).toContain('environments/deep-research/prompt.ts');
  expect(stale[0]).toContain('raise trajectories in plan/kind-versions.ts');
  expect(stale[0]).toContain('--record "why it has no effect"');
});

test('the trainer belongs to the kinds that train, and a locked package to those that import it', () => {
  appendFileSync(join(root, 'trainer/exp_trainer/loss.py'), '\nPLANTED = 1\n');
  expect(kindsOf(staleKinds(root))).toEqual(['sft', 'rl']);
  recordKinds(root, 'a constant that nobody reads');
  edit('package-lock.json', (text) => {
    const lock = JSON.parse(text) as { packages: Record<string, { version: string }> };
    (lock.packages['node_modules/turndown'] as { version: string }).version = '0.0.1';
    return JSON.stringify(lock);
  });
  const stale = staleKinds(root);
  expect(kindsOf(stale)).toEqual(['corpus']);
  expect(stale[0]).toContain('npm turndown');
  edit('requirements.txt', (text) => text.replace(/^torch==\S+/m, 'torch==0.0.1'));
  expect(kindsOf(staleKinds(root))).toEqual(['corpus', 'sft', 'rl']);
});

test('without a raised version a reason is asked for, and kept', () => {
  appendFileSync(join(root, 'activities/make-tasks.ts'), '\nexport const planted = 1;\n');
  expect(() => recordKinds(root, undefined)).toThrow(/tasks: .*make-tasks\.ts.* say why/);
  recordKinds(root, 'a constant that nobody reads');
  expect(staleKinds(root)).toEqual([]);
  const { kinds } = JSON.parse(readFileSync(join(root, 'plan/kind-closures.json'), 'utf8'));
  expect(kinds.tasks.no_effect).toEqual([
    { why: 'a constant that nobody reads', changed: ['activities/make-tasks.ts'] },
  ]);
});

test('a raised version is recorded without a reason, and versions only rise', () => {
  appendFileSync(join(root, 'activities/make-tasks.ts'), '\nexport const planted = 1;\n');
  const raised = { ...KIND_VERSIONS, tasks: KIND_VERSIONS.tasks + 1 };
  expect(kindsOf(staleKinds(root, raised))).toEqual(['tasks']);
  recordKinds(root, undefined, raised);
  expect(staleKinds(root, raised)).toEqual([]);
  expect(() => recordKinds(root, undefined)).toThrow(/versions only rise/);
});
