import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { Problem } from '../../plan/problem.ts';
import { LARGEST_INPUTS, makeLargest } from '../largest-inputs.ts';
import { temporaryFolder } from '../temporary-folder.ts';
import { YAML_SHAPES } from '../yaml-shapes.ts';
import { multihop, planFile, quickstart, ROOT } from './plan-fixture.ts';

/** Seconds of computing that the contract allows a spec; doubled, since two cores are shared with other tests. */
const MAX_CPU_SECONDS = 2;
const folder = temporaryFolder('exp-hostile-');

/** Plans a text, however broken, and checks what holds of every text. */
async function read(text: string | Buffer, file = join(folder, 'spec.yaml')): Promise<Problem[]> {
  writeFileSync(file, text);
  const { plan, problems, texts } = await planFile(file);
  const written = Buffer.from(text).toString('latin1'); // a file that is not UTF-8 has no text
  expect(plan === null).toBe(problems.length > 0);
  for (const { file: named, line, column, code, message } of problems) {
    expect(code).toMatch(/^[A-Z_]+$/);
    expect(message).not.toBe('');
    const lines = (named === file ? written : (texts.get(named) ?? '')).split('\n');
    expect(texts.has(named)).toBe(true);
    expect(line).toBeGreaterThanOrEqual(1);
    expect(line).toBeLessThanOrEqual(Math.max(1, lines.length));
    expect(column).toBeGreaterThanOrEqual(1);
    expect(column).toBeLessThanOrEqual((lines[line - 1] ?? '').length + 1);
  }
  return problems;
}

describe('input of the shape of the YAML test suite is refused with places, never with a crash', () => {
  test.each(YAML_SHAPES.map((text) => [JSON.stringify(text.slice(0, 60)), text] as const))('%s', async (_, text) => {
    expect(await read(text)).not.toEqual([]); // none of them is a whole spec
    await read(`${readFileSync(quickstart, 'utf8')}\n${text}`);
  });
});

/** Linear congruential: the same damage for the same seed, on every machine. */
class Random {
  #state: number;
  constructor(seed: number) {
    this.#state = seed & 0x7fffffff;
  }
  below(bound: number): number {
    this.#state = (Math.imul(this.#state, 1103515245) + 12345) & 0x7fffffff;
    return (this.#state >>> 8) % bound;
  }
  of<T>(list: readonly T[]): T {
    return list[this.below(list.length)] as T;
  }
}

const SCRAPS =
  '{ } [ ] : - ? , # & * ! | > @ % ` " \' \n \t \r {} [] --- ... : -  &a *a !unset !!str null ~ -0 0755 .inf 1e999 ${vars.x} ${env:HOME} ${stages.x.checkpoint} <<: __proto__: like: extends: sweep: \u0000 \u202e \ud83d é 😀'.split(
    ' ',
  );

/** Damages done to a text, a few at a time. */
const DAMAGES: ((text: string, random: Random) => string)[] = [
  (text, random) => splice(text, random.below(text.length), 0, random.of(SCRAPS)),
  (text, random) => splice(text, random.below(text.length), random.below(40), ''),
  (text, random) => splice(text, random.below(text.length), random.below(12), random.of(SCRAPS)),
  (text, random) => {
    const [from, length] = [random.below(text.length), random.below(200)];
    return splice(text, random.below(text.length), 0, text.slice(from, from + length));
  },
  (text, random) => {
    const at = random.below(text.length);
    return splice(text, at, 1, String.fromCharCode(text.charCodeAt(at) ^ (1 << random.below(7))));
  },
  (text, random) =>
    splice(
      text,
      random.below(text.length),
      0,
      random.of(['[', '{', '- ', 'a: ', '? ', '"', '  ']).repeat(random.below(90)),
    ),
  (text, random) => {
    const lines = text.split('\n');
    lines.splice(random.below(lines.length), 0, lines.splice(random.below(lines.length), 1)[0] ?? '');
    return lines.join('\n');
  },
  (text, random) => text.replace(/^ */gm, (indent) => (random.below(9) === 0 ? ' '.repeat(random.below(7)) : indent)),
  (text, random) => text.slice(0, random.below(text.length)),
];

const splice = (text: string, at: number, length: number, instead: string): string =>
  text.slice(0, at) + instead + text.slice(at + length);

const SEEDS = Number(process.env['EXP_FUZZ_CASES'] ?? 2_000);
const FIRST_SEED = Number(process.env['EXP_FUZZ_SEED'] ?? 20261121);
const specs = [quickstart, multihop, join(ROOT, 'experiments/quickstart-ablations.yaml')].map((path) =>
  readFileSync(path, 'utf8'),
);

test(`no damage to a spec is a crash: ${SEEDS} seeds from ${FIRST_SEED}`, async () => {
  let longest = 0;
  for (let seed = FIRST_SEED; seed < FIRST_SEED + SEEDS; seed++) {
    const random = new Random(seed);
    // Ablations extend the quickstart, which is not beside them here: most of them end there, and that is quick.
    let text = random.of(specs);
    for (let damage = random.below(3); damage >= 0; damage--) text = random.of(DAMAGES)(text || ' ', random);
    const bytes = Buffer.from(text, 'utf8');
    if (random.below(20) === 0) bytes[random.below(bytes.length || 1)] = random.below(256);
    const before = process.cpuUsage();
    await read(bytes).catch((error: Error) => {
      throw new Error(`EXP_FUZZ_SEED=${seed} EXP_FUZZ_CASES=1 shows it: ${error.message}`, { cause: error });
    });
    const { user, system } = process.cpuUsage(before);
    longest = Math.max(longest, (user + system) / 1e6);
  }
  expect(longest).toBeLessThan(MAX_CPU_SECONDS);
}, 120_000);

describe('the largest specs are read or refused in a second', () => {
  test.each(LARGEST_INPUTS.map((large) => [large.input, large] as const))('%s', async (_, large) => {
    const spec = makeLargest(large, temporaryFolder('exp-large-'));
    const before = process.cpuUsage();
    const { problems } = await planFile(spec);
    const { user, system } = process.cpuUsage(before);
    const codes = new Set(problems.map(({ code }) => code));
    if (large.expected === null) expect(problems).toEqual([]);
    else expect([...codes]).toContain(large.expected);
    expect((user + system) / 1e6).toBeLessThan(2 * MAX_CPU_SECONDS);
  });

  test.each([
    ['seeds and limits', `seed: [${upTo(100)}], agent.max_turns: [${upTo(10)}]`],
    ['steps of a stage', `curriculum.stage1.until.steps: [${upTo(1000)}]`],
  ])('a thousand arms: %s', async (_, matrix) => {
    const spec = join(temporaryFolder('exp-arms-'), 'spec.yaml');
    writeFileSync(spec, `${readFileSync(quickstart, 'utf8')}\nsweep: { matrix: { ${matrix} } }\n`);
    const before = process.cpuUsage();
    const { problems } = await planFile(spec, { checkOnly: true });
    const { user, system } = process.cpuUsage(before);
    expect(problems).toEqual([]);
    expect((user + system) / 1e6).toBeLessThan(2 * MAX_CPU_SECONDS);
  });
});

function upTo(count: number): string {
  return Array.from({ length: count }, (_, index) => index + 1).join(', ');
}
