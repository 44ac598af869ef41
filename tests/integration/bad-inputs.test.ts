import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pLimit from 'p-limit';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { BAD_INPUTS, type BadInput, makeSpec, PROBLEM_SPECS } from '../bad-inputs.ts';
import { type Measured, measureCli } from '../measured-cli.ts';

/** The contract is 1 s on a quiet machine; here two processes share two busy cores. `bench/plan` has the figures. */
const MAX_CPU_SECONDS = 3;
const MAX_MEBIBYTES = 250;
const MAX_BYTES = 4096;

/** A module that makes the import of TypeBox fail. */
const REFUSE_TYPEBOX = asModule(
  `import { register } from 'node:module'; register(${JSON.stringify(
    asModule(
      "export function load(url, context, next) { if (url.includes('/typebox/')) throw new Error(url); return next(url, context); }",
    ),
  )});`,
);
function asModule(code: string): string {
  return `data:text/javascript,${encodeURIComponent(code)}`;
}

let folder: string;
const newFolder = (): string => mkdtempSync(join(folder, 'spec-'));
/** The first input of each row, through a process. */
const firsts = BAD_INPUTS.filter(({ row }, at) => BAD_INPUTS.findIndex((other) => other.row === row) === at);
const ended = new Map<BadInput, { spec: string; run: Measured }>();

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'exp-bad-'));
  const two = pLimit(2);
  await Promise.all(
    firsts.map((bad) =>
      two(async () => {
        const spec = makeSpec(bad, newFolder());
        ended.set(bad, { spec, run: await measureCli(['validate', spec]) });
      }),
    ),
  );
});

afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe('exp validate of a bad spec says what is wrong, cheaply, and ends with 2', () => {
  test.each(firsts.map((bad) => [bad.row, bad.input, bad] as const))('%s: %s', (_row, _input, bad) => {
    const { spec, run } = ended.get(bad) as { spec: string; run: Measured };
    const lines = run.err.trimEnd().split('\n');
    if (bad.expected.length === 0)
      expect({ code: run.code, out: run.out }).toEqual({ code: 0, out: `${spec}: valid\n` });
    else {
      expect(run.code).toBe(2);
      expect(run.out).toBe('');
      for (const [index, expected] of bad.expected.entries()) {
        const [code, place] = expected.split(' ');
        expect(lines[index]).toMatch(new RegExp(`^\\S+\\.yaml:${place}: ${code}: \\S|^${spec}:${place}: ${code}: \\S`));
      }
    }
    expect(run.err).not.toMatch(/^\s+at /m);
    expect(Buffer.byteLength(run.err)).toBeLessThan(MAX_BYTES);
    expect(run.cpuSeconds).toBeLessThan(MAX_CPU_SECONDS);
    expect(run.mebibytes).toBeLessThan(MAX_MEBIBYTES);
  });

  test('with --json it says data and nothing else, and no secret', async () => {
    const run = await measureCli(['validate', join(PROBLEM_SPECS, 'b33-secret-literal.yaml'), '--json']);
    expect(run.code).toBe(2);
    expect(run.err).toBe('');
    const { problems } = JSON.parse(run.out) as { problems: { code: string; line: number; column: number }[] };
    expect(problems).toMatchObject([{ code: 'SECRET_LITERAL', line: 2, column: 44 }]);
    expect(run.out).not.toContain('0123456789');
  });

  test('a hundred problems fit on a screen, and it says how many more there are', async () => {
    const path = join(newFolder(), 'spec.yaml');
    writeFileSync(path, Array.from({ length: 500 }, (_, index) => `field_${index}: 1\n`).join(''));
    const { code, err } = await measureCli(['validate', path]);
    expect(code).toBe(2);
    expect(Buffer.byteLength(err)).toBeLessThan(MAX_BYTES);
    expect(err).toMatch(/and \d+ more; --json has all\n$/);
  });
});

test('B30: exp plan -o overwrites nothing but the very same plan', async () => {
  const out = join(newFolder(), 'plan.json');
  const plan = (...overrides: string[]) =>
    measureCli(['plan', join(PROBLEM_SPECS, 'base.yaml'), ...overrides, '-o', out, '--resolved']);
  expect((await plan()).code).toBe(0);
  expect((await plan()).code).toBe(0);
  const other = await plan('+seed=3');
  expect(other.code).toBe(2);
  expect(other.err).toMatch(new RegExp(`^${out}: EXISTS: `));
});

test('validating loads no TypeBox, which takes longer than all the rest', async () => {
  const { code, err } = await measureCli(['validate', join(PROBLEM_SPECS, 'base.yaml')], {
    NODE_OPTIONS: `--import=${REFUSE_TYPEBOX}`,
  });
  expect({ code, err }).toEqual({ code: 0, err: '' });
});
