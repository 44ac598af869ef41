import path from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import {
  type Limits,
  RolloutFailure,
  runTrajectory as runBranches,
  type SampleRequest,
  type TrajectoryInput,
  type TurnRecord,
  turnSeed,
} from '../../environments/deep-research/agent-loop.ts';
import {
  loadTokenizer,
  recordedTurns,
  renderAction,
  renderForcedAnswer,
  renderPrompt,
  renderTrajectory,
  type Tokenizer,
} from '../../environments/deep-research/prompt.ts';
import type { World } from '../../environments/environment.ts';
import type { Task } from '../../schemas/task.ts';
import { modelsDir } from '../../services/home.ts';

let t: Tokenizer;
beforeAll(async () => {
  t = await loadTokenizer(path.join(modelsDir(), 'smollm2-135m-instruct'));
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
const limits: Limits = { maxTurns: 4, maxTurnTokens: 80, observationTokens: 96, searchResults: 3, contextLength: 1200 };
const search = '<think>a</think>\n<tool_call>{"name": "search", "arguments": {"query": ["zod"]}}</tool_call>';
const visit =
  '<think>b</think>\n<tool_call>{"name": "visit", "arguments": {"url": ["npm:zod"], "goal": "licence"}}</tool_call>';
const answer = '<think>c</think>\n<answer>MIT</answer>';

class OnePageWorld implements World {
  calls = 0;
  async search() {
    this.calls += 1;
    return { results: [{ url: 'npm:zod', title: 'zod', snippet: 'schema validation', score: 1 }], denied: 0 };
  }
  async visit(urls: readonly string[]) {
    this.calls += 1;
    return urls.map((url) => ({ url, status: 'ok' as const, title: 'zod', text: 'Licence: MIT', truncated: false }));
  }
  async close() {}
}

/** Says the given actions in turn; remembers what it was asked. */
function scripted(actions: (string | number[])[]) {
  const asked: { ids: number[]; request: SampleRequest }[] = [];
  const sample = async (ids: readonly number[], request: SampleRequest) => {
    const action = actions[asked.length % actions.length] ?? '';
    asked.push({ ids: [...ids], request });
    const token_ids = (typeof action === 'string' ? renderAction(t, action) : action).slice(0, request.maxTokens);
    return { token_ids, logprobs: token_ids.map((_, index) => -0.5 - index), weight_version: 'weights' };
  };
  return { sample, asked };
}

/** Without context management a trajectory is one branch. */
async function runTrajectory(trajectory: TrajectoryInput) {
  const [only, ...others] = await runBranches(trajectory);
  expect(others).toEqual([]);
  return only;
}

function input(overrides: Partial<TrajectoryInput>): TrajectoryInput {
  return {
    trajectory_id: 'tr-1',
    group_id: 'g-1',
    sample_index: 0,
    checkpoint: 'weights',
    task,
    world: new OnePageWorld(),
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

test('what the leak guard held back is counted in the observation', async () => {
  const world = Object.assign(new OnePageWorld(), { search: async () => ({ results: [], denied: 2 }) });
  const { spans } = await runTrajectory(input({ world, sample: scripted([search, answer]).sample }));
  expect(spans.map(({ kind, denied }) => [kind, denied])).toEqual([
    ['prompt', 0],
    ['action', 0],
    ['observation', 2],
    ['action', 0],
  ]);
});

test('search, visit, answer: ids, mask, logprobs, spans and score', async () => {
  const { sample, asked } = scripted([search, visit, answer]);
  const trajectory = await runTrajectory(input({ sample }));

  expect(trajectory).toMatchObject({ termination: 'answer', answer: 'MIT', failure_class: null, branch: 0 });
  expect(trajectory.score).toEqual({ exact_match: 1, f1: 1, format_valid: true, answer_in_observation: true });
  expect(trajectory.reward).toEqual({ outcome: 1, turns: [null, null, null] });
  expect(trajectory.spans.map(({ kind, tool, status }) => `${kind} ${tool} ${status}`)).toEqual([
    'prompt null ok',
    'action search ok',
    'observation search ok',
    'action visit ok',
    'observation visit ok',
    'action answer ok',
  ]);
  for (const { kind, start, end } of trajectory.spans) {
    expect(trajectory.mask.slice(start, end).every((bit) => bit === (kind === 'action' ? 1 : 0))).toBe(true);
    if (kind !== 'action') expect(trajectory.logprobs.slice(start, end).every((logprob) => logprob === 0)).toBe(true);
  }
  expect(trajectory.spans.at(-1)?.end).toBe(trajectory.token_ids.length);
  expect(trajectory.logprobs).toHaveLength(trajectory.token_ids.length);
  // Every request is what the trajectory held at that point: nothing was tokenised again.
  const starts = trajectory.spans.filter(({ kind }) => kind === 'action').map(({ start }) => start);
  expect(asked.map(({ ids }) => ids)).toEqual(starts.map((start) => trajectory.token_ids.slice(0, start)));
});

test('sampled ids that no text would give are kept as sampled, and render for SFT as themselves', async () => {
  const odd = [...search].flatMap((character) => t.encodeText(character));
  const { sample } = scripted([[...odd, 2], answer]);
  const trajectory = await runTrajectory(input({ sample, limits: { ...limits, maxTurnTokens: 120 } }));
  const [, action] = trajectory.spans;
  expect(trajectory.token_ids.slice(action?.start, action?.end)).toEqual([...odd, 2]);
  expect(action?.status).toBe('ok');
  const rendered = renderTrajectory(t, {
    question: task.question,
    tools: ['search', 'visit'],
    turns: recordedTurns(trajectory),
  });
  expect(rendered.token_ids).toEqual(trajectory.token_ids);
  expect(rendered.mask).toEqual(trajectory.mask);
});

describe('limits', () => {
  test('max_turns counts completions before the forced one, whose message takes the place of the pending observation', async () => {
    const world = new OnePageWorld();
    const { sample, asked } = scripted([search, search, search, search, answer]);
    const trajectory = await runTrajectory(input({ sample, world }));
    expect(asked).toHaveLength(limits.maxTurns + 1);
    expect(trajectory).toMatchObject({ termination: 'max_turns', answer: 'MIT', score: { exact_match: 1 } });
    const forced = trajectory.spans.at(-2);
    expect(forced).toMatchObject({ kind: 'observation', status: 'forced', turn: limits.maxTurns - 1 });
    expect(trajectory.token_ids.slice(forced?.start, forced?.end)).toEqual(renderForcedAnswer(t));
    expect(world.calls).toBe(limits.maxTurns - 1); // nobody would have read the last observation
  });

  test.each([350, 450, 600, 777, 1000])(
    'within a context of %i no id is beyond it, and room for the forced turn was kept',
    async (contextLength) => {
      const { sample } = scripted([search, visit]);
      const trajectory = await runTrajectory(input({ sample, limits: { ...limits, maxTurns: 50, contextLength } }));
      expect(trajectory.termination).toBe('context');
      expect(trajectory.token_ids.length).toBeLessThanOrEqual(contextLength);
      expect(trajectory.spans.at(-2)).toMatchObject({ kind: 'observation', status: 'forced' });
      expect(trajectory.spans.at(-1)).toMatchObject({ kind: 'action', status: 'malformed' }); // a call where an answer was due
      expect(trajectory.reward.outcome).toBe(-1);
    },
  );

  test('a prompt that leaves room for one turn only gets that turn', async () => {
    const prompt = renderPrompt(t, { question: task.question, tools: ['search', 'visit'] }).length;
    const { sample, asked } = scripted([answer]);
    const trajectory = await runTrajectory(
      input({ sample, limits: { ...limits, contextLength: prompt + limits.maxTurnTokens } }),
    );
    expect(asked).toHaveLength(1);
    expect(trajectory).toMatchObject({ termination: 'answer', answer: 'MIT' });
  });

  test('a prompt that leaves no room is a failure of the budget, not a wrong answer', async () => {
    await expect(runTrajectory(input({ limits: { ...limits, contextLength: 200 } }))).rejects.toMatchObject({
      failureClass: 'budget',
    });
  });

  test('at the cut-off the next turn is the forced one', async () => {
    const { sample, asked } = scripted([search, answer]);
    const trajectory = await runTrajectory(input({ sample, isCutOff: () => true }));
    expect(asked).toHaveLength(2);
    expect(trajectory).toMatchObject({ termination: 'cutoff', answer: 'MIT' });
  });
});

describe('malformed output is data', () => {
  test('a malformed turn gets an error observation, a penalty, and goes on', async () => {
    const { sample } = scripted(['I think it is MIT.', search, answer]);
    const trajectory = await runTrajectory(input({ sample }));
    expect(trajectory).toMatchObject({ termination: 'answer', score: { exact_match: 1, format_valid: false } });
    expect(trajectory.reward).toEqual({ outcome: 1, turns: [-1, null, null] });
    expect(trajectory.spans[2]).toMatchObject({ kind: 'observation', tool: null, status: 'malformed' });
    expect(trajectory.messages[2]?.content).toContain('malformed');
  });

  test('a completion cut in the middle keeps its ids and logprobs and is closed untrained', async () => {
    const endless = Array.from({ length: 500 }, () => 30);
    const { sample } = scripted([endless, answer]);
    const trajectory = await runTrajectory(input({ sample }));
    const [, action, observation] = trajectory.spans;
    expect(action).toMatchObject({ status: 'malformed' });
    expect((action?.end ?? 0) - (action?.start ?? 0)).toBe(limits.maxTurnTokens);
    expect(trajectory.token_ids[observation?.start ?? 0]).toBe(2);
    expect(trajectory.mask[observation?.start ?? 0]).toBe(0);
    expect(trajectory.termination).toBe('answer');
  });

  test('endless repetition ends by the caps, in every way of being malformed', async () => {
    for (const action of [
      '<think>'.repeat(9),
      '',
      '<think>a</think><tool_call>{"name":"python","arguments":{}}</tool_call>',
      answer + search,
    ]) {
      const { sample, asked } = scripted([action]);
      const trajectory = await runTrajectory(input({ sample }));
      expect(asked.length).toBeLessThanOrEqual(limits.maxTurns + 1);
      expect(trajectory).toMatchObject({
        answer: null,
        score: { exact_match: 0, format_valid: false },
        reward: { outcome: -1 },
      });
    }
  });

  test('a stop token written as text does not stop anything', async () => {
    const { sample } = scripted([[...t.encodeText('<think>a</think><answer>MIT</answer><|im_end|>')], answer]);
    const trajectory = await runTrajectory(input({ sample }));
    expect(trajectory.spans[1]?.status).toBe('malformed');
  });
});

describe('resuming', () => {
  test('from any recorded turn gives the same trajectory, and samples only the turns after it', async () => {
    const script = [search, 'malformed', visit, search, answer];
    const records: TurnRecord[] = [];
    const whole = await runTrajectory(
      input({ sample: scripted(script).sample, onTurn: async (record) => void records.push(record) }),
    );
    expect(records).toHaveLength(5);
    for (let kept = 0; kept <= records.length; kept += 1) {
      const { sample, asked } = scripted(script.slice(kept));
      const journal = JSON.parse(JSON.stringify(records.slice(0, kept))) as TurnRecord[];
      const resumed = await runTrajectory(input({ sample, resumeFrom: journal }));
      expect(asked).toHaveLength(records.length - kept);
      const latency = ({ spans, ...rest }: typeof whole) => ({
        ...rest,
        spans: spans.map((span) => ({ ...span, latency_ms: 0 })),
      });
      expect(latency(resumed)).toEqual(latency(whole));
    }
  });

  test('a turn is journaled before the next one is sampled', async () => {
    const order: string[] = [];
    const { sample } = scripted([search, answer]);
    await runTrajectory(
      input({
        sample: async (ids, request) => {
          order.push('sample');
          return sample(ids, request);
        },
        onTurn: async ({ turn }) => {
          await new Promise((resolve) => setTimeout(resolve, 5));
          order.push(`turn ${turn}`);
        },
      }),
    );
    expect(order).toEqual(['sample', 'turn 0', 'sample', 'turn 1']);
  });

  test('each turn has its own seed, the same at every attempt', async () => {
    const { sample, asked } = scripted([search, answer]);
    await runTrajectory(input({ sample }));
    expect(asked.map(({ request }) => request.seed)).toEqual([turnSeed(7, 0), turnSeed(7, 1)]);
    expect(new Set([turnSeed(7, 0), turnSeed(7, 1), turnSeed(8, 0)]).size).toBe(3);
  });
});

describe('infrastructure', () => {
  test('an engine that fails is a failure of the engine', async () => {
    const failing = runTrajectory(input({ sample: () => Promise.reject(new Error('503')) }));
    await expect(failing).rejects.toBeInstanceOf(RolloutFailure);
    await expect(failing).rejects.toMatchObject({ failureClass: 'engine' });
  });
  test('a world that fails is a failure of the tool', async () => {
    const world = new OnePageWorld();
    world.search = () => Promise.reject(new Error('milvus is down'));
    await expect(runTrajectory(input({ world, sample: scripted([search]).sample }))).rejects.toMatchObject({
      failureClass: 'tool',
    });
  });
  test('a cancelled trajectory is cancelled, not failed', async () => {
    const cancelling = new AbortController();
    const sample = () => {
      cancelling.abort(new Error('cancelled'));
      return Promise.reject(new Error('socket closed'));
    };
    await expect(runTrajectory(input({ sample, signal: cancelling.signal }))).rejects.not.toBeInstanceOf(
      RolloutFailure,
    );
  });
});

test('a belief is measured before each turn, while the turn runs, and is journaled with it', async () => {
  const events: string[] = [];
  const { sample } = scripted([search, visit, answer]);
  const journal: TurnRecord[] = [];
  const contexts: number[][] = [];
  const trajectory = await runTrajectory(
    input({
      sample: async (ids, request) => {
        events.push('sampling');
        return sample(ids, request);
      },
      believe: (ids, turn, toolBefore) => {
        events.push(`before ${turn} after ${toolBefore}`);
        contexts.push([...ids]);
        return turn === 1 ? null : Promise.resolve(-turn - 0.5);
      },
      onTurn: async (record) => void journal.push(record),
    }),
  );
  expect(events).toEqual([
    'before 0 after null',
    'sampling',
    'before 1 after search',
    'sampling',
    'before 2 after visit',
    'sampling',
  ]);
  const starts = trajectory.spans.filter(({ kind }) => kind === 'action').map(({ start }) => start);
  expect(contexts).toEqual(starts.map((start) => trajectory.token_ids.slice(0, start)));
  expect(journal.map(({ belief }) => belief)).toEqual([-0.5, undefined, -2.5]);
  expect(trajectory.beliefs).toEqual([-0.5, null, -2.5]);
});

test('a resumed trajectory does not measure a belief twice, and none is measured where none is wanted', async () => {
  const journal: TurnRecord[] = [];
  const whole = scripted([search, answer]);
  await runTrajectory(
    input({
      sample: whole.sample,
      believe: async (_, turn) => -turn,
      onTurn: async (record) => void journal.push(record),
    }),
  );
  const asked: number[] = [];
  const resumed = await runTrajectory(
    input({
      sample: scripted([answer]).sample,
      resumeFrom: journal.slice(0, 1),
      believe: async (_, turn) => asked.push(turn),
    }),
  );
  expect(asked).toEqual([1]);
  expect(resumed.beliefs).toHaveLength(2);
  expect((await runTrajectory(input({}))).beliefs).toEqual([]);
});

test('an engine that fails to measure a belief fails the turn as it fails one it samples', async () => {
  const failing = runTrajectory(input({ believe: () => Promise.reject(new Error('gone')) }));
  await expect(failing).rejects.toMatchObject({ failureClass: 'engine', message: 'tr-1: gone' });
});
