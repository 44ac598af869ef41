import { execFileSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { problemLine } from '../../plan/problem.ts';
import { folderWith, found, planFile, ROOT, recipe } from './plan-fixture.ts';

const SPECS = join(ROOT, 'tests/fixtures/specs/problems');

/** Spec → what is wrong with it, and where. */
const EXPECTED: Record<string, string[]> = {
  'b01-billion-laughs': ['YAML_ALIAS 4:10'],
  'b02-alias-of-itself': ['YAML_ALIAS 3:10'],
  'b03-duplicate-key': ['DUP_KEY 4:3'],
  'b04-proto': ['KEY_FORBIDDEN 3:3'],
  'b05-constructor': ['KEY_FORBIDDEN 3:3'],
  'b06-merge-key': ['KEY_FORBIDDEN 3:19', 'KEY_FORBIDDEN 5:5'],
  'b07-js-tag': ['TAG 2:14'],
  'b08-python-tag': ['TAG 3:8'],
  'b12-only-comments': ['EMPTY 1:1'],
  'b13-two-documents': ['MULTI_DOC 2:1'],
  'b14-tab-indent': ['SYNTAX 3:1'],
  'b15-lone-surrogate': ['CONTROL_CHAR 2:14'],
  'b16-bidi-override': ['CONTROL_CHAR 2:7'],
  'b17-integer-too-large': ['INT_RANGE 2:7'],
  'b18-infinity': ['NUMBER 3:39'],
  'b18-minus-zero': ['NUMBER 3:39'],
  'b18-nan': ['NUMBER 3:39'],
  'b18-overflow': ['NUMBER 3:39'],
  'b19-octal': ['NUMBER_FORM 2:7'],
  'b20-number-as-text': ['TYPE 3:39'],
  'b21-fraction': ['RANGE 3:31'],
  'b21-huge': ['RANGE 3:31'],
  'b21-negative': ['RANGE 3:31'],
  'b21-zero': ['RANGE 3:31'],
  'b22-yes-for-boolean': ['TYPE 3:41'],
  'b23-misspelt-field': ['UNKNOWN_FIELD 5:7'],
  'b24-cycle': ['CYCLE 3:17'],
  'b24-extends-itself': ['CYCLE 1:11'],
  'b24-like-cycle': ['CYCLE 4:14'],
  'b25-missing-after': ['REF 3:26'],
  'b25-missing-split': ['REF 3:30'],
  'b25-missing-stage': ['REF 3:19'],
  'b25-missing-tool': ['REF 2:18'],
  'b25-missing-variable': ['REF 4:37'],
  'b27-device-name': ['NAME 3:3'],
  'b27-long-name': ['NAME 2:7'],
  'b27-name-with-dots': ['NAME 2:7'],
  'b27-upper-case-stage': ['NAME 3:3'],
  'b28-absolute-path': ['PATH_OUTSIDE 4:20'],
  'b28-backslash': ['PATH_OUTSIDE 4:20'],
  'b28-escaped-dots': ['PATH_OUTSIDE 4:20'],
  'b28-extends-above': ['PATH_OUTSIDE 1:11'],
  'b28-file-url': ['PATH_OUTSIDE 4:20'],
  'b28-path-above': ['PATH_OUTSIDE 4:20'],
  'b32-env-in-text': ['SECRET_FIELD 2:14'],
  'b32-secret-in-path': ['SECRET_FIELD 4:20'],
  'b33-secret-field': ['SECRET_LITERAL 2:1'],
  'b33-secret-literal': ['SECRET_LITERAL 2:44'],
  'b34-templates-are-text': [],
  'b36-prompt-without-slot': ['TEMPLATE 2:28', 'TEMPLATE 2:28'],
  'b37-credentials': ['URL 2:49'],
  'b37-javascript': ['URL 2:49'],
  'b37-metadata-address': ['URL 2:49'],
  'b38-newline-in-model': ['ARG 2:17'],
  'b38-option-as-model': ['ARG 2:17'],
  'b38-shell-as-model': ['ARG 2:17'],
  'bands-fall': ['RANGE 3:81'],
  base: [],
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
  'judge-is-missing': ['REF 2:20'],
  'keeps-nothing': ['RANGE 3:47'],
  'list-for-map': ['TYPE 2:13'],
  'minibatch-does-not-divide': ['RANGE 3:37'],
  'missing-field': ['REQUIRED 1:1', 'REQUIRED 1:1', 'REQUIRED 1:1', 'REQUIRED 1:1'],
  'mix-does-not-sum': ['RANGE 3:8'],
  'name-of-two': ['NAME 3:9'],
  'overlap-too-large': ['RANGE 2:40'],
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
      .filter((file) => file.endsWith('.yaml'))
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

/** Inputs that are better made than kept: bytes, sizes, things that are not files. */
describe('what cannot be kept as a fixture', () => {
  const spec = async (content: string | Uint8Array) =>
    planFile(join(folderWith({ 'spec.yaml': content }), 'spec.yaml'));
  const bytes = (...values: number[]): Uint8Array => Uint8Array.from(values);

  test.each([
    ['B9: 20,000 open brackets', '['.repeat(20_000), 'DEPTH 1:65'],
    ['B9: 20,000 dashes', '- '.repeat(19_000), 'DEPTH 1:129'],
    ['B10: 60,000 keys on one line', 'a: '.repeat(60_000), 'SYNTAX 1:5'],
    ['B11: a key of 2 MB', `${'k'.repeat(2_000_000)}: 1`, 'SIZE 1:1'],
    ['more than 20,000 values', `vars: [${'1,'.repeat(20_001)}]`, 'SIZE 1:40004'],
    ['B12: an empty file', '', 'EMPTY 1:1'],
    [
      'B15: invalid UTF-8 in line 2',
      Buffer.concat([Buffer.from('a: 1\nb: '), bytes(0xff, 0xfe, 0x41)]),
      'ENCODING 2:4',
    ],
    ['B15: UTF-16', Buffer.from('\ufeffname: x', 'utf16le'), 'ENCODING 1:1'],
    ['B15: NUL', 'name: a\0b', 'CONTROL_CHAR 1:8'],
    ['a direction override in a comment', '# \u202e\nname: x', 'CONTROL_CHAR 1:3'],
    ['a YAML 1.1 directive', '%YAML 1.1\n---\nname: x', 'SYNTAX 1:1'],
    ['a second document after an end mark', 'name: x\n...\nname: y', 'MULTI_DOC 3:1'],
    ['a list at the root', '- name', 'TYPE 1:1'],
    ['a key that is a map', '{ { a: 1 }: 2 }', 'SYNTAX 1:3'],
  ])('%s', async (_, content, expected) => {
    expect(found(await spec(content))).toEqual([expected]);
  });

  test('a UTF-8 BOM is accepted', async () => {
    const text = readFileSync(join(SPECS, 'base.yaml'), 'utf8');
    const folder = folderWith({ 'spec.yaml': `\ufeff${text}` });
    mkdirSync(join(folder, 'pages'));
    expect(found(await planFile(join(folder, 'spec.yaml')))).toEqual([]);
  });

  test('B5: nothing reaches the prototype of objects', async () => {
    await planFile(join(SPECS, 'b04-proto.yaml'));
    await planFile(join(SPECS, 'b05-constructor.yaml'));
    expect(({} as Record<string, unknown>)['x']).toBeUndefined();
  });

  test('B29: a link out of the folder', async () => {
    const folder = folderWith({ 'spec.yaml': specWithPages('out/x.md') });
    symlinkSync('/etc', join(folder, 'out'));
    writeFileSync(join(folder, 'x.md'), '');
    expect(found(await planFile(join(folder, 'spec.yaml')))).toEqual(['PATH_OUTSIDE 5:36']);
  });

  test('B29: a linked file inside a folder of pages is not one of its pages', async () => {
    const folder = folderWith({ 'spec.yaml': specWithPages('pages') });
    mkdirSync(join(folder, 'pages'));
    symlinkSync('/etc/hostname', join(folder, 'pages', 'page.md'));
    const { unknown } = await planFile(join(folder, 'spec.yaml'));
    expect(unknown).toEqual([`corpus.sources.pages.path: nothing is at ${join(folder, 'pages')}`]);
  });

  test('B31: a pipe as a data set, and as a spec', async () => {
    const folder = folderWith({ 'spec.yaml': specWithPages('pipe') });
    execFileSync('mkfifo', [join(folder, 'pipe')]);
    expect(found(await planFile(join(folder, 'spec.yaml')))).toEqual(['NOT_REGULAR 5:36']);
    expect(found(await planFile(join(folder, 'pipe')))).toEqual(['NOT_REGULAR 1:1']);
  });

  test('B53: a spec that is not there, and one that is a folder', async () => {
    expect(found(await planFile('/nowhere/spec.yaml'))).toEqual(['FILE 1:1']);
    expect(found(await planFile(ROOT))).toEqual(['NOT_REGULAR 1:1']);
  });
});

describe('no spec is slow', () => {
  const flat = Array.from({ length: 9_900 }, (_, index) => `  k${index}: ${index}`).join('\n');
  test.each([
    ['19,800 values in a flat map', `vars:\n${flat}\n`],
    ['256 KiB of text', `description: "${'x'.repeat(256 * 1024 - 20)}"\n`],
    ['B1: billion laughs', readFileSync(join(SPECS, 'b01-billion-laughs.yaml'), 'utf8')],
    ['B10: a map in a map in a map', 'a: '.repeat(60_000)],
    ['9,000 unknown fields', flat.replaceAll('  k', 'k')],
  ])('%s: under a second of computing', async (_, text) => {
    await planFile(join(SPECS, 'base.yaml')); // the validator is compiled once
    const path = join(folderWith({ 'spec.yaml': text }), 'spec.yaml');
    const before = process.cpuUsage();
    const { problems } = await planFile(path);
    const { user, system } = process.cpuUsage(before);
    expect(problems.length).toBeGreaterThan(0);
    expect(problems.length).toBeLessThanOrEqual(100);
    expect((user + system) / 1e6).toBeLessThan(1);
  });
});

test('no damage to a spec is a crash: every one is a plan, or problems with places', async () => {
  const text = readFileSync(recipe, 'utf8');
  const scraps = [
    '{',
    '}',
    '[',
    ']',
    ': ',
    '- ',
    '\n',
    '"',
    '&a ',
    '*a',
    '!unset',
    '!x ',
    'null',
    '-0',
    '${vars.x}',
    '|',
    '? ',
    '\t',
    '---\n',
    ',',
  ];
  let state = 20261121;
  const random = (below: number): number => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    return (state >>> 8) % below;
  };
  for (let round = 0; round < 80; round++) {
    const [at, until] = [random(text.length), random(12)];
    const damaged = text.slice(0, at) + scraps[random(scraps.length)] + text.slice(at + until);
    const { plan, problems } = await planFile(join(folderWith({ 'spec.yaml': damaged }), 'spec.yaml'));
    expect(plan === null, damaged).toBe(problems.length > 0);
    expect(problems.every(({ line, column }) => line >= 1 && column >= 1)).toBe(true);
  }
});

/** The small spec of the fixtures, with its pages elsewhere. */
function specWithPages(path: string): string {
  const base = readFileSync(join(SPECS, 'base.yaml'), 'utf8').split('\n').slice(1).join('\n');
  return base.replace('path: pages', `path: ${path}`);
}
