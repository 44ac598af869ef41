/** The largest specs that are read: up to 256 KiB, 20,000 values and 64 levels, each heavy in another part. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { MAX_BYTES } from '../plan/strict-yaml.ts';
import { PROBLEM_SPECS } from './bad-inputs.ts';

export interface LargeInput {
  input: string;
  /** Code of one of the problems; null where the spec is valid. */
  expected: string | null;
  /** Files of a folder; `spec.yaml` is the spec. */
  files(): Record<string, string>;
}

const BASE = readFileSync(join(PROBLEM_SPECS, 'base.yaml'), 'utf8');

const times = (count: number, line: (index: number) => string, between = '\n'): string =>
  Array.from({ length: count }, (_, index) => line(index)).join(between);

/** The small valid spec with more in it, both together no larger than a spec may be. */
const over = (text: string) => () => ({ 'base.yaml': BASE, 'spec.yaml': `extends: [base.yaml]\n${text}\n` });
const alone = (text: string) => () => ({ 'spec.yaml': text });
const filled = (text: string, end = ''): string =>
  text.repeat(Math.floor((MAX_BYTES - BASE.length - 64 - end.length) / text.length)) + end;

export const LARGEST_INPUTS: LargeInput[] = [
  { input: 'a flat map of variables', expected: null, files: over(`vars:\n${times(9_900, (n) => `  k${n}: ${n}`)}`) },
  { input: 'a list', expected: null, files: over(`vars:\n  list: [${times(19_900, (n) => String(n), ',')}]`) },
  {
    input: 'lists within lists',
    expected: null,
    files: over(`vars:\n  list: ${times(300, () => `  - ${'['.repeat(60)}${']'.repeat(60)}`).replace(/^/, '\n')}`),
  },
  { input: 'a text of 256 KiB', expected: 'RANGE', files: over(`description: "${filled('x')}"`) },
  { input: 'a block of 256 KiB', expected: 'RANGE', files: over(`description: |\n${filled('  xxxxxxxxxxxxxxxx\n')}`) },
  { input: 'a folded text of short lines', expected: 'RANGE', files: over(`description: >\n${filled('  x\n')}`) },
  { input: 'a quoted text of escapes', expected: 'RANGE', files: over(`description: "${filled('\\n')}"`) },
  { input: 'comments', expected: null, files: over(filled('# x\n')) },
  { input: 'empty lines', expected: null, files: over(filled('\n')) },
  { input: 'spaces', expected: null, files: over(`vars: { a:${filled(' ', '1 }')}`) },
  { input: 'unknown fields', expected: 'REQUIRED', files: alone(times(9_900, (n) => `k${n}: ${n}`)) },
  { input: 'misspelt fields', expected: 'REQUIRED', files: alone(times(9_900, (n) => `descriptio${n}: ${n}`)) },
  { input: 'one key again and again', expected: 'DUP_KEY', files: over(times(9_900, () => 'seed: 1')) },
  { input: 'forbidden keys', expected: 'KEY_FORBIDDEN', files: over(times(9_900, () => '__proto__: 1')) },
  { input: 'bad names', expected: 'NAME', files: over(`vars:\n${times(9_900, (n) => `  K${n}: ${n}`)}`) },
  { input: 'anchors', expected: null, files: over(`vars:\n${times(9_900, (n) => `  k${n}: &a${n} ${n}`)}`) },
  {
    input: 'aliases',
    expected: 'YAML_ALIAS',
    files: over(`vars:\n  a: &a 1\n${times(9_900, (n) => `  k${n}: *a`)}`),
  },
  {
    input: 'variables that nobody set',
    expected: 'REF',
    files: over(
      `vars:\n${times(4_000, (n) => `  variable_${n}: 1`)}\ncorpus:\n  sources:\n${times(1_500, (n) => `    s${n}: { kind: markdown, path: "\${vars.variabel_${n}}" }`)}`,
    ),
  },
  {
    input: 'a long variable many times in one text',
    expected: 'SIZE',
    files: over(`vars: { long: ${'x'.repeat(100_000)} }\ndescription: "${'${vars.long}'.repeat(10_000)}"`),
  },
  {
    input: 'a long list in many places',
    expected: 'REF',
    files: over(
      `vars: { list: [${times(5_000, (n) => `t${n}`, ',')}] }\ncurriculum:\n${times(1_500, (n) => `  s${n}: { agent: { tools: "\${vars.list}" } }`)}`,
    ),
  },
  {
    input: 'tools',
    expected: 'REF',
    files: over(`agent: { tools: [${times(19_000, (n) => `tool${n}`, ',')}] }`),
  },
  {
    input: 'tools, one of them twice',
    expected: 'RANGE',
    files: over(`agent: { tools: [${times(19_000, (n) => `tool${n}`, ',')}, tool0] }`),
  },
  {
    input: 'a sweep of too many values',
    expected: 'SWEEP_SIZE',
    files: over(`sweep: { matrix: { seed: [${times(19_000, (n) => String(n), ',')}] } }`),
  },
  {
    input: 'combinations left out',
    expected: null,
    files: over(
      `sweep:\n  matrix: { seed: [${times(30, (n) => String(n), ',')}] }\n  exclude:\n${times(2_500, (n) => `    - { seed: ${n + 25}, agent.max_turns: ${n} }`)}`,
    ),
  },
  {
    input: 'sources of pages',
    expected: null,
    files: over(`corpus:\n  sources:\n${times(2_400, (n) => `    s${n}: { kind: markdown, path: pages }`)}`),
  },
  {
    input: 'sources of questions',
    expected: null,
    files: over(`tasks:\n  sources:\n${times(2_400, (n) => `    s${n}: { kind: generated, count: 2 }`)}`),
  },
  {
    input: 'splits',
    expected: 'RANGE',
    files: over(`tasks:\n  splits:\n${times(9_000, (n) => `    s${n}: 0.0001`)}`),
  },
  {
    input: 'stages, each from the one before',
    expected: null,
    files: over(
      `curriculum:\n  s0: { like: stage1 }\n${times(700, (n) => `  s${n + 1}: { like: stage1, from: "\${stages.s${n}.checkpoint}" }`)}`,
    ),
  },
  {
    input: 'stages, each like the one before',
    expected: null,
    files: over(`curriculum:\n  s0: { like: stage1 }\n${times(700, (n) => `  s${n + 1}: { like: s${n} }`)}`),
  },
  {
    input: 'more stages, each like the one after, than a spec may have',
    expected: 'SIZE',
    files: over(`curriculum:\n${times(3_000, (n) => `  s${n}: { like: s${n + 1} }`)}\n  s3000: { like: stage1 }`),
  },
  {
    input: 'stages like each other in a circle',
    expected: 'CYCLE',
    files: over(`curriculum:\n${times(3_000, (n) => `  s${n}: { like: s${(n + 1) % 3_000} }`)}`),
  },
  {
    input: 'stages in a circle',
    expected: 'CYCLE',
    files: over(
      `curriculum:\n${times(700, (n) => `  s${n}: { like: stage1, from: "\${stages.s${(n + 1) % 700}.checkpoint}" }`)}`,
    ),
  },
  {
    input: 'stages like none',
    expected: 'REF',
    files: over(`curriculum:\n${times(3_000, (n) => `  stage_${n}: { like: stagg_${n} }`)}`),
  },
  {
    input: 'benchmarks',
    expected: null,
    files: over(`benchmarks:\n${times(2_400, (n) => `  b${n}: { dataset: { split: held_out }, after: base }`)}`),
  },
  {
    input: 'benchmarks of splits that are not there',
    expected: 'REF',
    files: over(`benchmarks:\n${times(2_400, (n) => `  b${n}: { dataset: { split: held_aut }, after: bose }`)}`),
  },
  {
    input: 'one benchmark after stages that are not there',
    expected: 'REF',
    files: over(
      `benchmarks:\n  b: { dataset: { split: held_out }, after: [${times(15_000, (n) => `stage${n}`, ',')}] }`,
    ),
  },
  {
    input: 'bands that do not rise',
    expected: 'RANGE',
    files: over(
      `curriculum:\n  warm: { trajectories: { resample: { bands: [${times(3_900, () => '{ up_to: 3, weight: 1 }', ', ')}] } } }`,
    ),
  },
  {
    input: 'ablations of dotted paths',
    expected: null,
    files: over(`ablations:\n  all: {${times(9_000, (n) => `vars.k${n}: ${n}`, ', ')}}`),
  },
  {
    input: 'files that extend each other twice, sixty deep',
    expected: 'SIZE',
    files: () => ({
      'base.yaml': BASE,
      ...Object.fromEntries(
        Array.from({ length: 60 }, (_, n) => [
          n === 0 ? 'spec.yaml' : `f${n}.yaml`,
          n === 59 ? 'extends: [base.yaml]\n' : `extends: [f${n + 1}.yaml, f${n + 1}.yaml]\n`,
        ]),
      ),
    }),
  },
];

/** Writes the files of an input and says where the spec is. */
export function makeLargest({ files }: LargeInput, folder: string): string {
  mkdirSync(join(folder, 'pages'), { recursive: true });
  writeFileSync(join(folder, 'pages', 'one.md'), 'one page\n');
  for (const [name, text] of Object.entries(files())) writeFileSync(join(folder, name), text);
  return join(folder, 'spec.yaml');
}
