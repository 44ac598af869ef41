/** Context management: what a full context becomes, and that every sampled token is trained once, as it was sampled. */
import { copyFile, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { MockActivityEnvironment } from '@temporalio/testing';
import { beforeAll, describe, expect, test } from 'vitest';
import { readParquet, trajectoryColumns, writeParquet } from '../../activities/adapters/parquet.ts';
import { createPlanRlStepActivities } from '../../activities/plan-rl-step.ts';
import {
  type Branches,
  type Limits,
  runTrajectory,
  type SampleRequest,
  type TrajectoryInput,
  type TurnRecord,
} from '../../environments/deep-research/agent-loop.ts';
import {
  loadTokenizer,
  renderAction,
  renderDropped,
  renderForcedAnswer,
  renderObservation,
  renderPrompt,
  renderSummaryRequest,
  type Tokenizer,
} from '../../environments/deep-research/prompt.ts';
import type { World } from '../../environments/environment.ts';
import { HEALTH_METRICS } from '../../schemas/health-metrics.ts';
import type { Task } from '../../schemas/task.ts';
import { modelsDir } from '../../services/home.ts';

let t: Tokenizer;
let prompt: number[];
beforeAll(async () => {
  t = await loadTokenizer(path.join(modelsDir(), 'smollm2-135m-instruct'));
  prompt = renderPrompt(t, { question: task.question, tools: ['search', 'visit'] });
});

const task: Task = {
  task_id: 'task-1',
  question: 'What licence has zod?',
  answer: 'MIT',
  aliases: [],
  capability: 'direct_retrieval',
  split: 'train',
  source: 'made',
  evidence: ['npm:zod'],
  deny_urls: [],
};
const call = (tool: string, args: object) =>
  `<think>a</think>\n<tool_call>${JSON.stringify({ name: tool, arguments: args })}</tool_call>`;
const search = call('search', { query: ['zod'] });
const visit = call('visit', { url: ['npm:zod'], goal: 'licence' });
const answer = '<think>c</think>\n<answer>MIT</answer>';
const summary = '<think>d</think>\nzod (npm:zod) is a schema library; I asked for its page to read its licence.';

/** A page that fills an observation of 96 tokens. */
const page = 'Licence: MIT. '.repeat(100);
const world: World = {
  search: async () => ({ results: [{ url: 'npm:zod', title: 'zod', snippet: page, score: 1 }], denied: 0 }),
  visit: async (urls) => urls.map((url) => ({ url, status: 'ok', title: 'zod', text: page, truncated: false })),
  close: async () => undefined,
};
const limits: Limits = { maxTurns: 12, maxTurnTokens: 80, observationTokens: 96, searchResults: 3, contextLength: 760 };

interface Asked {
  ids: number[];
  request: SampleRequest;
  token_ids: number[];
  logprobs: number[];
}

/** Says the given actions, by turn; remembers what it was asked and what it answered. */
function scripted(actions: (string | number[])[]) {
  const asked: Asked[] = [];
  let turn = 0;
  const sample = async (ids: readonly number[], request: SampleRequest) => {
    const action = actions[Math.min(turn, actions.length - 1)] ?? '';
    turn += 1;
    const token_ids = (typeof action === 'string' ? renderAction(t, action) : action).slice(0, request.maxTokens);
    const logprobs = token_ids.map((id, index) => -((id % 97) + 1) / 100 - index / 1000);
    asked.push({ ids: [...ids], request, token_ids, logprobs });
    return { token_ids, logprobs, weight_version: 'weights' };
  };
  return { sample, asked };
}

function input(overrides: Partial<TrajectoryInput>): TrajectoryInput {
  return {
    trajectory_id: 'tr-1',
    group_id: 'g-1',
    sample_index: 0,
    checkpoint: 'weights',
    task,
    world,
    sample: scripted([answer]).sample,
    tokenizer: t,
    tools: ['search', 'visit'],
    limits,
    contextManagement: 'none',
    faults: null,
    sampling: { temperature: 1, top_p: 1, seed: 7 },
    reward: { outcome: 'exact_match', format_penalty: 1 },
    ...overrides,
  };
}

/** Every completion stands in one row, after the ids it was conditioned on, with its logprobs; nothing else is trained. */
function expectTrainedAsSampled(branches: Branches, asked: readonly Asked[]): void {
  const actions = branches.flatMap((row) =>
    row.spans
      .filter(({ kind }) => kind === 'action')
      .map(({ start, end, turn }) => ({
        turn,
        ids: row.token_ids.slice(0, start),
        token_ids: row.token_ids.slice(start, end),
        logprobs: row.logprobs.slice(start, end),
        mask: row.mask.slice(start, end),
      })),
  );
  expect(actions.map(({ turn }) => turn)).toEqual(asked.map((_, turn) => turn));
  for (const [turn, { ids, token_ids, logprobs }] of asked.entries())
    expect(actions[turn]).toEqual({ turn, ids, token_ids, logprobs, mask: token_ids.map(() => 1) });
  const trained = branches.flatMap(({ mask }) => mask).reduce((sum, bit) => sum + bit, 0);
  expect(trained).toBe(asked.reduce((sum, { token_ids }) => sum + token_ids.length, 0));
  for (const { token_ids, mask, logprobs, spans } of branches) {
    expect(spans.at(0)?.start).toBe(0);
    for (const [index, span] of spans.entries()) expect(span.start).toBe(spans[index - 1]?.end ?? 0);
    expect(spans.at(-1)?.end).toBe(token_ids.length);
    expect([mask.length, logprobs.length]).toEqual([token_ids.length, token_ids.length]);
    expect(token_ids.length).toBeLessThanOrEqual(limits.contextLength);
  }
}

const withoutLatency = (branches: Branches) =>
  branches.map((row) => ({ ...row, spans: row.spans.map((span) => ({ ...span, latency_ms: 0 })) }));

const MANAGERS = ['drop_observations', 'summarize'] as const;

describe('drop_observations', () => {
  test('a new branch holds every action as sampled, markers for what was observed, and the newest observation', async () => {
    const { sample, asked } = scripted([search, visit, search, answer]);
    const branches = await runTrajectory(input({ sample, contextManagement: 'drop_observations' }));
    expect(branches).toHaveLength(2);
    expectTrainedAsSampled(branches, asked);

    const [first, second] = branches;
    const kept = first.spans.filter(({ kind }) => kind === 'action').length;
    const marker = renderDropped(t);
    const context = asked
      .slice(0, kept)
      .flatMap(({ token_ids }, turn) => (turn + 1 < kept ? [...token_ids, ...marker] : token_ids));
    const [repeated, observation] = second?.spans ?? [];
    expect(repeated).toMatchObject({ kind: 'prompt', start: 0, turn: kept });
    expect(second?.token_ids.slice(0, repeated?.end)).toEqual([...prompt, ...context]);
    expect(observation).toMatchObject({ kind: 'observation', turn: kept - 1, status: 'ok' });
    const page96 = t.decode(second?.token_ids.slice(observation?.start, observation?.end) ?? []);
    expect(page96).toContain('Licence: MIT.');
    // What did not fit is in the new branch only.
    expect(first.spans.at(-1)?.kind).toBe('action');
  });

  test('the outcome, score and answer are of the trajectory and stand in every row; turn rewards are of the branch', async () => {
    const { sample } = scripted(['no tags', search, visit, search, answer]);
    const branches = await runTrajectory(input({ sample, contextManagement: 'drop_observations' }));
    expect(branches.length).toBeGreaterThan(1);
    for (const [index, row] of branches.entries()) {
      expect(row).toMatchObject({ branch: index, trajectory_id: 'tr-1', answer: 'MIT', termination: 'answer' });
      expect(row.reward.outcome).toBe(1);
      expect(row.score).toMatchObject({ exact_match: 1, format_valid: false, answer_in_observation: true });
      expect(row.reward.turns).toHaveLength(row.spans.filter(({ kind }) => kind === 'action').length);
    }
    expect(branches.flatMap(({ reward }) => reward.turns)).toEqual([-1, null, null, null, null]);
  });

  test('when the actions alone fill the context the answer is forced', async () => {
    const { sample, asked } = scripted([search]);
    const branches = await runTrajectory(
      input({ sample, contextManagement: 'drop_observations', limits: { ...limits, maxTurns: 1000 } }),
    );
    expect(branches.at(-1)).toMatchObject({ termination: 'context' });
    expect(branches.at(-1)?.spans.at(-2)).toMatchObject({ status: 'forced' });
    expectTrainedAsSampled(branches, asked);
  });
});

describe('summarize', () => {
  test('the summary is asked for in the old branch and trained there; the new one is prompt, summary, observation', async () => {
    const { sample, asked } = scripted([search, visit, search, summary, answer]);
    const branches = await runTrajectory(input({ sample, contextManagement: 'summarize' }));
    expect(branches).toHaveLength(2);
    expectTrainedAsSampled(branches, asked);

    const [first, second] = branches;
    expect(first.spans.at(-1)).toMatchObject({ kind: 'action', tool: 'summary', status: 'ok', turn: 3 });
    const request = first.spans.at(-2);
    expect(request).toMatchObject({ kind: 'observation', status: 'summary', tool: null, turn: 2 });
    expect(first.token_ids.slice(request?.start, request?.end)).toEqual(renderSummaryRequest(t));
    const [repeated, observation] = second?.spans ?? [];
    expect(second?.token_ids.slice(0, repeated?.end)).toEqual([...prompt, ...renderAction(t, summary)]);
    expect(observation).toMatchObject({ kind: 'observation', tool: 'search', status: 'ok', turn: 3 });
    expect(first.reward.outcome).toBe(1);
  });

  test('a summary that was cut is malformed, and is closed untrained', async () => {
    const endless = Array.from({ length: 500 }, () => 30);
    const { sample, asked } = scripted([search, visit, search, endless, answer]);
    const branches = await runTrajectory(input({ sample, contextManagement: 'summarize' }));
    expectTrainedAsSampled(branches, asked);
    expect(branches[0].spans.at(-1)).toMatchObject({ tool: null, status: 'malformed' });
    const [repeated, observation] = branches[1]?.spans ?? [];
    expect(repeated?.end).toBe(prompt.length + limits.maxTurnTokens);
    const told = branches[1]?.token_ids.slice(observation?.start, observation?.end) ?? [];
    const text = /<tool_response>\n([\s\S]*)\n<\/tool_response>/.exec(t.decode(told))?.[1] ?? '';
    expect(told).toEqual(renderObservation(t, text, { cut: true }));
    expect(branches.flatMap(({ reward }) => reward.turns)).toEqual([null, null, null, -1, null]);
  });

  test('an answer in the place of a summary is the answer', async () => {
    const { sample, asked } = scripted([search, visit, search, answer]);
    const branches = await runTrajectory(input({ sample, contextManagement: 'summarize' }));
    expect(branches).toHaveLength(1);
    expect(branches[0]).toMatchObject({ termination: 'answer', answer: 'MIT' });
    expectTrainedAsSampled(branches, asked);
  });

  test('at the cut-off the forced answer follows the summary', async () => {
    const { sample, asked } = scripted([search, visit, search, summary, answer]);
    const branches = await runTrajectory(
      input({ sample, contextManagement: 'summarize', isCutOff: () => asked.length >= 4 }),
    );
    expect(branches.at(-1)).toMatchObject({ termination: 'cutoff', answer: 'MIT' });
    const forced = branches.at(-1)?.spans[1];
    expect(branches.at(-1)?.token_ids.slice(forced?.start, forced?.end)).toEqual(renderForcedAnswer(t));
    expectTrainedAsSampled(branches, asked);
  });
});

describe.each(MANAGERS)('with %s', (contextManagement) => {
  test('max_turns is over all branches, summaries included, and no script makes it go on for ever', async () => {
    for (const script of [
      [search],
      [summary],
      ['no tags'],
      [search, summary],
      [search, visit, search, summary, search],
    ]) {
      for (const maxTurns of [1, 2, 5, 12]) {
        const { sample, asked } = scripted(Array.from({ length: 99 }, (_, turn) => script[turn % script.length] ?? ''));
        const branches = await runTrajectory(input({ sample, contextManagement, limits: { ...limits, maxTurns } }));
        expect(asked.length).toBeLessThanOrEqual(maxTurns + 1);
        expectTrainedAsSampled(branches, asked);
        expect(branches.at(-1)?.spans.at(-1)?.kind).toBe('action');
      }
    }
  });

  test.each([420, 500, 640, 777, 1000])('within a context of %i no id is beyond it', async (contextLength) => {
    const endless = Array.from({ length: 500 }, () => 30);
    for (const script of [[search], [endless], [search, endless]]) {
      const { sample, asked } = scripted(Array.from({ length: 99 }, (_, turn) => script[turn % script.length] ?? ''));
      const branches = await runTrajectory(
        input({ sample, contextManagement, limits: { ...limits, maxTurns: 40, contextLength } }),
      );
      for (const { ids, request } of asked) expect(ids.length + request.maxTokens).toBeLessThanOrEqual(contextLength);
      for (const { token_ids } of branches) expect(token_ids.length).toBeLessThanOrEqual(contextLength);
    }
  });

  test('a trajectory resumed from any turn is the same, and samples only the turns after it', async () => {
    const script = [search, 'no tags', visit, search, summary, search, visit, search, visit, answer];
    const records: TurnRecord[] = [];
    const whole = await runTrajectory(
      input({
        sample: scripted(script).sample,
        contextManagement,
        onTurn: async (record) => void records.push(record),
      }),
    );
    expect(whole.length).toBeGreaterThan(1);
    for (let kept = 0; kept <= records.length; kept += 1) {
      const { sample, asked } = scripted(script.slice(kept));
      const journal = JSON.parse(JSON.stringify(records.slice(0, kept))) as TurnRecord[];
      const resumed = await runTrajectory(input({ sample, contextManagement, resumeFrom: journal }));
      expect(asked).toHaveLength(records.length - kept);
      expect(withoutLatency(resumed)).toEqual(withoutLatency(whole));
    }
  });

  test('a trajectory that fits is what it is without', async () => {
    const script = [search, visit, answer];
    const roomy = { ...limits, contextLength: 4000 };
    const [managed, plain] = await Promise.all(
      [contextManagement, 'none' as const].map((management) =>
        runTrajectory(input({ sample: scripted(script).sample, limits: roomy, contextManagement: management })),
      ),
    );
    expect(withoutLatency(managed as Branches)).toEqual(withoutLatency(plain as Branches));
  });
});

/** What planRlStep hands the trainer for these trajectories, as they come out of a sealed shard. */
async function trainingBatch(trajectories: readonly Branches[]) {
  const folder = await mkdtemp(path.join(tmpdir(), 'batch-'));
  try {
    const shard = path.join(folder, 'shard');
    const batch = path.join(folder, 'batch');
    await writeParquet(shard, trajectories.flat(), trajectoryColumns);
    const algorithm = { name: 'grpo', clip: { low: 0.2, high: 0.4, dual: null }, kl: null, loss: 'token_mean' };
    const parameters = {
      rollout: { group_size: 2, prompts_per_step: 1, temperature: 1, top_p: 1, max_staleness: 0, cutoff: null },
      algorithm: { ...algorithm, importance: null, normalize_std: true, overlong: null, igpo: null },
      optimizer: { minibatch: 1 },
      keep: null,
    };
    const recorded: Record<string, number>[] = [];
    const { planRlStep } = createPlanRlStepActivities({
      plans: { node: async () => ({ id: 'rl', kind: 'rl', parameters, unkeyed: {} }) },
      store: {
        openBlob: async () => shard,
        putBlob: async (written: string) => copyFile(written, batch).then(() => 'blob'),
      },
      ledger: { plan: async () => undefined },
      progress: {
        record: async (_key: string, _step: number, metrics: Record<string, number>) => recorded.push(metrics),
      },
      work: folder,
    } as unknown as Parameters<typeof createPlanRlStepActivities>[0]);
    await new MockActivityEnvironment().run(planRlStep, {
      node: { plan: 'p', arm: 'base', id: 'rl', kind: 'rl', key: 'k' },
      step: 1,
      shards: [{ blob: 'shard', trajectories: trajectories.length, failed: 0 }],
      checkpoint: { digest: 'weights' },
      last: true,
    } as unknown as Parameters<typeof planRlStep>[0]);
    interface Row {
      sequence_id: string;
      token_ids: number[];
      mask: number[];
      behavior_logprobs: number[];
      advantages: number[];
    }
    const rows: Row[] = [];
    for await (const row of readParquet<Row>(batch)) rows.push(row);
    return { rows, metrics: recorded[0] ?? {} };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

test('what trains is what was sampled: tool calls, malformed and cut turns, forced answers, dropped observations, summaries', async () => {
  const endless = Array.from({ length: 500 }, () => 30);
  const odd = [...[...search].flatMap((character) => t.encodeText(character)), 2];
  const scripts = [
    [search, visit, search, 'no tags', answer],
    [search, endless, visit, odd, answer],
    [search, visit, search, summary, search, visit, summary, endless, answer],
    [odd, search, visit, endless, visit, search, search, search],
  ];
  for (const contextManagement of ['none', ...MANAGERS] as const) {
    const sampled = new Map<string, Asked[]>();
    const trajectories: Branches[] = [];
    for (const [index, script] of scripts.entries()) {
      const { sample, asked } = scripted(script);
      const trajectory_id = `tr-${index}`;
      const group = { trajectory_id, group_id: 'g', sample_index: index };
      trajectories.push(
        await runTrajectory(input({ ...group, sample, contextManagement, limits: { ...limits, maxTurns: 9 } })),
      );
      sampled.set(trajectory_id, asked);
    }
    const { rows, metrics } = await trainingBatch(trajectories);
    expect(metrics['rollout/trajectories']).toBe(scripts.length);
    expect(Object.keys(metrics)).toEqual(
      expect.arrayContaining(HEALTH_METRICS.filter((name) => name.startsWith('rollout/'))),
    );
    expect(metrics['rollout/turns']).toBe([...sampled.values()].flat().length / scripts.length);

    const trained = rows.flatMap(({ sequence_id, token_ids, mask, behavior_logprobs }) =>
      token_ids.flatMap((id, at) =>
        mask[at] === 1
          ? [
              {
                of: sequence_id.replace(/#\d+$/, ''),
                before: token_ids.slice(0, at),
                id,
                logprob: behavior_logprobs[at],
              },
            ]
          : [],
      ),
    );
    const expected = [...sampled].flatMap(([of, asked]) =>
      asked.flatMap(({ ids, token_ids, logprobs }) =>
        token_ids.map((id, at) => ({
          of,
          before: [...ids, ...token_ids.slice(0, at)],
          id,
          logprob: Math.fround(logprobs[at] as number),
        })),
      ),
    );
    expect(trained.length).toBe(expected.length);
    const differing = trained.filter((token, at) => JSON.stringify(token) !== JSON.stringify(expected[at]));
    expect(differing).toEqual([]);
    for (const { mask, advantages } of rows)
      for (const [at, advantage] of advantages.entries()) if (mask[at] === 0) expect(advantage).toBe(0);
  }
}, 60_000);
