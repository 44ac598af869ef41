import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { parse, stringify } from 'yaml';
import { temporaryFolder } from '../temporary-folder.ts';
import { keysOf, nodesOf, recipe } from './plan-fixture.ts';

/**
 * Random valid specs, each written in several ways. The order of stages and benchmarks is shuffled too: what is
 * measured after is named, so no result hangs on it.
 */
const SPECS = Number(process.env['EXP_PROPERTY_CASES'] ?? 40);
const FIRST_SEED = Number(process.env['EXP_PROPERTY_SEED'] ?? 20261121);

type Value = string | number | boolean | null | Value[] | { [name: string]: Value };
type Fields = { [name: string]: Value };

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
  shuffled<T>(list: readonly T[]): T[] {
    const rest = [...list];
    return list.map(() => rest.splice(this.below(rest.length), 1)[0] as T);
  }
}

/** Dotted path → values that are valid there, whatever the others are. */
const CHOICES: Record<string, Value[]> = {
  name: ['one', 'two-words', 'x1'],
  description: ['short', 'with: colon, # and "quotes"', 'two\nlines\n', ''],
  seed: [0, 1, 2_147_483_647],
  'corpus.limit.chunks': [1, 3000, 1_000_000],
  'corpus.limit.pages': [10, 500],
  'corpus.near_duplicates.threshold': [0.5, 0.9, 1],
  'index.embedder.precision': ['fp32', 'int8'],
  'index.chunk': [
    { tokens: 100, overlap: 10 },
    { tokens: 256, overlap: 0 },
  ],
  'index.dense.type': ['hnsw', 'flat'],
  'index.dense.metric': ['cosine', 'ip', 'l2'],
  'index.sparse': ['bm25', 'none'],
  'index.fusion': [{ kind: 'rrf', k: 10 }, { kind: 'weighted', dense: 0.5, sparse: 2 }, { kind: 'rrf' }],
  'tasks.seed': [1, 7],
  'tasks.limit': [20, 150],
  'tasks.sources.made.count': [40, 200],
  'policy.dtype': ['float32', 'bfloat16'],
  'policy.adapter.lora_rank': [1, 8, 64],
  'policy.adapter.lora_dropout': [0, 0.1],
  'agent.search_results': [1, 5, 10],
  'agent.tools': [['search', 'visit'], ['search'], ['visit', 'search']],
  'agent.deny_urls': ['none', 'from_task'],
  'reward.outcome': ['exact_match', 'f1'],
  'reward.format_penalty': [0, 0.5, 1e-3],
  'curriculum.cold_start.optimizer.learning_rate': [1e-6, 0.0002, 1],
  'curriculum.cold_start.optimizer.schedule': ['constant', 'linear', 'cosine'],
  'curriculum.cold_start.trajectories.count': [8, 48],
  'curriculum.stage1.rollout.group_size': [2, 8],
  'curriculum.stage1.rollout.temperature': [0.5, 1, 1.5],
  'curriculum.stage1.algorithm.loss': ['token_mean', 'seq_mean_token_mean'],
  'curriculum.stage1.algorithm.kl': [0, { coefficient: 0.01, estimator: 'k1' }],
  'curriculum.stage1.seed': [3, 4],
  'curriculum.stage1.checkpoint.every': [1, 5],
  'benchmarks.held_out.samples': [1, 4],
  'benchmarks.held_out.metrics': [['avg@k'], ['pass@k', 'avg@k']],
  'benchmarks.held_out.dataset.limit': [8, 32],
  'tracking.mlflow_experiment': ['a', 'b'],
};

function randomSpec(random: Random): Fields {
  const spec = parse(readFileSync(recipe, 'utf8')) as Fields;
  for (const [path, values] of Object.entries(CHOICES)) {
    if (random.below(2) === 0) setAt(spec, path.split('.'), random.of(values));
  }
  if (random.below(3) === 0) {
    const stage2 = { like: 'stage1', from: '${stages.stage1.checkpoint}', until: { steps: 1 + random.below(9) } };
    setAt(spec, ['curriculum', 'stage2'], stage2);
  }
  return spec;
}

function setAt(fields: Fields, [name = '', ...rest]: readonly string[], value: Value): void {
  if (rest.length === 0) fields[name] = value;
  else {
    fields[name] ??= {};
    setAt(fields[name] as Fields, rest, value);
  }
}

const isFields = (value: Value): value is Fields =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** The same maps in another order; lists keep theirs. */
function shuffled(value: Value, random: Random): Value {
  if (!isFields(value)) return value;
  return Object.fromEntries(
    random.shuffled(Object.entries(value)).map(([name, item]) => [name, shuffled(item, random)]),
  );
}

/** Every leaf into one of two maps, which together are the whole. */
function split(value: Fields, random: Random): [Fields, Fields] {
  const [lower, upper]: [Fields, Fields] = [{}, {}];
  for (const [name, item] of Object.entries(value)) {
    // A `kind` decides the shape of its map, so shapes stay whole in one file or the other.
    if (isFields(item) && !('kind' in item) && random.below(3) > 0) {
      const [below, above] = split(item, random);
      if (Object.keys(below).length > 0) lower[name] = below;
      if (Object.keys(above).length > 0) upper[name] = above;
    } else (random.below(2) === 0 ? lower : upper)[name] = item;
  }
  return [lower, upper];
}

/** Before each section, and after each flow list: elsewhere a comment might stand inside a text. */
const withComments = (text: string): string =>
  text.replace(/^(?=[a-z_]+:)/gm, '\n  # a comment\n').replace(/\]$/gm, '] # another');

test(`${SPECS} random specs from seed ${FIRST_SEED}: comments, layout, order of keys and files change no key`, async () => {
  const distinct = new Set<string>();
  for (let seed = FIRST_SEED; seed < FIRST_SEED + SPECS; seed++) {
    const random = new Random(seed);
    const spec = randomSpec(random);
    const folder = temporaryFolder('exp-property-');
    const keys = async (text: string): Promise<Record<string, string>> => {
      const path = join(folder, 'spec.yaml');
      writeFileSync(path, text);
      return sortedKeys(keysOf(await nodesOf(path)));
    };
    const usual = await keys(stringify(spec));
    const [lower, upper] = split(spec, random);
    writeFileSync(join(folder, 'lower.yaml'), stringify(lower));
    const ways: Record<string, string> = {
      comments: withComments(stringify(spec)),
      'one line': JSON.stringify(spec),
      order: stringify(shuffled(spec, random)),
      files: stringify({ extends: ['lower.yaml'], ...upper }),
    };
    for (const [way, text] of Object.entries(ways))
      expect({ seed, way, keys: await keys(text) }).toEqual({ seed, way, keys: usual });
    distinct.add(JSON.stringify(usual));
  }
  expect(distinct.size).toBeGreaterThan(SPECS / 2); // the specs do differ in what they say
}, 120_000);

const sortedKeys = (keys: Record<string, string>): Record<string, string> =>
  Object.fromEntries(Object.entries(keys).sort(([a], [b]) => (a < b ? -1 : 1)));
