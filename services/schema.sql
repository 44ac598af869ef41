-- Everything exp keeps in PostgreSQL. Applied by `exp up` and by each worker at start, under an advisory lock.

-- Pages: stored once by content hash.
create table if not exists pages (
  hash text primary key,
  title text not null,
  text text not null,
  facts jsonb
);
-- lz4 loads six times faster than the default (pglz). The embedded build has no lz4: there text stays uncompressed.
do $$ begin
  if 'lz4' = any (select unnest(enumvals) from pg_settings where name = 'default_toast_compression') then
    alter table pages alter column text set compression lz4;
  else
    alter table pages alter column text set storage external;
  end if;
end $$;
create table if not exists corpus_pages (
  corpus_key text not null,
  url text not null,
  hash text not null references pages (hash),
  source text not null,
  primary key (corpus_key, url)
);
-- By page first: `exp gc` asks which corpora have a page, a load whether its corpus has it.
create index if not exists corpus_pages_by_page on corpus_pages (hash, corpus_key);
drop index if exists corpus_pages_by_hash;

-- MinHash bands of the pages kept so far, while a corpus is being loaded; dropped when it is whole.
create table if not exists page_bands (
  corpus_key text not null,
  band bigint not null,
  hash text not null,
  primary key (corpus_key, band, hash)
);

-- Worlds built by hand (`exp world build`), by name: what is in PostgreSQL and Milvus, and how the index was made.
create table if not exists worlds (
  name text primary key,
  corpus jsonb not null,
  index jsonb not null,
  parameters jsonb not null,
  created_at timestamptz not null default now()
);

-- Index ingest: one row per shard of chunks that is durable in Milvus.
create table if not exists index_shards (
  index_key text not null,
  shard integer not null,
  chunks integer not null,
  sealed_at timestamptz not null default now(),
  primary key (index_key, shard)
);
-- The last chunk of a shard, where the next attempt goes on without chunking the pages before it again.
alter table index_shards add column if not exists last_url text, add column if not exists last_ord integer;

-- Runs. At most one active run per key.
create table if not exists runs (
  id text primary key,
  run_key text not null,
  name text not null,
  profile text not null,
  plan_blob text not null,
  status text not null default 'running', -- running | done | failed | cancelled | gate_failed | budget
  created_at timestamptz not null default now(),
  ended_at timestamptz,
  mlflow_url text
);
create unique index if not exists runs_one_active on runs (run_key) where status = 'running';

-- Artifacts: first complete publication of a (key, generation) wins.
create table if not exists artifacts (
  key text not null,
  generation integer not null,
  kind text not null,
  digest text not null,
  manifest_blob text not null,
  created_at timestamptz not null default now(),
  primary key (key, generation)
);

-- Artifacts that no longer verified (a dropped collection, changed pages): kept for lineage, never reused.
create table if not exists retired_artifacts (
  key text not null,
  generation integer not null,
  kind text not null,
  digest text not null,
  manifest_blob text not null,
  reason text not null,
  retired_at timestamptz not null default now(),
  primary key (key, generation)
);

-- What a node is doing, for `exp status` and `exp watch`.
create table if not exists node_progress (
  key text primary key,
  kind text not null,
  status text not null,
  attempts integer not null default 0,
  done bigint not null default 0,
  total bigint not null default 0,
  detail text not null default '',
  started_at timestamptz,
  ended_at timestamptz,
  updated_at timestamptz not null default now()
);

-- Metrics of a node, first write wins so that a retry repeats the same point.
create table if not exists node_metrics (
  key text not null,
  name text not null,
  step integer not null,
  value double precision not null,
  timestamp_ms bigint not null,
  primary key (key, name, step)
);

-- Turn journal: one row per finished turn; dropped once the shard is sealed.
create table if not exists turns (
  trajectory_id text not null,
  turn integer not null,
  record jsonb not null,
  created_at timestamptz not null default now(),
  primary key (trajectory_id, turn)
);

-- Step ledger: one row per optimizer step of a stage.
create table if not exists steps (
  stage_key text not null,
  step integer not null,
  batch_blob text not null,
  checkpoint_before text not null, -- digest of the weights that sampled the batch
  status text not null, -- planned | done
  adapter_blob text,
  result jsonb,
  primary key (stage_key, step)
);

-- What a judge said, by what it was asked: nobody pays twice, after a crash or in another node.
create table if not exists judge_replies (
  asked text primary key, -- SHA-256 of model, settings and prompt
  node_key text not null, -- who asked first; with its key they go
  reply text not null
);

-- Training pools chosen within a stage, by the step after which pass rates were measured again.
create table if not exists stage_pools (
  stage_key text not null,
  step integer not null,
  tasks integer not null,
  blob text not null,
  primary key (stage_key, step)
);

-- Fenced leases on engines and trainers: the epoch only rises.
create table if not exists leases (
  resource text primary key,
  epoch bigint not null default 0,
  holder text,
  state jsonb not null default '{}',
  expires_at timestamptz not null default now()
);

-- Who waits for an engine, in order of coming; who has not asked for a while no longer waits.
create table if not exists engine_waiters (
  holder text primary key,
  since timestamptz not null default clock_timestamp(),
  seen timestamptz not null default clock_timestamp()
);

-- Probe logprobs as first served for a checkpoint.
create table if not exists probes (
  checkpoint_digest text not null,
  engine_build text not null,
  logprobs double precision[] not null,
  primary key (checkpoint_digest, engine_build)
);

-- Outbox to MLflow: exact payloads, sent in order per run; a resend writes the same rows.
create table if not exists outbox (
  id bigserial primary key,
  dedup text not null unique,
  run_id text not null,
  payload jsonb not null,
  created_at timestamptz not null default now(),
  sent_at timestamptz,
  error text
);
create index if not exists outbox_unsent on outbox (id) where sent_at is null;

-- Which MLflow run holds what we track under a path: `<run>`, `<run>/<arm>`, `<run>/<arm>/<node>`.
create table if not exists tracked_runs (
  path text primary key,
  run_id text not null,
  mlflow_run_id text not null,
  experiment_id text not null,
  artifact_uri text not null
);

-- Sealed batches of rollouts: a second attempt at a finished batch returns its shard and samples nothing.
create table if not exists rollout_shards (
  request text not null,
  batch integer not null,
  checkpoint_digest text not null,
  blob text not null,
  trajectories integer not null,
  failed integer not null,
  sealed_at timestamptz not null default now(),
  primary key (request, batch, checkpoint_digest)
);
-- Whose rollouts a shard holds, so that a report finds them.
alter table rollout_shards add column if not exists node_key text;
create index if not exists rollout_shards_by_node on rollout_shards (node_key);

-- Which arms wait for a node: their runs are charged for its work.
create table if not exists subscriptions (
  node_key text not null,
  subscriber text not null, -- workflow of the arm
  run text not null,
  primary key (node_key, subscriber)
);

-- Bounds that `exp budget` set in the place of those of the spec.
create table if not exists budgets (
  run text primary key,
  bounds jsonb not null
);

-- What each run spent, by unit of work (a batch of rollouts, a hold of a trainer); while one is open, the most it may take.
create table if not exists spend (
  run text not null,
  node_key text not null,
  unit text not null,
  tokens bigint not null default 0,
  tool_calls bigint not null default 0,
  gpu_seconds double precision not null default 0,
  cpu_seconds double precision not null default 0,
  most_tokens bigint not null default 0,
  most_tool_calls bigint not null default 0,
  open boolean not null default true,
  since timestamptz not null default now(),
  primary key (run, node_key, unit)
);
create index if not exists spend_by_unit on spend (node_key, unit);
