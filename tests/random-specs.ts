/** Random valid specs for property tests. */
import { readFileSync } from 'node:fs';
import { parse } from 'yaml';
import { recipe } from './unit/plan-fixture.ts';

export type Value = string | number | boolean | null | Value[] | { [name: string]: Value };
export type Fields = { [name: string]: Value };

/** A linear congruential generator: a case is found again by its seed. */
export class Random {
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

/** A valid spec: the recipe of the unit tests with about half of the choices made. */
export function randomSpec(random: Random): Fields {
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

export const isFields = (value: Value): value is Fields =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** The same spec with one leaf changed to another value that is valid there. */
export function withOneChange(spec: Fields, random: Random): Fields {
  const changed = structuredClone(spec);
  const [path, value] = randomChange(random);
  setAt(changed, path.split('.'), value);
  return changed;
}

export function randomChange(random: Random): [path: string, value: Value] {
  const [path, values] = random.of(Object.entries(CHOICES));
  return [path, random.of(values)];
}
