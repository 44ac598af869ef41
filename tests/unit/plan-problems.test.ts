import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { problemLine } from '../../plan/problem.ts';
import { folderWith, found, planFile, ROOT } from './plan-fixture.ts';

const SPECS = join(ROOT, 'tests/fixtures/specs/problems');

/** Spec → what is wrong with it, and where. The rows B1 to B38 stand in bad-inputs.test.ts. */
const EXPECTED: Record<string, string[]> = {
  'bands-fall': ['RANGE 3:81'],
  base: [],
  'best-of-nothing': ['REQUIRED 4:67'],
  'capability-by-nobody': ['REF 4:67'],
  'capability-found-twice': ['VALUE 4:58'],
  'context-beyond-model': ['CONTEXT 4:21'],
  'context-too-small': ['CONTEXT 4:21'],
  'demonstrations-of-nothing': ['REF 18:29'], // in base.yaml, which it extends
  'empty-section': ['EMPTY 2:7'],
  'from-a-profile': ['REF 4:19'],
  'gate-on-a-profile': ['REF 7:11'],
  'gate-on-unknown-benchmark': ['REF 3:29'],
  'gate-on-unknown-metric': ['REF 5:15'],
  'gate-on-what-is-not-measured': ['REF 3:27'],
  'gate-that-nothing-passes': ['RANGE 3:64'],
  'gate-without-bound': ['REQUIRED 3:17', 'REQUIRED 4:19'],
  'gpus-do-not-divide': ['RANGE 4:39', 'RANGE 5:41', 'RANGE 12:44'],
  'judge-is-missing': ['REF 2:20'],
  'keeps-nothing': ['RANGE 3:47'],
  'limit-on-unknown-metric': ['REF 5:17'],
  'limits-that-nothing-meets': ['RANGE 5:39', 'REF 5:52', 'REF 5:88'],
  'list-for-map': ['TYPE 2:13'],
  'minibatch-does-not-divide': ['RANGE 3:37'],
  'missing-field': ['REQUIRED 1:1', 'REQUIRED 1:1', 'REQUIRED 1:1', 'REQUIRED 1:1'],
  'mix-does-not-sum': ['RANGE 3:8'],
  'name-of-two': ['NAME 3:9'],
  'overlap-too-large': ['RANGE 2:40'],
  'plateau-of-another-benchmark': ['REF 5:33'],
  'published-beyond-bounds': ['RANGE 2:31'],
  'schedule-without-end': ['REQUIRED 6:12'],
  several: ['TYPE 2:7', 'UNKNOWN_FIELD 3:10', 'REF 5:19', 'RANGE 5:64'],
  'unknown-capability': ['UNKNOWN_FIELD 3:10'],
  'unknown-kind': ['VALUE 3:17'],
  'unknown-word': ['VALUE 2:18'],
  'unquoted-reference': ['SYNTAX 4:21'],
};

describe('every problem is found at its place', () => {
  test.each(Object.keys(EXPECTED))('%s', async (name) => {
    expect(found(await planFile(join(SPECS, `${name}.yaml`)))).toEqual(EXPECTED[name]);
  });

  test('no fixture is left out', () => {
    const names = readdirSync(SPECS)
      .filter((file) => file.endsWith('.yaml') && !/^b\d\d-/.test(file))
      .map((file) => file.replace('.yaml', ''));
    expect(names.sort()).toEqual(Object.keys(EXPECTED).sort());
  });
});

const problemOf = async (name: string) =>
  (await planFile(join(SPECS, `${name}.yaml`))).problems[0] ?? { hint: undefined, message: '', file: '' };

describe('a problem teaches', () => {
  test.each([
    ['b23-misspelt-field', 'did you mean `learning_rate`?'],
    ['b25-missing-stage', 'did you mean `warm`?'],
    ['b20-number-as-text', 'write 1e-6 without quotes or separators'],
    ['b22-yes-for-boolean', 'write true'],
    ['gate-on-unknown-benchmark', 'did you mean `check`?'],
    ['gate-on-unknown-metric', 'did you mean `eval/check/avg_at_1`?'],
    ['gate-on-what-is-not-measured', 'add it to benchmarks.check.after'],
    ['unquoted-reference', 'inside { } and [ ] a reference is quoted: "${…}"'],
  ])('%s: %s', async (name, hint) => {
    expect((await problemOf(name)).hint).toBe(hint);
  });

  test('a duplicate key names both places', async () => {
    expect((await problemOf('b03-duplicate-key')).message).toMatch(/b03-duplicate-key\.yaml:3:3$/);
  });

  test('a cycle of stages lists its way', async () => {
    expect((await problemOf('b24-cycle')).message).toContain('warm → stage1 → warm');
  });

  test('a problem of an extended file names that file', async () => {
    expect((await problemOf('demonstrations-of-nothing')).file).toMatch(/base\.yaml$/);
  });

  test('a secret is never repeated', async () => {
    const { problems } = await planFile(join(SPECS, 'b33-secret-literal.yaml'));
    expect(problems.map(problemLine).join('\n')).not.toContain('0123456789');
  });
});

/** Inputs that are better made than kept. */
describe('what cannot be kept as a fixture', () => {
  const spec = async (content: string) => planFile(join(folderWith({ 'spec.yaml': content }), 'spec.yaml'));

  test.each([
    ['a YAML 1.1 directive', '%YAML 1.1\n---\nname: x', 'SYNTAX 1:1'],
    ['a list at the root', '- name', 'TYPE 1:1'],
    ['a key that is a map', '{ { a: 1 }: 2 }', 'SYNTAX 1:3'],
  ])('%s', async (_, content, expected) => {
    expect(found(await spec(content))).toEqual([expected]);
  });

  test('B53: a spec that is not there, and one that is a folder', async () => {
    expect(found(await planFile('/nowhere/spec.yaml'))).toEqual(['FILE 1:1']);
    expect(found(await planFile(ROOT))).toEqual(['NOT_REGULAR 1:1']);
  });
});
