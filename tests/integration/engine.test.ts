/** Engine, leases, journal and batches of rollouts on a real vLLM and a real PostgreSQL, with tiny random policies. */
import { execFile } from 'node:child_process';
import { copyFile, cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { MockActivityEnvironment } from '@temporalio/testing';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ArtifactStore } from '../../activities/adapters/artifact-store.ts';
import { openBlobStore } from '../../activities/adapters/blob-store.ts';
import { EnginePool } from '../../activities/adapters/engine.ts';
import { EngineClient } from '../../activities/adapters/engine-client.ts';
import { MergedWeights } from '../../activities/adapters/merged-weights.ts';
import { readParquet } from '../../activities/adapters/parquet.ts';
import { SpendLedger } from '../../activities/adapters/spend-ledger.ts';
import { TurnJournal } from '../../activities/adapters/turn-journal.ts';
import type { NodeRef, RolloutShard } from '../../activities/index.ts';
import type { RolloutSpec } from '../../activities/prepare-rollouts.ts';
import { createRolloutActivities, type RolloutDeps } from '../../activities/rollout-batch.ts';
import { loadTokenizer, renderPrompt, type Tokenizer } from '../../environments/deep-research/prompt.ts';
import type { World } from '../../environments/environment.ts';
import { loadProfile } from '../../plan/profile.ts';
import { contentKey } from '../../schemas/canonical.ts';
import type { Checkpoint } from '../../schemas/checkpoint.ts';
import type { Plan } from '../../schemas/plan.ts';
import type { Trajectory } from '../../schemas/trajectory.ts';
import { modelsDir, python, repoRoot } from '../../services/home.ts';
import { serviceStates } from '../../services/stack.ts';
import { rolloutSpec } from '../rollout-spec.ts';
import { startStack, type TestStack } from '../services.ts';

const MINUTES = 60_000;
const STARTING = 10 * MINUTES;

let folder: string;
let stack: TestStack;
let pool: pg.Pool;
let store: ArtifactStore;
let engines: EnginePool;
let tokenizer: Tokenizer;
let base: Checkpoint;
/** The same architecture with other weights in every layer, but not in the embedding. */
let other: Checkpoint;
/** Other weights everywhere. */
let whole: Checkpoint;

const checkpointOf = (model: string, adapters: string[]): Checkpoint => {
  const model_sha256 = contentKey(model);
  return { digest: contentKey({ model_sha256, adapters }), model, model_sha256, adapters };
};

async function tinyPolicy(name: string, seed: number): Promise<string> {
  const out = join(folder, name);
  const script = join(repoRoot(), 'trainer/tests/tiny_policy.py');
  const tokenizerDir = join(modelsDir(), 'smollm2-135m-instruct');
  const args = [script, '--tokenizer', tokenizerDir, '--out', out, '--shape', 'llama', '--seed', String(seed)];
  await promisify(execFile)(python(), args, { cwd: join(repoRoot(), 'trainer') });
  return out;
}

/** A safetensors file less its embedding: 8 bytes of header length, the header as JSON, the tensors. */
function withoutEmbedding(file: Buffer): Buffer {
  const end = 8 + Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.subarray(8, end).toString()) as Record<string, { data_offsets: [number, number] }>;
  const kept: typeof header = {};
  const tensors: Buffer[] = [];
  let offset = 0;
  for (const [name, tensor] of Object.entries(header)) {
    if (name === '__metadata__' || name.includes('embed_tokens')) continue;
    const [from, to] = tensor.data_offsets;
    tensors.push(file.subarray(end + from, end + to));
    kept[name] = { ...tensor, data_offsets: [offset, offset + to - from] };
    offset += to - from;
  }
  const text = Buffer.from(JSON.stringify(kept));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text, ...tensors]);
}

function mergedWeights(): MergedWeights {
  return new MergedWeights({
    store,
    cache: join(folder, 'merged'),
    python: python(),
    packageDir: join(repoRoot(), 'trainer'),
    baseDir: (model) => join(folder, model),
    dtype: 'bfloat16',
  });
}

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'engine-test-'));
  const [tiny, second] = [await tinyPolicy('tiny', 0), await tinyPolicy('tiny-1', 1)];
  const profile = loadProfile('local', join(repoRoot(), 'profiles'));
  profile.registries.models['tiny'] = { path: tiny, format: 'safetensors', licence: 'Apache-2.0' } as never;
  Object.assign(profile.embedded?.engine ?? {}, { model: 'tiny', kv_cache_gib: 1, max_model_len: 2048 });
  stack = await startStack(['postgres', 'engine'], { profile });

  pool = new pg.Pool({ connectionString: stack.connections.postgres.url });
  store = new ArtifactStore(pool, await openBlobStore({ kind: 'dir', path: join(folder, 'artifacts') }, folder));
  engines = new EnginePool({ pool, engines: stack.connections.engines, merged: mergedWeights() });
  tokenizer = await loadTokenizer(tiny);
  base = checkpointOf('tiny', []);
  const weights = await readFile(join(second, 'model.safetensors'));
  other = checkpointOf('tiny', [await store.putBlob(withoutEmbedding(weights))]);
  whole = checkpointOf('tiny', [await store.putBlob(weights)]);
}, STARTING);

afterAll(async () => {
  await engines?.close();
  await pool?.end();
  await stack?.stop();
  await rm(folder, { recursive: true, force: true });
}, 2 * MINUTES);

const prompt = () => renderPrompt(tokenizer, { question: 'What licence has zod?', tools: ['search', 'visit'] });
const greedy = { maxTokens: 24, temperature: 0, topP: 1, seed: 1 };
const resource = async () =>
  (await pool.query(`select epoch, holder, state from leases where resource like 'engine/%'`)).rows[0];

describe('an engine lease', () => {
  test('answers token in and token out, and its logprobs are those of the ids', async () => {
    const lease = await engines.acquire(base, 'a');
    const request = { maxTokens: 40, temperature: 1, topP: 1, seed: 5 };
    const completion = await lease.sampler(tokenizer.stopIds)(prompt(), request);
    expect(completion.token_ids.length).toBeGreaterThan(0);
    expect(completion.logprobs).toHaveLength(completion.token_ids.length);
    expect(completion.weight_version).toBe(base.digest);

    const [address] = stack.connections.engines;
    const client = new EngineClient(address as never);
    const { boot } = await client.info();
    expect(boot).toMatch(/^boot-/);
    const again = await client.score(boot, [...prompt(), ...completion.token_ids], prompt().length);
    expect(again).toHaveLength(completion.token_ids.length);
    for (const [index, logprob] of completion.logprobs.entries())
      expect(Math.abs(logprob - (again[index] ?? Number.NaN))).toBeLessThan(0.1);
    await client.close();
    await engines.release('a');
  });

  test('keeps the stop token as the last id', async () => {
    const lease = await engines.acquire(base, 'a');
    // Every token is a stop token: the first one sampled ends the completion and stays.
    const sample = lease.sampler(Array.from({ length: 49_152 }, (_, id) => id));
    const { token_ids } = await sample(prompt(), { maxTokens: 40, temperature: 1, topP: 1, seed: 5 });
    expect(token_ids).toHaveLength(1);
    await engines.release('a');
  });

  test('serves the weights of its checkpoint; a holder that asks again keeps it; the epoch only rises', async () => {
    const first = await engines.acquire(base, 'a');
    const fromBase = await first.sampler(tokenizer.stopIds)(prompt(), greedy);
    expect((await engines.acquire(base, 'a')).epoch).toBe(first.epoch);
    await engines.release('a');

    const second = await engines.acquire(other, 'b');
    expect(second.epoch).toBeGreaterThan(first.epoch);
    const fromOther = await second.sampler(tokenizer.stopIds)(prompt(), greedy);
    expect(fromOther.token_ids).not.toEqual(fromBase.token_ids);
    await engines.release('b');

    const third = await engines.acquire(base, 'c');
    expect((await third.sampler(tokenizer.stopIds)(prompt(), greedy)).token_ids).toEqual(fromBase.token_ids);
    expect((await pool.query('select * from probes')).rowCount).toBe(2);
    await engines.release('c');
  });

  test('is held by one at a time', async () => {
    await engines.acquire(base, 'a');
    const waiting: string[] = [];
    let taken = false;
    const next = engines.acquire(base, 'b', { onWait: (holder) => waiting.push(holder) }).then((lease) => {
      taken = true;
      return lease;
    });
    await sleep(2_500);
    expect(taken).toBe(false);
    expect(waiting[0]).toBe('a');
    await engines.release('a');
    expect((await next).epoch).toBe(Number((await resource()).epoch));
    await engines.release('b');
  });

  test('is given to who has waited longest, and a waiter that is gone keeps nobody waiting', async () => {
    await engines.acquire(base, 'a');
    const order: string[] = [];
    const wait = async (holder: string, signal?: AbortSignal) => {
      await engines.acquire(base, holder, signal ? { signal } : {});
      order.push(holder);
      await engines.release(holder);
    };
    const leaving = new AbortController();
    const gone = wait('gone', leaving.signal).catch(() => undefined);
    await sleep(100);
    const waiting = ['z', 'm', 'b'].map(async (holder, index) => {
      await sleep(100 * index);
      await wait(holder);
    });
    await sleep(2_000);
    leaving.abort();
    await gone;
    await engines.release('a');
    await Promise.all(waiting);
    expect(order).toEqual(['z', 'm', 'b']);
    expect((await pool.query('select 1 from engine_waiters')).rowCount).toBe(0);
  });

  test('refuses what a superseded holder sampled', async () => {
    const stale = await engines.acquire(base, 'a');
    await pool.query(`update leases set expires_at = now() - interval '1 s' where holder = 'a'`);
    await engines.acquire(other, 'b');
    await expect(stale.sampler(tokenizer.stopIds)(prompt(), greedy)).rejects.toMatchObject({ code: 'LEASE_LOST' });
    await engines.release('b');
  });

  test('is not given when the engine cannot take the weights: vLLM on CPU keeps a tied output layer', async () => {
    await expect(engines.acquire(whole, 'a')).rejects.toMatchObject({ code: 'ENGINE_PROBE' });
    expect((await resource()).holder).toBeNull();
  });

  test('of another architecture is refused before it could end the engine', async () => {
    const stranger = join(folder, 'stranger');
    await cp(await mergedWeights().directory(base), stranger, { recursive: true });
    const config = JSON.parse(await readFile(join(stranger, 'config.json'), 'utf8')) as { num_hidden_layers: number };
    await writeFile(
      join(stranger, 'config.json'),
      JSON.stringify({ ...config, num_hidden_layers: config.num_hidden_layers + 1 }),
    );
    const strict = new EnginePool({
      pool,
      engines: stack.connections.engines,
      merged: { directory: async () => stranger },
    });
    await expect(strict.acquire(checkpointOf('stranger', []), 'a')).rejects.toMatchObject({ code: 'ENGINE_MODEL' });
    expect((await resource()).holder).toBeNull();
    await strict.close();
  });

  test('is not given when the weights do not answer as they should', async () => {
    const wrong = join(folder, 'wrong');
    await cp(await mergedWeights().directory(base), wrong, { recursive: true });
    await copyFile(join(await mergedWeights().directory(other), 'probe.json'), join(wrong, 'probe.json'));
    const strict = new EnginePool({
      pool,
      engines: stack.connections.engines,
      merged: { directory: async () => wrong },
    });
    await expect(strict.acquire({ ...other, digest: 'f'.repeat(64) }, 'a')).rejects.toMatchObject({
      code: 'ENGINE_PROBE',
    });
    await strict.close();
  });

  test('is not given when the engine goes on with the weights it had', async () => {
    // A directory whose probe is a hair away from the base's: nearness cannot tell them apart, repetition can.
    await engines.acquire(base, 'a');
    await engines.release('a');
    const unchanged = join(folder, 'unchanged');
    await cp(await mergedWeights().directory(base), unchanged, { recursive: true });
    const probe = JSON.parse(await readFile(join(unchanged, 'probe.json'), 'utf8')) as { logprobs: (number | null)[] };
    await writeFile(
      join(unchanged, 'probe.json'),
      JSON.stringify({
        ...probe,
        logprobs: probe.logprobs.map((logprob) => (logprob === null ? null : logprob + 0.01)),
      }),
    );
    const strict = new EnginePool({
      pool,
      engines: stack.connections.engines,
      merged: { directory: async () => unchanged },
    });
    await expect(strict.acquire({ ...other, digest: 'e'.repeat(64) }, 'a')).rejects.toMatchObject({
      code: 'ENGINE_PROBE',
    });
    await strict.close();
  });

  test(
    'goes on with the right weights after the engine was killed',
    async () => {
      const lease = await engines.acquire(other, 'a');
      const sample = lease.sampler(tokenizer.stopIds);
      const before = await sample(prompt(), greedy);
      const { pid } = (await serviceStates(stack.home))?.find(({ name }) => name === 'engine') ?? { pid: 0 };
      process.kill(pid, 'SIGKILL');
      const after = await sample(prompt(), greedy);
      expect(after.token_ids).toEqual(before.token_ids);
      expect((await lease.sampler(tokenizer.stopIds)(prompt(), greedy)).token_ids).toEqual(before.token_ids);
      await engines.release('a');
    },
    STARTING,
  );
});

describe('the turn journal', () => {
  const record = (turn: number) => ({
    turn,
    token_ids: [turn, 2],
    logprobs: [-0.1, Math.fround(-1e-7)],
    tool: null,
    status: 'malformed' as const,
    latency_ms: 1.5,
    weight_version: 'w',
    observation: null,
    termination: null,
  });
  test('keeps what was written first, in order, up to a gap, in few commits', async () => {
    const journal = new TurnJournal(pool);
    await Promise.all(
      Array.from({ length: 200 }, (_, index) => journal.append(`j-${index % 100}`, record(Math.floor(index / 100)))),
    );
    await journal.append('j-0', { ...record(0), token_ids: [9] });
    await journal.append('j-0', record(3));
    const turns = await journal.load(['j-0', 'j-99', 'j-none']);
    expect(turns.get('j-0')).toEqual([record(0), record(1)]);
    expect(turns.get('j-99')).toHaveLength(2);
    expect(turns.get('j-none')).toEqual([]);
    await journal.drop(Array.from({ length: 100 }, (_, index) => `j-${index}`));
    expect((await journal.load(['j-0'])).get('j-0')).toEqual([]);
  });
  test('says so when a turn could not be written', async () => {
    const broken = new pg.Pool({ host: '127.0.0.1', port: 1 });
    await expect(new TurnJournal(broken).append('x', record(0))).rejects.toThrow();
    await broken.end();
  });
});

const FREE = { currency: 'USD', gpu_hour: 0, cpu_hour: 0, million_tokens: 0, thousand_tool_calls: 0 };

describe('a batch of rollouts', () => {
  const node: NodeRef = { plan: 'p', arm: 'base', id: 'stage1.profile', kind: 'profile', key: 'k'.repeat(64) };
  const world: World = {
    search: async () => ({ results: [{ url: 'npm:zod', title: 'zod', snippet: 'schemas', score: 1 }], denied: 0 }),
    visit: async (urls) =>
      urls.map((url) => ({ url, status: 'ok', title: 'zod', text: 'Licence: MIT', truncated: false })),
    close: async () => undefined,
  };
  const spec = (index: number): RolloutSpec =>
    rolloutSpec(index, {
      trajectory_id: `batch/${index}`,
      seed: 1000 + index,
      context_length: 700,
      agent: { tools: index === 0 ? [] : ['search', 'visit'], max_turns: 3, max_turn_tokens: 24 },
    });
  const putRequest = (size: number, count: number, tag: string) =>
    store.putBlob(
      Buffer.from(
        [{ batch_size: size, tag }, ...Array.from({ length: count }, (_, index) => spec(index))]
          .map((line) => JSON.stringify(line))
          .join('\n'),
      ),
    );
  const deps = (): RolloutDeps => ({
    pool,
    engines,
    store,
    journal: new TurnJournal(pool),
    spend: new SpendLedger({ pool, plans: { load: async () => ({ spec: {} }) as Plan }, prices: FREE }),
    worlds: { open: async () => world },
    judges: { open: async () => async (rows) => rows },
    tokenizers: { load: async () => tokenizer },
    progress: async () => undefined,
    work: join(folder, 'work'),
  });
  const run = (
    request: string,
    batch: number,
    environment = new MockActivityEnvironment(),
    using = deps(),
  ): Promise<RolloutShard> =>
    environment.run(createRolloutActivities(using).rolloutBatch, {
      node,
      step: 0,
      request,
      batch,
      checkpoint: other,
      holder: 'rollouts/test',
    }) as Promise<RolloutShard>;
  const read = async ({ blob }: RolloutShard): Promise<Trajectory[]> => {
    const rows: Trajectory[] = [];
    for await (const row of readParquet<Trajectory>(await store.openBlob(blob))) rows.push(row);
    return rows;
  };

  test(
    'is one shard of whole trajectories, and a second attempt returns it',
    async () => {
      const request = await putRequest(8, 20, 'whole');
      const shards = await Promise.all([run(request, 1), run(request, 2)]);
      expect(shards.map(({ trajectories, failed }) => [trajectories, failed])).toEqual([
        [8, 0],
        [4, 0],
      ]);
      const rows = await read(shards[0] as RolloutShard);
      expect(rows.map(({ trajectory_id }) => trajectory_id)).toEqual(
        Array.from({ length: 8 }, (_, index) => `batch/${index + 8}`),
      );
      for (const row of rows) {
        expect(row.checkpoint).toBe(other.digest);
        expect(row.token_ids.length).toBeLessThanOrEqual(700);
        expect([row.mask.length, row.logprobs.length]).toEqual([row.token_ids.length, row.token_ids.length]);
        expect(row.termination).toBe('max_turns'); // random weights never write a well-formed answer
        expect(row.reward.outcome).toBe(-1);
      }
      expect(
        (await pool.query(`select count(*)::int as turns from turns where trajectory_id like 'batch/%'`)).rows[0].turns,
      ).toBe(0);

      const idle = { ...deps(), engines: { acquire: () => Promise.reject(new Error('sampled again')) } as never };
      expect(await run(request, 1, new MockActivityEnvironment(), idle)).toEqual(shards[0]);
    },
    5 * MINUTES,
  );

  test(
    'goes on where it was interrupted, with identical ids',
    async () => {
      const request = await putRequest(6, 6, 'interrupted');
      const environment = new MockActivityEnvironment();
      const journal = new TurnJournal(pool);
      let turns = 0;
      const watched = {
        append: async (...args: Parameters<TurnJournal['append']>) => {
          await journal.append(...args);
          turns += 1;
          if (turns === 8) environment.cancel();
        },
        load: journal.load.bind(journal),
        drop: journal.drop.bind(journal),
      } as unknown as TurnJournal;
      await expect(run(request, 0, environment, { ...deps(), journal: watched })).rejects.toThrow();
      const kept = await journal.load(Array.from({ length: 6 }, (_, index) => `batch/${index}`));
      const saved = [...kept.values()].reduce((sum, records) => sum + records.length, 0);
      expect(saved).toBeGreaterThanOrEqual(8);

      const rows = await read(await run(request, 0));
      expect(rows).toHaveLength(6);
      for (const row of rows) {
        for (const { turn, token_ids, logprobs } of kept.get(row.trajectory_id) ?? []) {
          const span = row.spans.find((candidate) => candidate.turn === turn && candidate.kind === 'action');
          expect(row.token_ids.slice(span?.start, span?.end)).toEqual(token_ids);
          expect(row.logprobs.slice(span?.start, span?.end)).toEqual(logprobs.map(Math.fround));
        }
      }
    },
    5 * MINUTES,
  );

  test('an outage of the world ends the batch and scores nothing', async () => {
    const request = await putRequest(4, 4, 'outage');
    // A policy that always calls: the scripted engine is enough to reach the world.
    const call = '<think>a</think><tool_call>{"name": "search", "arguments": {"query": ["x"]}}</tool_call>';
    const ids = [...tokenizer.encodeText(call), 2];
    const lease = {
      sampler: () => async () => ({ token_ids: ids, logprobs: ids.map(() => -1), weight_version: other.digest }),
      renew: async () => undefined,
    };
    const down: World = { ...world, search: () => Promise.reject(new Error('connect ECONNREFUSED')) };
    const using = { ...deps(), engines: { acquire: async () => lease } as never, worlds: { open: async () => down } };
    await expect(run(request, 0, new MockActivityEnvironment(), using)).rejects.toMatchObject({ code: 'UNAVAILABLE' });
    expect((await pool.query('select 1 from rollout_shards where request = $1', [request])).rowCount).toBe(0);
    await new TurnJournal(pool).drop(['batch/0', 'batch/1', 'batch/2', 'batch/3']);
  });
});
