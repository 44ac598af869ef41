/**
 * What an experiment file says. The definitions below are the type, the JSON Schema, the validator and the
 * reference in docs/spec.md at once.
 *
 * A property with a `default` is filled in before validation, so it is not optional in the type; a property
 * that is `Type.Optional` may be absent. Three more annotations:
 *   key: false   the value does not decide any result, so it enters no node's key
 *   code: …      the problem reported when the value does not match (default: TYPE or RANGE)
 *   holds: …     'path' may hold `${env:NAME}`; 'checkpoint' is a reference to weights; 'secret' names a secret
 */
import { type Static, type TObject, type TProperties, type TSchema, Type } from 'typebox';
import { ALGORITHMS, IGPO_MEASURES, IGPO_NORMALIZATIONS, IGPO_PRESET_NAMES, LOSS_AGGREGATIONS } from './algorithms.ts';
import { CAPABILITIES, TASK_FORMATS } from './task.ts';
import { TASK_COLUMNS } from './task-columns.ts';

export const NAME_PATTERN = '^[a-z][a-z0-9_]{0,62}$';
/** Names of devices on some file systems, and of node ids that a stage would collide with. */
export const RESERVED_NAMES = [
  'con',
  'prn',
  'aux',
  'nul',
  'corpus',
  'index',
  'tasks',
  'report',
  'base',
  'last',
] as const;

const closed = { additionalProperties: false } as const;
const object = <P extends TProperties>(properties: P, options: Record<string, unknown> = {}) =>
  Type.Object(properties, { ...closed, ...options });
const words = <const W extends readonly string[]>(values: W, options: Record<string, unknown>) =>
  Type.Unsafe<W[number]>({ type: 'string', enum: values, ...options });

/** A map of names to values of one shape, in the order of the file. */
function named<S extends TSchema>(value: S, options: Record<string, unknown>) {
  return Type.Unsafe<Record<string, Static<S>>>({
    type: 'object',
    propertyNames: { type: 'string', pattern: NAME_PATTERN, not: { enum: RESERVED_NAMES }, code: 'NAME' },
    additionalProperties: value,
    minProperties: 1,
    ...options,
  });
}

/** One of several shapes, told apart by `kind`. */
function byKind<const S extends readonly TSchema[]>(shapes: S, options: Record<string, unknown>) {
  return Type.Unsafe<Static<S[number]>>({
    type: 'object',
    required: ['kind'],
    discriminator: { propertyName: 'kind' },
    oneOf: shapes,
    ...options,
  });
}

/** The same properties, each one optional and without its default: values a part may set for itself. */
function overrides<P extends TProperties>(schema: TObject<P>, options: Record<string, unknown>) {
  const properties = Object.fromEntries(
    Object.entries(schema.properties).map(([name, property]) => {
      const { default: _default, ...rest } = property as TSchema & { default?: unknown };
      return [name, Type.Optional(Type.Unsafe(rest))];
    }),
  );
  return Type.Unsafe<Partial<Static<TObject<P>>>>(object(properties, options));
}

const share = (options: Record<string, unknown>) => Type.Number({ minimum: 0, maximum: 1, ...options });
const count = (options: Record<string, unknown>) => Type.Integer({ minimum: 1, maximum: 1_000_000_000, ...options });
const tokens = (options: Record<string, unknown>) =>
  Type.Integer({ minimum: 1, maximum: 16_777_216, unit: 'tokens', ...options });
const path = (options: Record<string, unknown>) =>
  Type.String({ minLength: 1, maxLength: 4096, holds: 'path', ...options });
/** Never begins with a dash and holds no white space, so it cannot become an option or a second word of a command. */
const modelName = (options: Record<string, unknown>) =>
  Type.String({ pattern: '^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$', code: 'ARG', ...options });
/** As metrics are called in MLflow. */
const metricName = (options: Record<string, unknown>) =>
  Type.String({ pattern: '^[a-z][a-z0-9_]*(/[a-z0-9_]+)+$', ...options });
const seed = (description: string) => Type.Optional(Type.Integer({ minimum: 0, maximum: 2_147_483_647, description }));
const checkpoint = {
  pattern: '^\\$\\{(base|policy\\.base|stages\\.[a-z][a-z0-9_]*\\.checkpoint)\\}$',
  code: 'REF',
  holds: 'checkpoint',
} as const;
const secret = (description: string) =>
  Type.Unsafe<{ env: string } | { file: string }>({
    type: 'object',
    holds: 'secret',
    description: `${description} The name of a variable (\`{ env: NAME }\`) or a file (\`{ file: PATH }\`); never the value.`,
    properties: {
      env: { type: 'string', pattern: '^[A-Za-z_][A-Za-z0-9_]*$' },
      file: { type: 'string', minLength: 1 },
    },
    additionalProperties: false,
    minProperties: 1,
    maxProperties: 1,
    key: false,
  });

const origin = {
  licence: Type.String({
    default: 'unknown',
    maxLength: 500,
    description: 'Licence of the data; shown in manifests and reports.',
  }),
  provenance: Type.String({
    default: 'unknown',
    maxLength: 2000,
    description: 'Where the data came from; shown in manifests and reports.',
  }),
};
const expect = Type.Optional(
  object(
    { records: count({ description: 'Records the source must have.', unit: 'records', key: false }) },
    { description: 'Checked while loading; a difference stops the node.' },
  ),
);
const limit = Type.Optional(
  count({
    description: 'Take this many records, chosen by the seed; larger limits contain smaller ones.',
    unit: 'records',
  }),
);

const CorpusSource = byKind(
  [
    object({
      kind: Type.Literal('installed_packages', {
        description: 'Documentation of the packages installed in this checkout.',
      }),
      ecosystems: Type.Array(words(['npm', 'python'], { description: 'A package manager.' }), {
        minItems: 1,
        uniqueItems: true,
        default: ['npm', 'python'],
        description: 'Which packages are read.',
      }),
      ...origin,
      licence: Type.String({
        default: 'as each package declares',
        maxLength: 500,
        description: 'Licence of the data; each page names its own.',
      }),
      provenance: Type.String({
        default: 'installed in this checkout',
        maxLength: 2000,
        description: 'Where the data came from.',
      }),
    }),
    object({
      kind: words(['jsonl', 'parquet'], {
        description: 'Files of records, one page each; `.gz` and `.zst` are read too.',
      }),
      path: path({ description: 'File, or glob, relative to the spec or below `${env:NAME}`.' }),
      fields: object(
        {
          url: Type.String({
            default: 'url',
            description: 'Column with the URL. A record without one gets `doc:<id>`.',
          }),
          id: Type.String({ default: 'id', description: 'Column with the id.' }),
          title: Type.String({ default: 'title', description: 'Column with the title.' }),
          text: Type.String({ default: 'text', description: 'Column with the text.' }),
        },
        {
          default: {},
          description:
            'Which columns are read; the shapes of BEIR, Dolma, LiteResearcher and Search-R1 are recognised too.',
        },
      ),
      limit,
      expect,
      ...origin,
    }),
    object({
      kind: words(['html', 'markdown', 'wet'], {
        description: 'A folder of HTML or Markdown files, or WET files of a crawl.',
      }),
      path: path({ description: 'Folder, file or glob, relative to the spec or below `${env:NAME}`.' }),
      limit,
      expect,
      ...origin,
    }),
  ],
  { description: 'Where pages come from.' },
);

const Corpus = object(
  {
    sources: named(CorpusSource, { description: 'Sources of pages, by name.' }),
    limit: Type.Optional(
      object(
        {
          pages: Type.Optional(count({ description: 'At most this many pages, chosen by page hash.', unit: 'pages' })),
          chunks: Type.Optional(
            count({ description: 'At most as many pages as give this many chunks.', unit: 'chunks' }),
          ),
        },
        { minProperties: 1, description: 'Keeps a corpus small.' },
      ),
    ),
    near_duplicates: Type.Optional(
      object(
        {
          threshold: share({
            exclusiveMinimum: 0,
            description: 'Estimated Jaccard similarity of word shingles from which a page is dropped.',
            unit: 'share',
          }),
        },
        { description: 'Drop near duplicates by MinHash; exact ones are always dropped.' },
      ),
    ),
  },
  { description: 'The pages an agent can find and read.' },
);

const Index = object(
  {
    embedder: object(
      {
        model: modelName({ description: 'Name in the registry `embedders` of the profile.' }),
        precision: words(['fp32', 'fp16', 'int8'], { default: 'fp32', description: 'Weights of the embedder.' }),
      },
      { description: 'What turns text into vectors.' },
    ),
    chunk: object(
      {
        tokens: tokens({
          default: 200,
          minimum: 8,
          maximum: 8192,
          description: "Length of a chunk, counted by the embedder's tokenizer.",
        }),
        overlap: tokens({
          default: 40,
          minimum: 0,
          maximum: 4096,
          description: 'Tokens a chunk shares with the one before.',
        }),
      },
      { default: {}, description: 'How pages are cut.' },
    ),
    dense: object(
      {
        type: words(['hnsw', 'flat', 'diskann'], { default: 'hnsw', description: 'Index over the vectors.' }),
        metric: words(['cosine', 'ip', 'l2'], { default: 'cosine', description: 'Similarity of vectors.' }),
      },
      { default: {}, description: 'Search by meaning.' },
    ),
    sparse: words(['bm25', 'none'], { default: 'bm25', description: 'Search by words.' }),
    fusion: byKind(
      [
        object({
          kind: Type.Literal('rrf', { description: 'Reciprocal rank fusion.' }),
          k: Type.Integer({ minimum: 1, maximum: 10_000, default: 60, description: 'Constant added to each rank.' }),
        }),
        object({
          kind: Type.Literal('weighted', { description: 'Weighted sum of normalised scores.' }),
          dense: Type.Number({ minimum: 0, maximum: 1000, default: 1, description: 'Weight of the dense score.' }),
          sparse: Type.Number({ minimum: 0, maximum: 1000, default: 1, description: 'Weight of the BM25 score.' }),
        }),
      ],
      { default: { kind: 'rrf' }, description: 'How the two rankings become one.' },
    ),
  },
  { description: 'Chunks, vectors and words, in Milvus.' },
);

const TaskCapability = Type.Unsafe<{ judge: true } | { column: string; map: Record<string, TaskCapabilityName> }>({
  type: 'object',
  properties: {
    judge: { type: 'boolean', const: true, description: 'The judge of the spec says it of each question.' },
    column: { type: 'string', minLength: 1, description: 'Column whose value decides.' },
    map: {
      type: 'object',
      minProperties: 1,
      additionalProperties: { type: 'string', enum: CAPABILITIES, description: 'A capability.' },
      description: 'Capability by value of the column; other values are unknown.',
    },
  },
  additionalProperties: false,
  anyOf: [{ required: ['judge'] }, { required: ['column', 'map'] }],
  description:
    'How the capability of a question is found, when no column names it: `{ judge: true }`, or `{ column: NAME, map: { VALUE: CAPABILITY } }`.',
});
type TaskCapabilityName = (typeof CAPABILITIES)[number];

const TaskSource = byKind(
  [
    object({
      kind: Type.Literal('generated', { description: 'Questions made from the corpus, with checkable answers.' }),
      from: Type.Literal('corpus', { default: 'corpus', description: 'What they are made from.' }),
      count: count({ description: 'Questions to make, over all capabilities and splits.', unit: 'tasks' }),
      seed: seed('Chooses pages and templates; derived from the root seed when absent.'),
    }),
    object({
      kind: words(['jsonl', 'parquet'], { description: 'Questions with reference answers, one a record.' }),
      path: path({ description: 'File, or glob, relative to the spec or below `${env:NAME}`.' }),
      format: words(TASK_FORMATS, {
        default: 'columns',
        description: 'Shape of a record: a column each, or as the named system publishes its questions.',
      }),
      capability: Type.Optional(TaskCapability),
      fields: object(
        {
          id: Type.String({ default: TASK_COLUMNS.id, description: 'Column with the id.' }),
          question: Type.String({ default: TASK_COLUMNS.question, description: 'Column with the question.' }),
          answer: Type.String({ default: TASK_COLUMNS.answer, description: 'Column with the reference answer.' }),
          aliases: Type.String({
            default: TASK_COLUMNS.aliases,
            description: 'Column with other spellings that count as correct.',
          }),
          gold_ids: Type.String({
            default: TASK_COLUMNS.gold_ids,
            description: 'Column with ids of evidence pages; their URLs are `doc:<id>`.',
          }),
          deny_urls: Type.String({
            default: TASK_COLUMNS.deny_urls,
            description: 'Column with URLs the agent must not see.',
          }),
          capability: Type.String({
            default: TASK_COLUMNS.capability,
            description: 'Column with the capability asked for.',
          }),
        },
        { default: {}, description: 'Which columns are read; only question and answer must exist.' },
      ),
      limit,
      expect,
      seed: seed('Chooses records when `limit` is set; derived from the root seed when absent.'),
      ...origin,
    }),
  ],
  { description: 'Where questions come from.' },
);

const Tasks = object(
  {
    sources: named(TaskSource, { description: 'Sources of questions, by name.' }),
    mix: Type.Optional(
      object(
        Object.fromEntries(
          CAPABILITIES.map((name) => [
            name,
            Type.Optional(share({ description: `Share of ${name.replace('_', ' ')} questions.`, unit: 'share' })),
          ]),
        ),
        {
          minProperties: 1,
          description:
            'Capabilities of the questions of each source; the shares sum to 1. Of imported ones as many are taken as have the mix.',
        },
      ),
    ),
    splits: named(share({ exclusiveMinimum: 0, description: 'Share of the tasks.', unit: 'share' }), {
      default: { train: 1 },
      description: 'Disjoint parts of the tasks; the shares sum to 1.',
    }),
    limit: Type.Optional(
      count({ description: 'Take this many tasks over all sources, chosen by the seed.', unit: 'tasks' }),
    ),
    seed: seed('Divides tasks among splits; derived from the root seed when absent.'),
  },
  { description: 'Questions with answers.' },
);

const Decontaminate = object(
  {
    against: Type.Array(modelName({ description: 'Name in the registry `datasets` of the profile.' }), {
      minItems: 1,
      uniqueItems: true,
      description: 'Benchmark sets whose questions must not be trained on.',
    }),
    method: Type.Literal('ngram', {
      default: 'ngram',
      description: 'Equal questions, shared evidence URLs, and shared runs of n words.',
    }),
    n: Type.Integer({ minimum: 3, maximum: 100, default: 13, description: 'Words of a run.', unit: 'words' }),
  },
  { description: 'Training tasks are checked against benchmark sets; one that overlaps stops the run.' },
);

const Policy = object(
  {
    base: modelName({ description: 'Name in the registry `models` of the profile.' }),
    engine: words(['vllm', 'sglang'], {
      default: 'vllm',
      description: 'What serves it; recorded in manifests.',
      key: false,
    }),
    dtype: words(['float32', 'bfloat16'], {
      default: 'float32',
      description: 'Number format of the base weights while training.',
    }),
    adapter: Type.Optional(
      object(
        {
          lora_rank: Type.Integer({ minimum: 1, maximum: 4096, description: 'Rank of the update.' }),
          lora_alpha: Type.Optional(
            Type.Number({
              exclusiveMinimum: 0,
              maximum: 65_536,
              description: 'Scale of the update times its rank; twice the rank when absent.',
            }),
          ),
          lora_dropout: share({
            default: 0,
            exclusiveMaximum: 1,
            description: 'Dropout before the adapter.',
            unit: 'share',
          }),
        },
        { description: 'Train a LoRA adapter on all linear layers; all weights are trained when absent.' },
      ),
    ),
  },
  { description: 'The model that is trained.' },
);

const contextManagement = (options: Record<string, unknown>) =>
  words(['none', 'drop_observations', 'summarize'], {
    description: 'What is done when the context is full: force the answer, drop old observations, or summarise.',
    ...options,
  });

/** Shares of calls that go wrong in a named way, drawn by the seed of the trajectory. */
function toolFaults<const W extends readonly string[]>(ways: W) {
  const shares = Object.fromEntries(
    ways.map((way) => [
      way,
      Type.Optional(share({ exclusiveMinimum: 0, description: `Calls with the result ${way}.`, unit: 'share' })),
    ]),
  );
  return Type.Unsafe<Partial<Record<W[number], number>>>(
    object(shares, { minProperties: 1, description: 'Share of calls by what goes wrong.' }),
  );
}

const Agent = object(
  {
    tools: Type.Array(Type.String({ description: 'A tool.' }), {
      minItems: 1,
      uniqueItems: true,
      default: ['search', 'visit'],
      description: 'Tools the agent may call.',
    }),
    max_turns: count({
      default: 8,
      maximum: 10_000,
      description: 'Completions before the answer is forced.',
      unit: 'turns',
    }),
    max_turn_tokens: tokens({ default: 512, minimum: 8, description: 'Length of one completion.' }),
    observation_tokens: tokens({ default: 512, minimum: 8, description: 'Length of one observation.' }),
    search_results: count({ default: 5, maximum: 100, description: 'Results of one search call.', unit: 'results' }),
    context_management: contextManagement({ default: 'none' }),
    terminate_on_answer: Type.Boolean({
      default: true,
      description: 'Whether the first answer ends the trajectory, or may be taken back.',
    }),
    deny_urls: words(['none', 'from_task'], {
      default: 'from_task',
      description: 'Whether URLs a task forbids are hidden.',
    }),
    faults: Type.Optional(
      object(
        {
          search: Type.Optional(toolFaults(['empty', 'error'])),
          visit: Type.Optional(toolFaults(['empty', 'error', 'truncated'])),
        },
        { minProperties: 1, description: 'Tools that fail now and then, to see what an agent makes of it.' },
      ),
    ),
  },
  { description: 'The agent loop.' },
);

const Reward = object(
  {
    outcome: words(['exact_match', 'f1', 'judge'], {
      default: 'exact_match',
      description: 'What the answer is scored by, after normalisation.',
    }),
    format_penalty: Type.Number({
      minimum: 0,
      maximum: 100,
      default: 1,
      description: 'Reward of a trajectory with invalid format is minus this.',
    }),
  },
  { description: 'What a trajectory earns.' },
);

const Judge = object(
  {
    model: modelName({ description: 'Name in the registry `models` of the profile.' }),
    url: Type.Optional(
      Type.Unsafe<string | { env: string }>({
        anyOf: [
          { type: 'string', maxLength: 2048 },
          {
            type: 'object',
            properties: { env: { type: 'string', pattern: '^[A-Za-z_][A-Za-z0-9_]*$' } },
            required: ['env'],
            additionalProperties: false,
          },
        ],
        description: 'Base address of an OpenAI-compatible server, such as `http://host:8000/v1`; or `{ env: NAME }`.',
        key: false,
      }),
    ),
    api_key: Type.Optional(secret('Token of the judge.')),
    prompt: path({ description: 'File with the prompt; slots {question}, {answer}, {reference}.' }),
    temperature: Type.Number({ minimum: 0, maximum: 2, default: 0.1, description: 'Of the judge.' }),
    max_tokens: Type.Integer({
      minimum: 16,
      maximum: 32_768,
      default: 1024,
      description: 'Tokens a verdict may have.',
      unit: 'tokens',
    }),
    retries: Type.Integer({
      minimum: 0,
      maximum: 100,
      default: 3,
      description: 'Attempts after a failed one.',
      key: false,
    }),
    on_failure: words(['retry_later', 'fail'], {
      default: 'retry_later',
      description:
        'While the judge does not answer: wait and ask again, or count the trajectory as failed; it is never a zero.',
      key: false,
    }),
  },
  { description: 'A model that scores answers.' },
);

const Sampling = object(
  {
    temperature: Type.Number({
      minimum: 0,
      maximum: 100,
      default: 1,
      description: 'Divides the logits; 0 takes the likeliest token.',
    }),
    top_p: share({
      exclusiveMinimum: 0,
      default: 1,
      description: 'Smallest set of tokens with this much probability.',
      unit: 'share',
    }),
  },
  { description: 'How completions are sampled.' },
);

const Difficulty = object(
  {
    tasks: Type.Optional(
      count({ description: 'How many tasks are tried; all of the split when absent.', unit: 'tasks' }),
    ),
    rollouts: Type.Integer({
      minimum: 2,
      maximum: 1024,
      description: 'Trajectories sampled per task to estimate its pass rate.',
      unit: 'trajectories',
    }),
    keep: object(
      {
        min_passes: Type.Integer({
          minimum: 0,
          maximum: 1024,
          description: 'Fewest correct trajectories of a kept task.',
        }),
        max_passes: Type.Integer({
          minimum: 0,
          maximum: 1024,
          description: 'Most correct trajectories of a kept task.',
        }),
      },
      { description: 'Which tasks are worth training on: those that are sometimes solved.' },
    ),
    stop_decided: Type.Boolean({
      default: true,
      description:
        'Sample a task no further once no remaining rollout can change whether it is kept; pass rates then stand on fewer rollouts.',
    }),
    keep_mix: Type.Boolean({
      default: false,
      description: 'Draw kept tasks so that the capabilities have the shares they had before filtering.',
    }),
    buckets: Type.Optional(
      object(
        {
          by: Type.Literal('trajectory_tokens', {
            default: 'trajectory_tokens',
            description: 'Mean length of the trajectories of a task.',
          }),
          edges: Type.Array(tokens({ description: 'Where one bucket ends and the next begins.' }), {
            minItems: 1,
            maxItems: 100,
            description: 'Edges, rising.',
          }),
          weights: Type.Optional(
            Type.Array(
              Type.Number({ minimum: 0, maximum: 1000, description: 'How often tasks of the bucket are taken.' }),
              { description: 'One more than there are edges; all equal when absent.' },
            ),
          ),
        },
        { description: 'Kept tasks by length: reported, and weighed when `weights` says so.' },
      ),
    ),
  },
  { description: 'Measure pass rates and keep partly solvable tasks; the same rule filters groups while training.' },
);
/** While training, pass rates age. */
const RlDifficulty = object(
  {
    ...Difficulty.properties,
    refresh_every: Type.Optional(
      count({ description: 'Steps after which pass rates are measured again.', unit: 'steps' }),
    ),
  },
  { description: 'Measure pass rates and keep partly solvable tasks; the same rule filters groups while training.' },
);

const optimizerFields = {
  learning_rate: Type.Number({ exclusiveMinimum: 0, maximum: 1, description: 'Peak learning rate of AdamW.' }),
  schedule: words(['constant', 'linear', 'cosine'], {
    default: 'constant',
    description: 'Course of the learning rate after warm-up.',
  }),
  warmup: share({
    default: 0,
    description: 'Part of all steps in which the learning rate rises from 0.',
    unit: 'share',
  }),
  weight_decay: Type.Number({ minimum: 0, maximum: 10, default: 0.01, description: 'Decoupled weight decay.' }),
  betas: Type.Unsafe<[number, number]>({
    type: 'array',
    items: { type: 'number', minimum: 0, exclusiveMaximum: 1 },
    minItems: 2,
    maxItems: 2,
    default: [0.9, 0.95],
    description: 'Decay of the first and second moment.',
  }),
  max_grad_norm: Type.Number({
    exclusiveMinimum: 0,
    maximum: 1e6,
    default: 1,
    description: 'Gradients are clipped to this norm.',
  }),
};

const bound = (description: string) =>
  Type.Optional(Type.Number({ minimum: -1e12, maximum: 1e12, description, key: false }));
const Gate = object(
  {
    metric: Type.Optional(
      Type.String({
        maxLength: 200,
        description:
          'A number of a benchmark that is measured after this stage: `eval/BENCHMARK/avg_at_2`, `pass_at_2`, `f1` …; with `_low` or `_high` the ends of its 95 % interval.',
        key: false,
      }),
    ),
    at_least: bound('The least the metric may be.'),
    at_most: bound('The most the metric may be.'),
    on_fail: words(['stop', 'ask'], {
      default: 'stop',
      description: 'When the metric is beyond: end here (exit 3), or wait for `exp approve RUN STAGE`.',
      key: false,
    }),
    approve: Type.Boolean({
      default: false,
      description: 'Wait for `exp approve RUN STAGE` in any case.',
      key: false,
    }),
  },
  { description: 'What must hold before other stages start from this one.' },
);

/** Limits on curves, and what happens beyond them. */
const Health = object(
  {
    limits: Type.Unsafe<Record<string, { min?: number; max?: number }>>({
      type: 'object',
      minProperties: 1,
      additionalProperties: object(
        {
          min: Type.Optional(Type.Number({ minimum: -1e12, maximum: 1e12, description: 'The least it may be.' })),
          max: Type.Optional(Type.Number({ minimum: -1e12, maximum: 1e12, description: 'The most it may be.' })),
        },
        { minProperties: 1, description: 'Bounds of one metric; a value that is no number is beyond them.' },
      ),
      description: 'Bounds by metric, as it is called in MLflow: `train/entropy`, `rollout/repeat_rate` …',
    }),
    for: count({
      default: 1,
      maximum: 1_000_000,
      description: 'Steps in a row that one metric must be beyond its bounds.',
      unit: 'steps',
    }),
    on_breach: words(['pause', 'back_to_best'], {
      default: 'pause',
      description:
        'Hold the run until `exp continue`, after which steps are counted anew; or end the stage with the best checkpoint by `evaluate`.',
    }),
  },
  { description: 'When training is in trouble. Looked at after each step.' },
);

const stageFields = {
  like: Type.Optional(
    Type.String({
      description: 'Another stage; this one has everything it says, and changes what is written here.',
      composed: true,
    }),
  ),
  from: Type.String({
    ...checkpoint,
    default: '${policy.base}',
    description: 'Weights to start from: `${policy.base}`, or `${stages.NAME.checkpoint}` of an earlier stage.',
  }),
  tasks: Type.Optional(
    object(
      {
        split: Type.Optional(Type.String({ description: 'A split of `tasks.splits`; `train` when absent.' })),
        source: Type.Optional(Type.String({ description: 'One of `tasks.sources`; all of them when absent.' })),
      },
      { minProperties: 1, description: 'Which tasks are used.' },
    ),
  ),
  context_length: tokens({
    minimum: 64,
    description: 'Tokens a whole trajectory may have: prompt, turns, observations and the answer.',
  }),
  agent: Type.Optional(overrides(Agent, { description: 'Differences from `agent`.' })),
  reward: Type.Optional(overrides(Reward, { description: 'Differences from `reward`.' })),
  seed: seed('Seed of the nodes of this stage; derived from the root seed when absent.'),
  resources: Type.Optional(
    object(
      {
        gpu: Type.Integer({
          minimum: 0,
          maximum: 100_000,
          default: 0,
          description: 'GPUs over all machines, with one process each; 0 trains on the CPU.',
          unit: 'GPUs',
          key: false,
        }),
        nodes: count({ default: 1, maximum: 10_000, description: 'Machines.', unit: 'machines', key: false }),
        context_parallel: count({
          default: 1,
          maximum: 1024,
          description: 'GPUs that share one sequence.',
          unit: 'GPUs',
          key: false,
        }),
      },
      { description: 'What the trainer is given.' },
    ),
  ),
  gate: Type.Optional(Gate),
  checkpoint: object(
    {
      every: count({
        default: 1,
        maximum: 1_000_000,
        description: 'Steps between durable checkpoints.',
        unit: 'steps',
        key: false,
      }),
      keep: object(
        {
          last: count({
            default: 2,
            maximum: 10_000,
            description: 'Newest checkpoints kept.',
            unit: 'checkpoints',
            key: false,
          }),
          best: Type.Optional(
            count({
              maximum: 10_000,
              description:
                'Best checkpoints kept, by the metric of `until.plateau`, else the first of the benchmark of `evaluate`.',
              unit: 'checkpoints',
              key: false,
            }),
          ),
        },
        { default: {}, description: 'Retention.' },
      ),
    },
    { default: {}, description: 'Checkpoints within the stage.' },
  ),
};

/** Message-format trajectories of published systems, as BACKENDS.md of the recipes names them. */
export const TRAJECTORY_FORMATS = ['messages', 'sharegpt', 'webdancer', 'redsearcher', 'literesearcher'] as const;

const SftStage = object({
  kind: Type.Literal('sft', { description: 'Next-token loss on sampled tokens.' }),
  ...stageFields,
  trajectories: object(
    {
      source: path({
        description:
          '`demonstrations` (a scripted expert on generated tasks), or a file, folder or glob of trajectories (JSONL, JSON or Parquet).',
      }),
      format: Type.Optional(
        words(TRAJECTORY_FORMATS, {
          description: 'Shape of the records of a file; found out from the first one when absent.',
        }),
      ),
      count: Type.Optional(
        count({
          description: 'Trajectories before resampling; of a file, chosen by the seed among those that cleaning keeps.',
          unit: 'trajectories',
        }),
      ),
      resample: Type.Optional(
        object(
          {
            by: Type.Literal('turns', { default: 'turns', description: 'What a trajectory is weighed by.' }),
            bands: Type.Array(
              object({
                up_to: Type.Optional(
                  count({ description: 'Most turns of this band; the last band has none.', unit: 'turns' }),
                ),
                weight: Type.Integer({ minimum: 0, maximum: 1000, description: 'Copies of each trajectory.' }),
              }),
              { minItems: 1, maxItems: 100, description: 'Bands in rising order.' },
            ),
          },
          { description: 'Repeat longer trajectories.' },
        ),
      ),
      clean: Type.Optional(
        object(
          {
            tools: Type.Optional(
              Type.Array(Type.String({ description: 'A tool.' }), {
                minItems: 1,
                uniqueItems: true,
                description: 'Turns that call other tools are removed; `agent.tools` when absent.',
              }),
            ),
            drop_repeated_calls: Type.Boolean({
              default: true,
              description: 'Remove turns that repeat an earlier call.',
            }),
            require_valid_format: Type.Boolean({ default: true, description: 'Keep well-formed trajectories only.' }),
            require_correct: Type.Boolean({ default: true, description: 'Keep correct trajectories only.' }),
            verdict: Type.Optional(
              Type.String({
                minLength: 1,
                maxLength: 200,
                description:
                  'Column of a file with a verdict on the answer (true, 1, yes, correct); without it, and for rows that have none, the reference decides by exact match.',
              }),
            ),
          },
          { description: 'What is dropped before training.' },
        ),
      ),
      licence: Type.Optional(
        Type.String({ maxLength: 500, description: 'Licence of a file; shown in manifests and reports.' }),
      ),
      provenance: Type.Optional(
        Type.String({ maxLength: 2000, description: 'Where a file came from; shown in manifests and reports.' }),
      ),
      expect,
    },
    { description: 'What is imitated.' },
  ),
  optimizer: object(
    {
      ...optimizerFields,
      batch: count({ maximum: 1_000_000, description: 'Trajectories an optimizer step.', unit: 'trajectories' }),
      epochs: count({ default: 1, maximum: 10_000, description: 'Passes over the data.', unit: 'epochs' }),
    },
    { description: 'AdamW.' },
  ),
  loss: words(['token_mean', 'seq_mean_token_mean'], {
    default: 'token_mean',
    description: 'How token losses of a step are averaged.',
  }),
});

const InformationGain = object(
  {
    measure: Type.Optional(words(IGPO_MEASURES, { description: 'Of the reference answer, whose change is the gain.' })),
    beliefs: Type.Optional(
      words(['trainer', 'engine'], {
        description:
          'What computes the beliefs. When absent the engine, while it rolls out, at temperature 1 and up to a context of 8,192 tokens; else the trainer.',
        key: false,
      }),
    ),
    scope: Type.Optional(
      Type.Array(Type.String({ description: 'A tool.' }), {
        minItems: 1,
        uniqueItems: true,
        description: 'Turns that call these tools have a gain; a visit absorbs the searches before it.',
      }),
    ),
    every: Type.Optional(count({ maximum: 10_000, description: 'Beliefs at every so many turns.', unit: 'turns' })),
    normalize: Type.Optional(
      words(IGPO_NORMALIZATIONS, {
        description: 'How gains and outcomes are put on one scale.',
      }),
    ),
    weight: Type.Optional(Type.Number({ minimum: 0, maximum: 1000, description: 'Weight of the gains.' })),
  },
  { description: 'Of igpo: turn-level rewards from the belief in the reference answer.' },
);

const Kl = object({
  coefficient: Type.Number({ minimum: 0, maximum: 100, description: 'Weight of the KL term.' }),
  estimator: words(['k1', 'k2', 'k3'], { default: 'k3', description: 'Estimator of the KL divergence.' }),
  reference: Type.Optional(
    Type.String({
      ...checkpoint,
      description: 'Weights it is measured to; those the stage starts from when absent.',
    }),
  ),
});

const RlStage = object({
  kind: Type.Literal('rl', { description: "Reinforcement learning from the agent's own trajectories." }),
  ...stageFields,
  backend: words(['exp', 'verl'], {
    default: 'exp',
    description:
      'What samples and trains: `exp`, or verl on the Ray cluster of the profile, without turn journal and step ledger.',
  }),
  difficulty: Type.Optional(RlDifficulty),
  algorithm: object(
    {
      name: words(ALGORITHMS, {
        default: 'grpo',
        description: 'How advantages are computed and ratios clipped; fills in what is not written here.',
      }),
      preset: Type.Optional(
        words(IGPO_PRESET_NAMES, {
          description: 'Of igpo: the published variant that fills in what is not written here.',
        }),
      ),
      gamma: Type.Optional(
        share({ description: 'Of igpo: discount from one reward position to the next.', unit: 'share' }),
      ),
      information_gain: Type.Optional(InformationGain),
      clip: object(
        {
          low: Type.Optional(
            Type.Number({
              minimum: 0,
              maximum: 1,
              description: 'Ratio is clipped below 1 minus this; 0.2 when absent, of gspo 0.0003, of cispo 1.',
            }),
          ),
          high: Type.Optional(
            Type.Number({
              minimum: 0,
              maximum: 100,
              description:
                'Ratio is clipped above 1 plus this; 0.2 when absent, of dapo 0.28, of gspo 0.0004, of cispo 4.',
            }),
          ),
          dual: Type.Optional(
            Type.Number({ exclusiveMinimum: 1, maximum: 1000, description: 'Dual clip for negative advantages.' }),
          ),
        },
        { default: {}, description: 'Clipping of the probability ratio.' },
      ),
      kl: Type.Optional(
        Type.Unsafe<0 | Static<typeof Kl>>({
          anyOf: [{ type: 'number', const: 0 }, Kl],
          description: 'KL term to the weights the stage started from; 0 for none.',
        }),
      ),
      entropy: Type.Number({
        minimum: 0,
        maximum: 100,
        default: 0,
        description: 'Weight of the entropy of the policy, which is then rewarded.',
      }),
      loss: Type.Optional(
        words(LOSS_AGGREGATIONS, {
          description:
            'How token losses of a step are averaged; `token_mean` when absent, of dr_grpo `seq_mean_token_sum`, of gspo `seq_mean_token_mean`.',
        }),
      ),
      overlong: Type.Optional(
        object(
          {
            buffer: tokens({
              minimum: 1,
              description: 'Tokens before the end of the context in which the reward falls.',
            }),
            penalty: Type.Number({
              minimum: 0,
              maximum: 1000,
              default: 1,
              description: 'What a trajectory that fills the context loses.',
            }),
          },
          { description: 'Take something off the outcome of trajectories that nearly fill the context, as dapo does.' },
        ),
      ),
      importance: Type.Optional(
        object(
          {
            level: words(['token', 'sequence'], {
              default: 'token',
              description: 'What a correction weight belongs to.',
            }),
            truncate: Type.Number({ minimum: 1, maximum: 1000, description: 'Largest weight.' }),
            veto: Type.Optional(
              Type.Number({
                exclusiveMinimum: 0,
                maximum: 1,
                description: 'Trajectories with a token ratio below this are masked.',
              }),
            ),
          },
          { description: 'Correction for the difference between engine and trainer.' },
        ),
      ),
      normalize_std: Type.Optional(
        Type.Boolean({
          description: 'Divide advantages by the standard deviation of the group; true when absent, of dr_grpo false.',
        }),
      ),
    },
    { default: {}, description: 'From rewards to gradients.' },
  ),
  rollout: object(
    {
      group_size: Type.Integer({
        minimum: 2,
        maximum: 4096,
        description: 'Trajectories per task, compared with each other.',
        unit: 'trajectories',
      }),
      prompts_per_step: count({ maximum: 1_000_000, description: 'Tasks an optimizer step.', unit: 'tasks' }),
      temperature: Type.Number({
        exclusiveMinimum: 0,
        maximum: 100,
        default: 1,
        description: 'Divides the logits, while sampling and in the loss.',
      }),
      top_p: share({
        exclusiveMinimum: 0,
        default: 1,
        description: 'Smallest set of tokens with this much probability.',
        unit: 'share',
      }),
      cutoff: Type.Optional(
        share({
          exclusiveMinimum: 0,
          description:
            'When this part of a batch (at most 32 trajectories) has ended, each of the others finishes its turn and is asked for its answer.',
          unit: 'share',
        }),
      ),
      refills: Type.Integer({
        minimum: 0,
        maximum: 1000,
        default: 2,
        description:
          'How often a step may sample other tasks in the place of groups that are dropped, as many as are missing: those outside `difficulty.keep`, and those whose rewards are all the same.',
      }),
      max_staleness: Type.Integer({
        minimum: 0,
        maximum: 1,
        default: 0,
        description: 'Steps the sampling weights may lag behind; 0 is strictly on-policy.',
        unit: 'steps',
      }),
    },
    { description: 'Sampling of groups.' },
  ),
  optimizer: object(
    {
      ...optimizerFields,
      minibatch: Type.Optional(
        count({
          description: 'Tasks (whole groups) an update; `prompts_per_step` when absent, which is on-policy.',
          unit: 'tasks',
        }),
      ),
    },
    { description: 'AdamW.' },
  ),
  until: object(
    {
      steps: Type.Optional(count({ maximum: 10_000_000, description: 'Optimizer steps.', unit: 'steps' })),
      epochs: Type.Optional(count({ maximum: 1_000_000, description: 'Passes over the tasks.', unit: 'epochs' })),
      plateau: Type.Optional(
        object(
          {
            metric: metricName({ description: 'A metric of `evaluate`, such as `eval/internal/avg_at_3`.' }),
            patience: count({ description: 'Steps without a gain over the best before.', unit: 'steps' }),
            min_delta: Type.Number({
              minimum: 0,
              maximum: 1000,
              default: 0,
              description: 'Smallest difference that is a gain.',
            }),
          },
          { description: 'No gain for a while.' },
        ),
      ),
    },
    {
      minProperties: 1,
      description: 'When the stage ends: at the first of these. An epoch is as many tasks as the stage begins with.',
    },
  ),
  evaluate: Type.Optional(
    object(
      {
        benchmark: Type.String({ description: 'One of `benchmarks`.' }),
        every: count({ description: 'Steps between evaluations.', unit: 'steps' }),
      },
      { description: 'Measure a benchmark within the stage.' },
    ),
  ),
  health: Type.Optional(Health),
});

const ProfileStage = object({
  kind: Type.Literal('profile', { description: 'Measure pass rates without training on them.' }),
  ...stageFields,
  difficulty: Difficulty,
  sampling: object({ ...Sampling.properties }, { default: {}, description: 'How completions are sampled.' }),
});

const Stage = byKind([SftStage, RlStage, ProfileStage], { description: 'One stage of the curriculum.' });

const turnLimit = count({ maximum: 10_000, description: 'Completions before the answer is forced.', unit: 'turns' });

const BenchmarkDataset = object(
  {
    split: Type.Optional(Type.String({ description: 'A split of `tasks.splits`.' })),
    name: Type.Optional(modelName({ description: 'Or a name in the registry `datasets` of the profile.' })),
    limit: Type.Optional(
      count({ description: 'Take this many questions, the same for every checkpoint.', unit: 'questions' }),
    ),
    seed: seed('Chooses the questions; derived from the root seed when absent.'),
  },
  { minProperties: 1, description: 'What is asked: questions of a split, or of a named dataset.' },
);

const Benchmark = object(
  {
    dataset: Type.Unsafe<string | Static<typeof BenchmarkDataset>>({
      anyOf: [modelName({ description: 'Name in the registry `datasets` of the profile.' }), BenchmarkDataset],
      description: 'What is asked: a name in the registry `datasets` of the profile, or a part of the tasks.',
    }),
    samples: count({ default: 1, maximum: 1024, description: 'k: trajectories per question.', unit: 'trajectories' }),
    metrics: Type.Array(words(['avg@k', 'pass@k'], { description: 'A metric.' }), {
      minItems: 1,
      uniqueItems: true,
      default: ['avg@k'],
      description: 'What is reported, with 95 % intervals.',
    }),
    after: Type.Unsafe<string | string[]>({
      anyOf: [{ type: 'string' }, { type: 'array', items: { type: 'string' }, minItems: 1, uniqueItems: true }],
      default: 'last',
      description: '`base`, `last` or stages whose checkpoints are measured.',
    }),
    context_length: Type.Optional(
      tokens({ minimum: 64, description: 'Tokens a trajectory may have; that of the longest stage when absent.' }),
    ),
    sampling: object({ ...Sampling.properties }, { default: {}, description: 'How completions are sampled.' }),
    max_turns: Type.Optional(
      Type.Unsafe<number | number[]>({
        anyOf: [turnLimit, { type: 'array', items: turnLimit, minItems: 1, maxItems: 100, uniqueItems: true }],
        description:
          'Completions before the answer is forced; `agent.max_turns` when absent. A list measures each: `NAME_turns_50` …',
        unit: 'turns',
      }),
    ),
    context_management: Type.Optional(contextManagement({})),
    max_turn_tokens: Type.Optional(
      tokens({ minimum: 8, description: 'Length of one completion; `agent.max_turn_tokens` when absent.' }),
    ),
    reward: Type.Optional(overrides(Reward, { description: 'Differences from `reward`.' })),
    seed: seed('Seed of the sampling; derived from the root seed when absent.'),
  },
  { description: 'A protocol by which checkpoints are measured.' },
);

const benchmarkNumber = (options: Record<string, unknown>) => Type.Number({ minimum: 0, maximum: 100, ...options });

/** Numbers by benchmark, as published: percent. */
const Reference = Type.Unsafe<ReferenceSection>({
  type: 'object',
  minProperties: 1,
  properties: {
    world: Type.String({
      maxLength: 200,
      default: 'unknown',
      description: 'What was searched: `web` for the live web; results of other worlds are other protocols.',
      key: false,
    }),
    protocol: Type.Optional(
      Type.String({ maxLength: 2000, description: 'How it was measured, in words.', key: false }),
    ),
    source: Type.Optional(Type.String({ maxLength: 2000, description: 'Where the numbers stand.', key: false })),
  },
  additionalProperties: {
    anyOf: [
      benchmarkNumber({ description: 'Result.', unit: 'percent', key: false }),
      object({
        value: benchmarkNumber({ description: 'Result.', unit: 'percent', key: false }),
        protocol: Type.String({ maxLength: 2000, description: 'What was different for this one.', key: false }),
      }),
    ],
    description: 'Result on the benchmark of this name.',
  },
  description: 'Results of one system, by benchmark.',
});
export interface ReferenceSection {
  [benchmark: string]: number | { value: number; protocol: string } | string | undefined;
  world: string;
  protocol?: string;
  source?: string;
}

const Compare = object(
  {
    metric: Type.Optional(
      metricName({ description: 'What arms are compared by, such as `eval/held_out/avg_at_2`.', key: false }),
    ),
    at: Type.Optional(
      Type.String({ description: '`base`, `last` or the stage after which it was measured.', key: false }),
    ),
    control: Type.Optional(
      Type.String({ description: 'Arm the others are compared with; the first when absent.', key: false }),
    ),
  },
  { minProperties: 1, description: 'How the arms of a run are compared unless `exp compare` is told otherwise.' },
);

const Budget = object(
  {
    tokens: Type.Optional(count({ maximum: 1e15, description: 'Sampled tokens.', unit: 'tokens', key: false })),
    tool_calls: Type.Optional(
      count({ maximum: 1e15, description: 'Calls of search and visit.', unit: 'calls', key: false }),
    ),
    gpu_hours: Type.Optional(
      Type.Number({ minimum: 0, maximum: 1e9, description: 'GPU time.', unit: 'hours', key: false }),
    ),
    money: Type.Optional(
      Type.Number({
        minimum: 0,
        maximum: 1e12,
        description: 'All of it by the prices of the profile, in its currency.',
        unit: 'money',
        key: false,
      }),
    ),
    on_exceed: words(['pause', 'stop'], { default: 'pause', description: 'What happens at the bound.', key: false }),
  },
  { description: 'Bounds on what a run may use.' },
);

const point = { type: 'object', minProperties: 1 } as const;

const Sweep = object(
  {
    matrix: Type.Optional(
      Type.Unsafe<Record<string, unknown[]>>({
        type: 'object',
        minProperties: 1,
        additionalProperties: { type: 'array', minItems: 1, uniqueItems: true, description: 'Values.', key: false },
        description: 'Values to try, by dotted path; every combination is an arm, of every ablation.',
        composed: true,
      }),
    ),
    exclude: Type.Optional(
      Type.Array(Type.Unsafe<Record<string, unknown>>({ ...point, description: 'Values of a combination.' }), {
        description: 'Combinations left out: those that have all values of an item.',
        composed: true,
      }),
    ),
    include: Type.Optional(
      Type.Array(Type.Unsafe<Record<string, unknown>>({ ...point, description: 'Values of a combination.' }), {
        description: 'Further combinations.',
        composed: true,
      }),
    ),
    max_parallel: Type.Optional(
      count({ maximum: 1024, description: 'Arms at work at a time; all when absent.', unit: 'arms', key: false }),
    ),
    fail_fast: Type.Boolean({ default: false, description: 'Whether an arm that fails ends the others.', key: false }),
  },
  { description: 'Arms by a grid of values, and how arms are run.' },
);

export const Experiment = object(
  {
    api_version: Type.Literal('exp/v1', { description: 'Version of this language.', key: false }),
    extends: Type.Optional(
      Type.Array(path({ description: 'A spec.' }), {
        maxItems: 32,
        description: 'Specs this one is laid over, left to right.',
        composed: true,
      }),
    ),
    name: Type.String({
      pattern: '^[a-z][a-z0-9_-]{0,62}$',
      code: 'NAME',
      description: 'Name of the experiment.',
      key: false,
    }),
    description: Type.Optional(Type.String({ maxLength: 10_000, description: 'What it is about.', key: false })),
    seed: Type.Integer({ minimum: 0, maximum: 2_147_483_647, default: 0, description: 'Root of all seeds.' }),
    vars: Type.Optional(
      Type.Unsafe<Record<string, unknown>>({
        type: 'object',
        propertyNames: { type: 'string', pattern: NAME_PATTERN, code: 'NAME' },
        description: 'Values used elsewhere as `${vars.NAME}`.',
        key: false,
      }),
    ),
    corpus: Corpus,
    index: Index,
    decontaminate: Type.Optional(Decontaminate),
    tasks: Tasks,
    policy: Policy,
    agent: Type.Unsafe<Static<typeof Agent>>({ ...Agent, default: {} }),
    reward: Type.Unsafe<Static<typeof Reward>>({ ...Reward, default: {} }),
    judge: Type.Optional(Judge),
    curriculum: named(Stage, {
      minProperties: 0,
      default: {},
      description: 'Stages, by name; they run in the order of their references.',
    }),
    benchmarks: named(Benchmark, { minProperties: 0, default: {}, description: 'Benchmarks, by name.' }),
    benchmark_defaults: Type.Optional(
      overrides(Benchmark, { description: 'What benchmarks say unless they say otherwise.', composed: true }),
    ),
    tracking: Type.Optional(
      object(
        {
          mlflow_experiment: Type.String({
            minLength: 1,
            maxLength: 200,
            description: 'Experiment in MLflow; the name of this one when absent.',
            key: false,
          }),
        },
        { description: 'Where numbers are shown.' },
      ),
    ),
    references: Type.Optional(
      named(Reference, { description: 'Published results that stand beside ours, by name of the system.' }),
    ),
    reuse: Type.Optional(
      Type.Unsafe<Record<string, { run: string }>>({
        type: 'object',
        minProperties: 1,
        propertyNames: { type: 'string', pattern: '^stages\\.[a-z][a-z0-9_]{0,62}$', code: 'NAME' },
        additionalProperties: object(
          {
            run: Type.String({
              pattern: '^[a-z][a-z0-9_-]*$',
              description: 'Id of a run, or `latest`: the newest finished run of this experiment or one it extends.',
              key: false,
            }),
          },
          { description: 'Where the checkpoint comes from.' },
        ),
        description:
          'Stages (`stages.NAME`) that are not trained here: their checkpoints are those of a run, whatever the spec says of them.',
      }),
    ),
    compare: Type.Optional(Compare),
    budget: Type.Optional(Budget),
    ablations: Type.Optional(
      named(
        Type.Unsafe<Record<string, unknown>>({
          type: 'object',
          description: 'Changed values by dotted path; a map is merged, `!unset` removes. Empty: the spec as it is.',
          key: false,
        }),
        {
          description: 'Arms: this experiment with a few values changed. They share what they have in common.',
          composed: true,
        },
      ),
    ),
    sweep: Type.Optional(Sweep),
  },
  { description: 'An experiment.' },
);
/** A spec after composition, with every default filled in. */
export type Experiment = Static<typeof Experiment>;
export type Stage = Experiment['curriculum'][string];
export type Benchmark = Experiment['benchmarks'][string];
