import { mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { FileDigests } from '../../plan/input-files.ts';
import { MAX_PROBLEMS, problemLine } from '../../plan/problem.ts';
import { BAD_INPUTS, makeSpec, PROBLEM_SPECS } from '../bad-inputs.ts';
import { temporaryFolder } from '../temporary-folder.ts';
import { found, planFile, planOptions } from './plan-fixture.ts';

const nothing = Object.keys(Object.prototype);

describe('bad specs are refused with a code and a place', () => {
  test.each(BAD_INPUTS.map((bad) => [bad.row, bad.input, bad] as const))('%s: %s', async (_row, _input, bad) => {
    const loaded = await planFile(makeSpec(bad, temporaryFolder('exp-bad-')));
    expect(found(loaded)).toEqual(bad.expected);
    expect(loaded.plan === null).toBe(bad.expected.length > 0);
    expect(loaded.problems.length).toBeLessThanOrEqual(MAX_PROBLEMS);
    for (const problem of loaded.problems) expect(problemLine(problem)).not.toContain('0123456789'); // the fixtures' secrets
  });

  test('B4, B5, B6: nothing reached the prototype of objects', () => {
    expect(({} as Record<string, unknown>)['x']).toBeUndefined();
    expect(Object.keys(Object.prototype)).toEqual(nothing);
  });

  test('every row is there, but for those of other surfaces', () => {
    const rows = new Set(BAD_INPUTS.map(({ row }) => row));
    const missing = Array.from({ length: 38 }, (_, index) => `B${index + 1}`).filter((row) => !rows.has(row));
    expect(missing).toEqual(['B30']); // an output that is there already: below, and of `exp plan -o`
  });

  test('every fixture of a row is in the table', () => {
    const kept = new Set(BAD_INPUTS.map(({ spec }) => `${String(spec)}.yaml`));
    const fixtures = readdirSync(PROBLEM_SPECS).filter((file) => /^b\d\d-/.test(file));
    expect(fixtures.filter((file) => !kept.has(file))).toEqual([]);
  });
});

describe('B15: what only looks strange is read', () => {
  test('a UTF-8 BOM is accepted', async () => {
    const folder = temporaryFolder('exp-bad-');
    const base = readFileSync(join(PROBLEM_SPECS, 'base.yaml'), 'utf8');
    writeFileSync(join(folder, 'spec.yaml'), `\ufeff${base}`);
    mkdirSync(join(folder, 'pages'));
    expect(found(await planFile(join(folder, 'spec.yaml')))).toEqual([]);
  });
});

describe('B29: links', () => {
  test('a linked file inside a folder of pages is not one of its pages', async () => {
    const folder = temporaryFolder('exp-bad-');
    const base = readFileSync(join(PROBLEM_SPECS, 'base.yaml'), 'utf8');
    writeFileSync(join(folder, 'spec.yaml'), base);
    mkdirSync(join(folder, 'pages'));
    symlinkSync('/etc/hostname', join(folder, 'pages', 'page.md'));
    const { unknown } = await planFile(join(folder, 'spec.yaml'));
    expect(unknown).toEqual([`corpus.sources.pages.path: nothing is at ${join(folder, 'pages')}`]);
  });

  test.each([
    ['a file', 'page.md', 'page.md'],
    ['a folder above it', 'pages', 'pages/page.md'],
  ])('%s swapped for a link after the path was checked is not read', async (_, swapped, path) => {
    const [folder, elsewhere] = [temporaryFolder('exp-bad-'), temporaryFolder('exp-bad-')];
    writeFileSync(join(elsewhere, 'page.md'), 'not for this spec');
    symlinkSync(swapped === 'pages' ? elsewhere : join(elsewhere, 'page.md'), join(folder, swapped));
    const digests = new FileDigests(temporaryFolder('exp-bad-'));
    expect(await digests.of(join(folder, path), folder)).toMatchObject({ status: 'outside' });
  });

  test('a link that stays inside is followed', async () => {
    const folder = temporaryFolder('exp-bad-');
    writeFileSync(join(folder, 'page.md'), 'text');
    symlinkSync('page.md', join(folder, 'link.md'));
    const digests = new FileDigests(temporaryFolder('exp-bad-'));
    const [file, link] = [
      await digests.of(join(folder, 'page.md'), folder),
      await digests.of(join(folder, 'link.md'), folder),
    ];
    expect(link).toEqual(file);
  });
});

describe('B31: what is below a data root and no data', () => {
  test.each([
    ['a device', '/dev/zero', '/dev', 'NOT_REGULAR 6:36'],
    ['a file that the system does not let us read', '/proc/self/mem', '/proc/self', 'FILE 6:36'],
  ])('%s', async (_, path, root, expected) => {
    const folder = temporaryFolder('exp-bad-');
    const base = readFileSync(join(PROBLEM_SPECS, 'base.yaml'), 'utf8');
    writeFileSync(join(folder, 'spec.yaml'), base.replace('path: pages', `path: ${path}`));
    const { profile } = planOptions();
    const loaded = await planFile(join(folder, 'spec.yaml'), { profile: { ...profile, data_roots: [root] } });
    expect(found(loaded)).toEqual([expected]);
  });
});
