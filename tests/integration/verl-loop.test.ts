import { spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { beforeAll, expect, test } from 'vitest';
import { runTrajectory, type TrajectoryInput } from '../../environments/deep-research/agent-loop.ts';
import { loadTokenizer, renderAction } from '../../environments/deep-research/prompt.ts';
import { trajectoryRoutes } from '../../environments/deep-research/serve-trajectories.ts';
import { serveJson } from '../../environments/world/json-server.ts';
import type { Task } from '../../schemas/task.ts';
import { modelsDir, repoRoot } from '../../services/home.ts';
import { temporaryFolder } from '../temporary-folder.ts';
import { makeVerlEnvironment, pinned, verlBin } from '../verl/environment.ts';

beforeAll(makeVerlEnvironment, 600_000);

/** As a job has it, whose plan names a version of verl. */
const inJob = (planned = ''): NodeJS.ProcessEnv => ({
  ...process.env,
  PYTHONPATH: join(repoRoot(), 'trainer'),
  HF_HUB_OFFLINE: '1',
  VERL_USE_EXTERNAL_MODULES: 'exp_trainer.verl_register',
  EXP_VERL_VERSION: planned,
});

test('a cluster with another verl than the plan names says so before it takes a GPU', async () => {
  const child = spawn(verlBin('python'), ['-c', 'import exp_trainer.verl_register'], { env: inJob('0.6.0') });
  expect(await text(child.stderr)).toContain(
    `the stage was planned for verl 0.6.0, and this cluster has ${pinned('verl')}; install 0.6.0`,
  );
});

const task: Task = {
  task_id: 'task-1',
  question: 'What licence has zod?',
  answer: 'MIT',
  aliases: [],
  capability: 'direct_retrieval',
  split: 'train',
  source: 'made',
  evidence: [],
  deny_urls: [],
};

test("verl's loop hands over the very ids, mask, logprobs and reward of a trajectory that ran here", async () => {
  const policy = join(modelsDir(), 'smollm2-135m-instruct');
  const tokenizer = await loadTokenizer(policy);
  const stage = {
    world: {
      search: async () => ({ results: [{ url: 'npm:zod', title: 'zod', snippet: 'MIT', score: 1 }], denied: 0 }),
      visit: async () => [],
      close: async () => {},
    },
    tokenizer,
    tools: ['search'] as const,
    limits: { maxTurns: 4, maxTurnTokens: 80, observationTokens: 96, searchResults: 3, contextLength: 1200 },
    reward: { outcome: 'exact_match' as const, format_penalty: 0 },
    checkpoint: '',
  };
  const actions = [
    '<think>a</think>\n<tool_call>{"name": "search", "arguments": {"query": ["zod"]}}</tool_call>',
    'no form at all',
    '<think>c</think>\n<answer>MIT</answer>',
  ].map((action) => renderAction(tokenizer, action));
  const server = await serveJson(
    trajectoryRoutes(stage, (id) => (id === task.task_id ? task : undefined)),
    {
      host: '127.0.0.1',
      port: 0,
    },
  );
  const address = join(temporaryFolder('exp-verl-loop-'), 'tool_server.json');
  writeFileSync(address, JSON.stringify({ url: `http://127.0.0.1:${server.port}` }));

  const child = spawn(verlBin('python'), [join(repoRoot(), 'tests/verl/sample_with_loop.py')], {
    env: inJob(pinned('verl')),
  });
  child.stdin.end(JSON.stringify({ tool_server: address, policy, actions, task_id: task.task_id }));
  const [out, problems] = await Promise.all([text(child.stdout), text(child.stderr)]);
  await server.close();
  if (!out.includes('{')) throw new Error(problems.slice(-3000));
  const handed = JSON.parse(out.slice(out.indexOf('{'))) as Record<string, never>;

  let next = 0;
  const sample: TrajectoryInput['sample'] = async () => {
    const token_ids = actions[next++] as number[];
    return { token_ids, logprobs: token_ids.map((_, at) => -0.5 - at), weight_version: '3' };
  };
  const sampling = { temperature: 1, top_p: 1, seed: 0 };
  const [here] = await runTrajectory({
    ...stage,
    contextManagement: 'none',
    faults: null,
    trajectory_id: '',
    group_id: '',
    sample_index: 0,
    task,
    sampling,
    sample,
  });
  const start = here.spans[0]?.end as number;
  const response = here.token_ids.slice(start);
  expect(handed).toMatchObject({
    prompts: here.token_ids.slice(0, start),
    responses: response,
    response_mask: here.mask.slice(start),
    rollout_log_probs: here.logprobs.slice(start),
    rm_scores: response.map((_, at) => (at === response.length - 1 ? 1 : 0)),
    extra_fields: { reward_extra_info: { exact_match: 1 }, min_global_steps: 3, max_global_steps: 3 },
  });
  const asked = handed['asked'] as unknown as {
    ids: number[];
    stop_token_ids: number[];
    max_tokens: number;
    logprobs: boolean;
  }[];
  const actionStarts = here.spans.filter(({ kind }) => kind === 'action').map((span) => span.start);
  expect(asked.map(({ ids }) => ids)).toEqual(actionStarts.map((at) => here.token_ids.slice(0, at)));
  expect(asked[1]).toMatchObject({ max_tokens: 80, stop_token_ids: tokenizer.stopIds, logprobs: true });
}, 180_000);
