import { type Static, Type } from 'typebox';
import { TASK_COLUMNS } from './task-columns.ts';

const closed = { additionalProperties: false } as const;

/** A secret is named, never written: resolved when connecting, never stored, hashed or logged. */
export const Secret = Type.Union(
  [
    Type.Object({ env: Type.String({ minLength: 1, description: 'Environment variable that holds it.' }) }, closed),
    Type.Object(
      { file: Type.String({ minLength: 1, description: 'File that holds it; a trailing newline is dropped.' }) },
      closed,
    ),
  ],
  { description: 'Where a secret is found: {env: NAME} or {file: PATH}.' },
);
export type Secret = Static<typeof Secret>;

/** A plain address, or one that holds credentials and is therefore named like a secret. */
const Address = Type.Union([Type.String({ minLength: 1 }), Secret], {
  description: 'A URL, or {env: NAME} or {file: PATH} that holds it.',
});

/** What `exp up` starts on this machine, on loopback. */
export const EmbeddedStack = Type.Object(
  {
    engine: Type.Object(
      {
        name: Type.String({ description: 'Name of the engine in the registry `engines`.' }),
        model: Type.String({ description: 'Registry name of the base model it serves at start.' }),
        max_model_len: Type.Integer({ minimum: 256, description: 'Longest sequence, in tokens.' }),
        kv_cache_gib: Type.Number({ exclusiveMinimum: 0, description: 'Memory for keys and values, in GiB.' }),
        max_num_seqs: Type.Integer({ minimum: 1, description: 'Sequences decoded at once.' }),
      },
      closed,
    ),
  },
  { ...closed, description: 'The embedded stack: everything on this machine, started by `exp up`.' },
);
export type EmbeddedStack = Static<typeof EmbeddedStack>;

/** Services that run elsewhere; nothing is started. */
export const Addresses = Type.Object(
  {
    temporal: Type.Object(
      {
        address: Type.String({ description: 'host:port of the frontend.' }),
        namespace: Type.String(),
        tls: Type.Optional(
          Type.Union([
            Type.Boolean({ description: 'TLS with the system roots.' }),
            Type.Object(
              {
                server_name: Type.Optional(Type.String()),
                ca: Type.Optional(Type.String({ description: 'PEM file of the root certificate.' })),
                cert: Type.Optional(Type.String({ description: 'PEM file of the client certificate.' })),
                key: Type.Optional(Type.String({ description: 'PEM file of the client key.' })),
              },
              closed,
            ),
          ]),
        ),
        api_key: Type.Optional(Secret),
        ui: Type.Optional(Type.String({ description: 'URL of the web UI, for links.' })),
      },
      closed,
    ),
    postgres: Type.Object(
      { url: Address },
      { ...closed, description: 'postgresql://user:password@host:port/database?sslmode=…' },
    ),
    milvus: Type.Object(
      {
        address: Type.String({ description: 'URI, such as https://milvus.example:19530.' }),
        token: Type.Optional(Secret),
      },
      closed,
    ),
    mlflow: Type.Object({ url: Type.String(), token: Type.Optional(Secret) }, closed),
    engines: Type.Array(
      Type.Object(
        {
          name: Type.String({ description: 'Name of the engine in the registry `engines`.' }),
          url: Type.String(),
          admin: Type.Boolean({
            description: 'Whether its development routes (load weights, reset prefix cache) may be called.',
          }),
        },
        closed,
      ),
      { description: 'Each is leased to one checkpoint at a time.' },
    ),
    artifacts: Type.Union([
      Type.Object(
        { kind: Type.Literal('dir'), path: Type.String({ description: 'Absolute path that every worker sees.' }) },
        closed,
      ),
      Type.Object(
        {
          kind: Type.Literal('s3'),
          bucket: Type.String(),
          prefix: Type.String(),
          region: Type.String(),
          endpoint: Type.Optional(
            Type.String({
              description: 'For S3-compatible stores; credentials come from the AWS chain of the process.',
            }),
          ),
        },
        closed,
      ),
    ]),
  },
  { ...closed, description: 'Where the services of this profile are reached; `exp up` starts nothing.' },
);
export type Addresses = Static<typeof Addresses>;

/** Shared by every registry entry: exactly one of path, url, made_at_setup says where it is. */
const located = {
  path: Type.Optional(
    Type.String({
      description: 'File or folder; relative to the profile, or below a folder that an environment variable names.',
    }),
  ),
  url: Type.Optional(Type.String({ description: 'Where a team keeps it.' })),
  made_at_setup: Type.Optional(
    Type.Boolean({ description: 'Made by `exp setup` at .exp/models/NAME; its digest stands in digest.json there.' }),
  ),
  sha256: Type.Optional(
    Type.String({ pattern: '^[0-9a-f]{64}$', description: 'Of the file, or over the files of the folder.' }),
  ),
  licence: Type.String({ description: 'SPDX identifier where there is one.' }),
};

/** The Ray cluster that stages with `backend: verl` are handed to. */
export const RayCluster = Type.Object(
  {
    address: Type.String({ description: 'URL of the dashboard, which has the job API, such as http://head:8265.' }),
    token: Type.Optional(Secret),
    shared_dir: Type.String({
      pattern: '^/',
      description: 'Folder that the workers of exp and every machine of the cluster see under this path.',
    }),
    command: Type.Array(Type.String({ minLength: 1 }), {
      minItems: 1,
      description: 'What starts verl there, such as [python3, -m, verl.trainer.main_ppo]; settings follow it.',
    }),
    tool_server: Type.Object(
      {
        listen: Type.String({ description: 'Address of this machine on which the cluster may ask for tools.' }),
        port: Type.Integer({ minimum: 0, maximum: 65_535, description: '0 for one that is free.' }),
      },
      { ...closed, description: 'Where a worker of exp serves the tools of a stage while verl trains it.' },
    ),
  },
  { ...closed, description: 'The Ray cluster that stages with `backend: verl` are handed to.' },
);
export type RayCluster = Static<typeof RayCluster>;

export const DatasetEntry = Type.Object(
  {
    ...located,
    records: Type.Optional(Type.Integer({ minimum: 1, description: 'Questions it must have; used in estimates too.' })),
    format: Type.Union([Type.Literal('jsonl'), Type.Literal('parquet')], {
      description: 'Of questions, one a record.',
    }),
    fields: Type.Optional(
      Type.Partial(
        Type.Object(Object.fromEntries(Object.keys(TASK_COLUMNS).map((name) => [name, Type.String()])), closed),
        {
          description: 'What its columns are called, where they are not called as in a spec.',
        },
      ),
    ),
  },
  closed,
);

export type DatasetEntry = Static<typeof DatasetEntry>;

export const ModelEntry = Type.Object(
  {
    ...located,
    format: Type.Literal('safetensors'),
    context_length: Type.Integer({ minimum: 1 }),
  },
  closed,
);

export const EmbedderEntry = Type.Object(
  {
    ...located,
    format: Type.Literal('onnx'),
    dimension: Type.Integer({ minimum: 1 }),
    max_tokens: Type.Integer({ minimum: 1 }),
    precisions: Type.Array(Type.Union([Type.Literal('fp32'), Type.Literal('fp16'), Type.Literal('int8')])),
  },
  closed,
);

export const EngineEntry = Type.Object(
  {
    kind: Type.Union([Type.Literal('vllm'), Type.Literal('sglang')]),
    version: Type.String(),
    licence: Type.String(),
  },
  closed,
);

const Name = '^[A-Za-z0-9][A-Za-z0-9._/-]*$';

/** Where things run and what names mean. */
export const Profile = Type.Object(
  {
    api_version: Type.Literal('exp/v1'),
    name: Type.String({ pattern: '^[a-z][a-z0-9_-]*$' }),
    description: Type.Optional(Type.String()),
    embedded: Type.Optional(EmbeddedStack),
    addresses: Type.Optional(Addresses),
    capabilities: Type.Object(
      {
        dense_indexes: Type.Array(Type.String(), { description: 'Index types the Milvus of this profile has.' }),
        sparse_indexes: Type.Array(Type.String()),
        gpus: Type.Integer({ minimum: 0, description: 'GPUs a stage may ask for; 0 trains on the CPU.' }),
        nodes: Type.Integer({ minimum: 1 }),
        trainers: Type.Array(Type.String(), { description: 'Training backends: builtin, verl.' }),
      },
      { ...closed, description: 'What a spec may ask for; anything else is refused at plan time.' },
    ),
    serving_dtype: Type.Union([Type.Literal('float32'), Type.Literal('bfloat16')], {
      description: 'In which the engines serve a policy; its merged weights are written so.',
    }),
    queue_prefix: Type.String({
      pattern: '^[a-z][a-z0-9-]*$',
      description:
        'Of the Temporal task queues <prefix>-cpu, -rollout and -gpu: stacks that share a namespace differ here.',
    }),
    launchers: Type.Record(
      Type.String(),
      Type.Object(
        {
          command: Type.Array(Type.String(), {
            minItems: 1,
            description:
              'Argument vector, run in the foreground for as long as a stage trains. {{command}} stands for the trainer with its arguments (torchrun where a machine has several GPUs), to be run once on each machine; {{job}}, {{nodes}} and {{gpus_per_node}} are those of the stage.',
          }),
          cancel: Type.Optional(
            Type.Array(Type.String(), {
              description: 'Run when the trainer ends, for jobs that outlive the command which started them.',
            }),
          ),
          remote: Type.Optional(
            Type.Boolean({
              description:
                'The trainer may be on another machine: it is reached over TCP, without encryption, at an address and with a token that it writes to the folder of logs, which all machines share.',
            }),
          ),
        },
        closed,
      ),
      { description: 'How a trainer process is started.' },
    ),
    launcher: Type.String({ description: 'Which launcher stages use.' }),
    ray: Type.Optional(RayCluster),
    prices: Type.Object(
      {
        currency: Type.String(),
        gpu_hour: Type.Number({ minimum: 0 }),
        cpu_hour: Type.Number({ minimum: 0 }),
        million_tokens: Type.Number({ minimum: 0 }),
        thousand_tool_calls: Type.Number({ minimum: 0 }),
      },
      { ...closed, description: 'For estimates.' },
    ),
    throughput: Type.Optional(
      Type.Object(
        {
          sampled_tokens_per_gpu_second: Type.Number({
            exclusiveMinimum: 0,
            description: 'Of all sequences an engine decodes at once, over its GPUs.',
          }),
          trained_tokens_per_gpu_second: Type.Number({
            exclusiveMinimum: 0,
            description: 'Of a trainer, over its GPUs.',
          }),
        },
        { ...closed, description: 'As measured with the policy that is trained; for estimates of GPU-hours.' },
      ),
    ),
    data_roots: Type.Array(Type.String(), {
      description: 'Folders below which a spec may name files, besides its own.',
    }),
    registries: Type.Object(
      {
        datasets: Type.Record(Type.String({ pattern: Name }), DatasetEntry),
        models: Type.Record(Type.String({ pattern: Name }), ModelEntry),
        embedders: Type.Record(Type.String({ pattern: Name }), EmbedderEntry),
        engines: Type.Record(Type.String({ pattern: Name }), EngineEntry),
      },
      { ...closed, description: 'What the names in a spec mean here.' },
    ),
  },
  {
    ...closed,
    description: 'Where things run and what names mean. Exactly one of `embedded` and `addresses` is given.',
  },
);
export type Profile = Static<typeof Profile>;
