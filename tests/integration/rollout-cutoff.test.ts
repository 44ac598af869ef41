// `rollout.cutoff` on the activity that runs a batch, with its real journal: who is cut off, when, and who is not.
import { join } from 'node:path';
import { MockActivityEnvironment } from '@temporalio/testing';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { readParquet } from '../../activities/adapters/parquet.ts';
import { SpendLedger } from '../../activities/adapters/spend-ledger.ts';
import { TurnJournal } from '../../activities/adapters/turn-journal.ts';
import type { NodeRef, RolloutShard } from '../../activities/index.ts';
import type { RolloutSpec } from '../../activities/prepare-rollouts.ts';
import { createRolloutActivities, type RolloutDeps } from '../../activities/rollout-batch.ts';
import type { Stack } from '../../cli/open-stack.ts';
import { loadTokenizer, renderForcedAnswer, type Tokenizer } from '../../environments/deep-research/prompt.ts';
import type { World } from '../../environments/environment.ts';
import type { Plan } from '../../schemas/plan.ts';
import type { Trajectory } from '../../schemas/trajectory.ts';
import { modelsDir } from '../../services/home.ts';
import { rolloutSpec } from '../rollout-spec.ts';
import { temporaryFolder } from '../temporary-folder.ts';
import { connectStore, startPostgres, type TestService } from './toy-services.ts';

const folder = temporaryFolder('exp-cutoff-');
let postgres: TestService;
let stack: Stack;
let tokenizer: Tokenizer;

beforeAll(async () => {
  postgres = await startPostgres();
  stack = await connectStore(postgres.address, folder);
  tokenizer = await loadTokenizer(join(modelsDir(), 'smollm2-135m-instruct'));
});

afterAll(async () => {
  await stack?.close();
  await postgres?.stop();
});

const SIZE = 25;
/** 14 of 25; in binary 0.56 · 25 is a little more than 14. */
const CUTOFF = 0.56;
const ANSWER_AT_ONCE = 14;
const checkpoint = { digest: 'c'.repeat(64), model: 'm', model_sha256: 'd'.repeat(64), adapters: [] };
const node: NodeRef = { plan: 'p', arm: 'base', id: 'stage1', kind: 'rl', key: 'k'.repeat(64) };

const spec = (index: number, cutoff: number | null): RolloutSpec =>
  rolloutSpec(index, { trajectory_id: `cut/${index}`, cutoff });

const callOf = (index: number): string =>
  `<think>a</think><tool_call>{"name": "search", "arguments": {"query": ["${index}"]}}</tool_call>`;
const ANSWER = '<think>a</think><answer>MIT</answer>';

/** A moment that others wait for. */
function moment() {
  let come = (): void => undefined;
  const waited = new Promise<void>((resolve) => {
    come = resolve;
  });
  return { come, waited };
}

/**
 * A policy of which the first 14 answer at once and the others search on; the last of the 14 waits until each of the
 * others has made three calls.
 */
interface Play {
  sampled: Map<number, string[]>;
  deps(watch?: Partial<Pick<World, 'search'>>): RolloutDeps;
  request(cutoff: number | null): Promise<string>;
  released: boolean;
}

function play(): Play {
  const sampled = new Map<number, string[]>();
  const release = moment();
  const sample = async (ids: readonly number[]) => {
    const text = tokenizer.decode([...ids]);
    const index = Number(text.match(/package (\d+)/)?.[1]);
    const turns = sampled.get(index) ?? [];
    sampled.set(index, turns);
    const isForced = text.endsWith(forced);
    if (index === ANSWER_AT_ONCE - 1) await release.waited;
    const said = isForced || index < ANSWER_AT_ONCE ? ANSWER : callOf(index);
    turns.push(isForced ? 'forced' : said === ANSWER ? 'answer' : 'call');
    const others = [...sampled].filter(([other]) => other >= ANSWER_AT_ONCE);
    if (others.length === SIZE - ANSWER_AT_ONCE && others.every(([, made]) => made.length >= 3)) {
      state.released = true;
      release.come();
    }
    await new Promise((resolve) => setImmediate(resolve)); // an engine takes its time
    const token_ids = [...tokenizer.encodeText(said), 2];
    return { token_ids, logprobs: token_ids.map(() => -1), weight_version: checkpoint.digest };
  };
  const forced = tokenizer.decode([...renderForcedAnswer(tokenizer, { cut: false })]);
  const lease = { sampler: () => sample, renew: async () => undefined };
  const state: Play = {
    sampled,
    released: false,
    deps: (watch = {}) => ({
      pool: stack.pool,
      engines: { acquire: async () => lease } as never,
      store: stack.store,
      journal: new TurnJournal(stack.pool),
      spend: new SpendLedger({
        pool: stack.pool,
        plans: { load: async () => ({ spec: {} }) as Plan },
        prices: { currency: 'USD', gpu_hour: 0, cpu_hour: 0, million_tokens: 0, thousand_tool_calls: 0 },
      }),
      worlds: {
        open: async () => ({
          search: async () => ({ results: [], denied: 0 }),
          visit: async () => [],
          close: async () => undefined,
          ...watch,
        }),
      },
      judges: { open: async () => async (rows) => rows },
      tokenizers: { load: async () => tokenizer },
      progress: async () => undefined,
      work: join(folder, 'work'),
    }),
    request: (cutoff) =>
      stack.store.putBlob(
        Buffer.from(
          [{ batch_size: SIZE }, ...Array.from({ length: SIZE }, (_, index) => spec(index, cutoff))]
            .map((line) => JSON.stringify(line))
            .join('\n'),
        ),
      ),
  };
  return state;
}

const run = (deps: RolloutDeps, request: string, environment = new MockActivityEnvironment()): Promise<RolloutShard> =>
  environment.run(createRolloutActivities(deps).rolloutBatch, {
    node,
    step: 1,
    request,
    batch: 0,
    checkpoint,
    holder: 'rollouts/test',
  }) as Promise<RolloutShard>;

async function rowsOf({ blob }: RolloutShard): Promise<Trajectory[]> {
  const rows: Trajectory[] = [];
  for await (const row of readParquet<Trajectory>(await stack.store.openBlob(blob))) rows.push(row);
  return rows;
}

beforeEach(async () => {
  await stack.pool.query('truncate rollout_shards, turns, spend');
});

const endings = (rows: readonly Trajectory[]) => ({
  early: rows.slice(0, ANSWER_AT_ONCE).map(({ termination }) => termination),
  late: rows.slice(ANSWER_AT_ONCE).map(({ termination }) => termination),
});
const all = (count: number, termination: string) => Array.from({ length: count }, () => termination);

describe('rollout.cutoff', () => {
  test('at 0.56, 14 of 25 end the others: each finishes its turn and gives its answer', async () => {
    const { deps, request, sampled } = play();
    const rows = await rowsOf(await run(deps(), await request(CUTOFF)));
    expect(endings(rows)).toEqual({
      early: all(ANSWER_AT_ONCE, 'answer'),
      late: all(SIZE - ANSWER_AT_ONCE, 'cutoff'),
    });
    for (let index = ANSWER_AT_ONCE; index < SIZE; index += 1) {
      const turns = sampled.get(index) as string[];
      // Three while 13 had ended, which cuts nobody off; and no more than until the 14th was recorded.
      expect(turns.slice(0, 3)).toEqual(['call', 'call', 'call']);
      expect(turns.at(-1)).toBe('forced');
      expect(turns.length).toBeLessThan(12);
    }
    expect(rows.every(({ answer, score }) => answer === 'MIT' && score.exact_match === 1)).toBe(true);
  });

  test('without it, everybody goes on to the limit of turns', async () => {
    const { deps, request, sampled } = play();
    const rows = await rowsOf(await run(deps(), await request(null)));
    expect(endings(rows).late).toEqual(all(SIZE - ANSWER_AT_ONCE, 'max_turns'));
    expect(sampled.get(SIZE - 1)).toHaveLength(13); // max_turns, and the forced answer
  });

  test('what comes back from a tool after the cut-off is not read', async () => {
    const { deps, request, sampled } = play();
    const answered = moment();
    const journal = new TurnJournal(stack.pool);
    // The third search of each returns only once 14 have ended.
    let ended = 0;
    const search: World['search'] = async ([index]) => {
      if ((sampled.get(Number(index)) ?? []).length >= 3) await answered.waited;
      return { results: [], denied: 0 };
    };
    const using = deps({ search });
    const rows = await rowsOf(
      await run(
        {
          ...using,
          journal,
          judges: {
            open: async () => async (graded) => {
              ended += 1;
              if (ended === ANSWER_AT_ONCE) setImmediate(answered.come);
              return graded;
            },
          },
        },
        await request(CUTOFF),
      ),
    );
    expect(endings(rows).late).toEqual(all(SIZE - ANSWER_AT_ONCE, 'cutoff'));
    for (let index = ANSWER_AT_ONCE; index < SIZE; index += 1)
      expect(sampled.get(index)).toEqual(['call', 'call', 'call', 'forced']);
  });

  test('a second attempt counts what the first had finished, and whoever was cut off stays so', async () => {
    const first = play();
    const request = await first.request(CUTOFF);
    const environment = new MockActivityEnvironment();
    const journal = new TurnJournal(stack.pool);
    const watched = {
      append: async (...[id, record]: Parameters<TurnJournal['append']>) => {
        await journal.append(id, record);
        if (record.termination === 'cutoff' && record.observation !== null) environment.cancel();
      },
      load: journal.load.bind(journal),
      drop: journal.drop.bind(journal),
    } as unknown as TurnJournal;
    await expect(run({ ...first.deps(), journal: watched }, request, environment)).rejects.toThrow();
    const before = await journal.load(Array.from({ length: SIZE }, (_, index) => `cut/${index}`));

    const second = play();
    const rows = await rowsOf(await run(second.deps(), request));
    expect(endings(rows)).toEqual({
      early: all(ANSWER_AT_ONCE, 'answer'),
      late: all(SIZE - ANSWER_AT_ONCE, 'cutoff'),
    });
    for (let index = 0; index < ANSWER_AT_ONCE; index += 1) expect(second.sampled.has(index)).toBe(false);
    for (let index = ANSWER_AT_ONCE; index < SIZE; index += 1) {
      const isCut = before.get(`cut/${index}`)?.at(-1)?.termination === 'cutoff';
      if (isCut) expect((second.sampled.get(index) ?? []).filter((turn) => turn !== 'forced')).toEqual([]);
      else expect((second.sampled.get(index) as string[]).length).toBeLessThanOrEqual(3);
    }
  });
});
