import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { type CompileInput, compileNodes } from '../../plan/compile.ts';
import { FileDigests } from '../../plan/input-files.ts';
import { type Located, nodeAt } from '../../plan/located.ts';
import { chooseShape, partOf, type SchemaView, viewOf } from '../../plan/schema-walk.ts';
import { readSpecInputs } from '../../plan/spec-inputs.ts';
import { resolveNames } from '../../plan/spec-names.ts';
import { Experiment } from '../../schemas/experiment.ts';
import type { PlanNode } from '../../schemas/plan.ts';
import {
  folderWith,
  keysOf,
  multihop,
  nodesOf,
  planFile,
  planOptions,
  quickstart,
  ROOT,
  recipe,
} from './plan-fixture.ts';

describe('golden plans', () => {
  // After a change that is meant to move keys: vitest -u, and the diff shows which moved.
  test.each([
    ['quickstart', quickstart],
    ['multihop', multihop],
  ])('%s', async (name, path) => {
    const { plan } = await planFile(path);
    const { spec_path: _, made_from: __, ...rest } = plan as NonNullable<typeof plan>;
    const text = JSON.stringify(rest, null, 2).replaceAll(ROOT, '<checkout>');
    await expect(`${text}\n`).toMatchFileSnapshot(join(ROOT, `tests/fixtures/plans/${name}.json`));
  });

  test('the quickstart has the nodes that were designed, each after its inputs', async () => {
    const nodes = await nodesOf(quickstart);
    expect(Object.fromEntries(nodes.map(({ id, kind, inputs }) => [id, [kind, ...inputs]]))).toEqual({
      corpus: ['corpus'],
      index: ['index', 'corpus'],
      tasks: ['tasks', 'corpus'],
      'cold_start.trajectories': ['trajectories', 'tasks', 'index'],
      cold_start: ['sft', 'cold_start.trajectories'],
      'stage1.profile': ['profile', 'tasks', 'index', 'cold_start'],
      stage1: ['rl', 'stage1.profile', 'tasks', 'index', 'cold_start'],
      'held_out.base': ['benchmark', 'tasks', 'index'],
      'held_out.cold_start': ['benchmark', 'tasks', 'index', 'cold_start'],
      'held_out.stage1': ['benchmark', 'tasks', 'index', 'stage1'],
      report: ['report', 'held_out.base', 'held_out.cold_start', 'held_out.stage1'],
    });
  });

  test('a profile stands alone, and imported tasks need no corpus', async () => {
    const nodes = await nodesOf(multihop);
    expect(nodes.map(({ id, inputs }) => [id, inputs])).toEqual([
      ['corpus', []],
      ['index', ['corpus']],
      ['tasks', []],
      ['difficulty_of_base', ['tasks', 'index']],
      ['held_out.base', ['tasks', 'index']],
      ['report', ['held_out.base']],
    ]);
  });

  test('only stochastic nodes have a seed, so corpus and index are shared by all seeds', async () => {
    const one = await nodesOf(recipe);
    const other = await nodesOf(recipe, { overrides: ['seed=18'] });
    expect(one.filter(({ seed }) => seed === null).map(({ id }) => id)).toEqual(['corpus', 'index', 'report']);
    expect(changed(one, other)).toEqual(one.map(({ id }) => id).filter((id) => !['corpus', 'index'].includes(id)));
  });

  test('a benchmark asks every checkpoint the same questions', async () => {
    const benchmarks = (await nodesOf(recipe)).filter(({ kind }) => kind === 'benchmark');
    const seeds = benchmarks.map(({ parameters }) => (parameters['dataset'] as { seed: number }).seed);
    expect(new Set(seeds).size).toBe(1);
    expect(new Set(benchmarks.map(({ seed }) => seed)).size).toBe(3);
  });
});

describe('what a spec looks like changes no key', () => {
  const text = readFileSync(recipe, 'utf8');
  const keysOfText = async (spec: string) =>
    keysOf(await nodesOf(join(folderWith({ 'spec.yaml': spec }), 'spec.yaml')));

  test('comments and spacing', async () => {
    const spec = text.replaceAll('\n', ' # a comment\n\n');
    expect(await keysOfText(spec)).toEqual(keysOf(await nodesOf(recipe)));
  });

  test('the order of sections', async () => {
    const sections = text.split(/\n(?=[a-z_]+:)/);
    expect(sections.length).toBeGreaterThan(10);
    expect(await keysOfText(sections.reverse().join('\n'))).toEqual(keysOf(await nodesOf(recipe)));
  });

  test('how it is split into files', async () => {
    const [head, ...sections] = text.split(/\n(?=[a-z_]+:)/);
    const half = sections.length / 2;
    const folder = folderWith({
      'lower.yaml': `${head}\n${sections.slice(0, half).join('\n')}`,
      'spec.yaml': `extends: [lower.yaml]\n${sections.slice(half).join('\n')}`,
    });
    expect(keysOf(await nodesOf(join(folder, 'spec.yaml')))).toEqual(keysOf(await nodesOf(recipe)));
  });

  test('a default that is written out', async () => {
    const nodes = await nodesOf(recipe, {
      overrides: ['+index.fusion={ kind: rrf, k: 60 }', '+agent.search_results=5'],
    });
    expect(keysOf(nodes)).toEqual(keysOf(await nodesOf(recipe)));
  });
});

/** Values the recipe leaves out, so that they are flipped too. */
const EXTRAS = [
  '+corpus.limit.pages=500',
  '+tasks.limit=150',
  '+tasks.seed=1',
  '+tasks.sources.made.seed=2',
  '+policy.adapter.lora_alpha=8',
  '+curriculum.cold_start.seed=3',
  '+curriculum.cold_start.resources={ gpu: 0, nodes: 1 }',
  '+curriculum.stage1.algorithm.clip.dual=3.0',
  '+curriculum.stage1.algorithm.kl={ coefficient: 0.1, estimator: k3 }',
  '+curriculum.stage1.algorithm.importance={ level: token, truncate: 2.0, veto: 0.1 }',
  '+curriculum.stage1.until.epochs=2',
  '+curriculum.stage1.agent={ max_turns: 3 }',
  '+curriculum.stage1.reward={ format_penalty: 0.5 }',
  '+benchmarks.held_out.dataset.seed=4',
  '+benchmarks.held_out.seed=5',
  '+benchmarks.held_out.max_turns=6',
  '+benchmarks.held_out.context_length=1600',
  '+curriculum.cold_start.gate={ metric: eval/held_out/avg_at_2, at_least: 0.1, approve: true }',
  '+curriculum.stage1.evaluate={ benchmark: held_out, every: 2 }',
  '+curriculum.stage1.until.plateau={ metric: eval/held_out/avg_at_2, patience: 4 }',
  '+curriculum.stage1.health={ limits: { train/entropy: { min: 0.1 } }, for: 3 }',
  '+curriculum.stage1.difficulty.refresh_every=2',
  '+curriculum.stage1.rollout.cutoff=0.9',
  '+budget={ tokens: 1000000, money: 5 }',
];

/** Which nodes read a field themselves; what depends on them changes with them. */
const READERS: [RegExp, string[]][] = [
  [/^seed$/, ['stage1.profile', 'stage1']], // everything else has a seed of its own above
  [/^corpus\./, ['corpus']],
  [/^index\.(embedder\.model|chunk\.)/, ['corpus', 'index']], // chunks are counted for corpus.limit.chunks
  [/^index\./, ['index']],
  [/^tasks\./, ['tasks']],
  [
    /^policy\.base$/,
    [
      'cold_start.trajectories',
      'cold_start',
      'stage1.profile',
      'stage1',
      'held_out.base',
      'held_out.cold_start',
      'held_out.stage1',
    ],
  ],
  [/^policy\./, ['cold_start', 'stage1']],
  [/^agent\.max_turns$/, ['cold_start.trajectories']], // the stage and the benchmark say their own
  [
    /^agent\./,
    ['cold_start.trajectories', 'stage1.profile', 'stage1', 'held_out.base', 'held_out.cold_start', 'held_out.stage1'],
  ],
  [/^reward\.outcome$/, ['stage1.profile', 'stage1', 'held_out.base', 'held_out.cold_start', 'held_out.stage1']],
  [/^reward\.format_penalty$/, ['stage1', 'held_out.base', 'held_out.cold_start', 'held_out.stage1']],
  [
    /^curriculum\.cold_start\.(trajectories\.|context_length|seed|tasks|agent)/,
    ['cold_start.trajectories', 'cold_start'],
  ],
  [/^curriculum\.cold_start\./, ['cold_start']],
  [/^curriculum\.stage1\.difficulty\.refresh_every$/, ['stage1']],
  [/^curriculum\.stage1\.difficulty\.(tasks|rollouts)$/, ['stage1.profile']],
  [/^curriculum\.stage1\.(difficulty|tasks|agent|reward|context_length)/, ['stage1.profile', 'stage1']],
  [/^curriculum\.stage1\.rollout\.(temperature|top_p)$/, ['stage1.profile', 'stage1']],
  [/^curriculum\.stage1\./, ['stage1']],
  [/^benchmarks\.held_out\.seed$/, ['held_out.base', 'held_out.cold_start', 'held_out.stage1']],
  // The stage measures the benchmark too.
  [/^benchmarks\./, ['stage1', 'held_out.base', 'held_out.cold_start', 'held_out.stage1']],
];
/** Fields whose change gives a plan of another shape. */
const STRUCTURAL = /(^|\.)(kind|from|after|api_version|by|name|benchmark)$/;

describe('flipping a leaf changes exactly the nodes that depend on it', () => {
  let base: CompileInput;
  let root: Located;
  let before: PlanNode[];
  let unmoved: string[];

  beforeAll(async () => {
    const options = planOptions({ overrides: EXTRAS });
    const loaded = await planFile(recipe, options);
    root = loaded.root as Located;
    const experiment = loaded.plan?.spec as unknown as Experiment;
    base = {
      experiment,
      names: resolveNames(experiment, options),
      inputs: (
        await readSpecInputs(experiment, {
          ...options,
          root,
          specFile: recipe,
          dataRoots: [],
          datasets: new Map(),
          digests: new FileDigests(options.cacheDir),
        })
      ).byField,
    };
    before = compileNodes(base);
    unmoved = [];
  });

  test('every leaf of the resolved recipe', () => {
    const flipped: string[] = [];
    for (const path of leafPaths(base.experiment)) {
      const field = path.join('.');
      const schema = schemaAt(root, path);
      if (STRUCTURAL.test(field) && schema.key !== false) continue;
      const experiment = structuredClone(base.experiment);
      setAt(experiment, path, flip(valueAt(experiment, path), schema));
      const after = compileNodes({ experiment, names: resolveNames(experiment, planOptions()), inputs: base.inputs });
      const readers = schema.key === false ? [] : (READERS.find(([pattern]) => pattern.test(field))?.[1] ?? ['nobody']);
      expect({ field, changed: changed(before, after) }).toEqual({ field, changed: dependents(before, readers) });
      if (readers.length === 0) unmoved.push(field);
      flipped.push(field);
    }
    expect(flipped.length).toBeGreaterThan(80);
    expect(unmoved).toEqual(
      expect.arrayContaining([
        'name',
        'description',
        'policy.engine',
        'tracking.mlflow_experiment',
        'budget.tokens',
        'budget.money',
        'curriculum.cold_start.gate.metric',
        'curriculum.cold_start.gate.at_least',
        'curriculum.stage1.checkpoint.every',
        'curriculum.cold_start.resources.gpu',
      ]),
    );
  });
});

describe('input files', () => {
  const pages = { kind: 'jsonl', path: 'pages.jsonl' };
  const spec = (source: object) =>
    `${readFileSync(recipe, 'utf8').replace(/docs: \{.*\}/, `docs: ${JSON.stringify(source)}`)}`;

  test('enter the key by content, not by place', async () => {
    const make = (content: string) => folderWith({ 'spec.yaml': spec(pages), 'pages.jsonl': content });
    const keyOf = async (folder: string) => (await nodesOf(join(folder, 'spec.yaml')))[0]?.key;
    const one = make('{"url":"a","text":"b"}\n');
    expect(await keyOf(make('{"url":"a","text":"b"}\n'))).toBe(await keyOf(one));
    expect(await keyOf(make('{"url":"a","text":"c"}\n'))).not.toBe(await keyOf(one));
  });

  test('are read again when they change, though their digest is remembered', async () => {
    const folder = folderWith({ 'spec.yaml': spec(pages), 'pages.jsonl': 'x' });
    const cacheDir = folderWith({});
    const key = async () => (await nodesOf(join(folder, 'spec.yaml'), { cacheDir }))[0]?.key;
    const first = await key();
    expect(await key()).toBe(first);
    writeFileSync(join(folder, 'pages.jsonl'), 'y');
    expect(await key()).not.toBe(first);
  });

  test('a glob is one digest over names and contents', async () => {
    const source = { kind: 'jsonl', path: '*.jsonl' };
    const files = { 'spec.yaml': spec(source), 'a.jsonl': '1', 'b.jsonl': '2' };
    const key = async (more: Record<string, string>) =>
      (await nodesOf(join(folderWith({ ...files, ...more }), 'spec.yaml')))[0]?.key;
    expect(await key({ 'c.txt': '3' })).toBe(await key({}));
    expect(await key({ 'c.jsonl': '3' })).not.toBe(await key({}));
  });

  test('installed packages are keyed by what the lockfiles pin', async () => {
    const lock = readFileSync(join(planOptions().repoRoot, 'package-lock.json'), 'utf8');
    const key = async (packageLock: string, requirements: string) =>
      (
        await nodesOf(recipe, {
          repoRoot: folderWith({ 'package-lock.json': packageLock, 'requirements.txt': requirements }),
        })
      )[0]?.key;
    const usual = await key(lock, 'alpha==1.0\nbeta==2.0\n');
    expect(await key(lock.replace('"name": "checkout"', '"name": "renamed"'), '# beta\nBeta==2.0\nalpha==1.0\n')).toBe(
      usual,
    );
    expect(await key(lock.replace('sha512-left', 'sha512-other'), 'alpha==1.0\nbeta==2.0\n')).not.toBe(usual);
    expect(await key(lock, 'alpha==1.1\nbeta==2.0\n')).not.toBe(usual);
  });

  test('what is missing makes keys unknown, and the plan still stands', async () => {
    const { plan, unknown, problems } = await planFile(multihop, { env: {} });
    expect(problems).toEqual([]);
    expect(unknown).toContain('corpus.sources.paragraphs.path: the environment variable DATA_DIR is not set');
    expect(plan?.arms[0]?.nodes.find(({ id }) => id === 'index')?.unkeyed['unknown']).toEqual([
      '${env:DATA_DIR}/qa_hotpotqa_dev500/corpus.jsonl',
    ]);
  });

  test('a model the profile does not know is named, with the nearest it knows', async () => {
    const { plan, unknown } = await planFile(recipe, { overrides: ['policy.base=smollm2-135m-instruc'] });
    expect(unknown).toEqual([
      'models: profile local has no smollm2-135m-instruc (did you mean `smollm2-135m-instruct`?)',
    ]);
    expect(plan).not.toBeNull();
  });
});

test('a spec compiles in under 100 ms', async () => {
  const times: number[] = [];
  for (let round = 0; round < 8; round++) {
    const before = process.cpuUsage();
    await nodesOf(recipe);
    const { user, system } = process.cpuUsage(before);
    times.push((user + system) / 1000);
  }
  expect(Math.min(...times)).toBeLessThan(100);
});

function changed(before: readonly PlanNode[], after: readonly PlanNode[]): string[] {
  const keys = keysOf(after);
  return before.filter(({ id, key }) => keys[id] !== key).map(({ id }) => id);
}

/** The readers and everything below them, in plan order. */
function dependents(nodes: readonly PlanNode[], readers: readonly string[]): string[] {
  const moved = new Set(readers);
  for (const { id, inputs } of nodes) if (inputs.some((input) => moved.has(input))) moved.add(id);
  return nodes.map(({ id }) => id).filter((id) => moved.has(id));
}

/** Paths of values that are no maps; lists count as one value. */
function leafPaths(value: unknown, path: string[] = []): string[][] {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return [path];
  return Object.entries(value).flatMap(([name, item]) => leafPaths(item, [...path, name]));
}

function valueAt(value: unknown, path: readonly string[]): unknown {
  return path.reduce<unknown>((inner, name) => (inner as Record<string, unknown>)[name], value);
}

function setAt(value: object, path: readonly string[], leaf: unknown): void {
  (valueAt(value, path.slice(0, -1)) as Record<string, unknown>)[path.at(-1) as string] = leaf;
}

function schemaAt(root: Located, path: readonly string[]): SchemaView {
  let schema: SchemaView | undefined = viewOf(Experiment);
  for (const [index, name] of path.entries())
    schema = partOf(schema && chooseShape(schema, nodeAt(root, path.slice(0, index))), name);
  return schema ?? {};
}

/** Another value of the same type. */
function flip(value: unknown, { enum: words }: SchemaView): unknown {
  if (words) return words.find((word) => word !== value) ?? `${String(value)}_other`;
  if (typeof value === 'number') return value + 1;
  if (typeof value === 'boolean') return !value;
  if (Array.isArray(value)) return value.length > 1 ? value.slice(0, -1) : [...value, ...value];
  return `${String(value)}_other`;
}
