/**
 * A policy that calls tools: SmolLM2 shown made-up demonstrations of search, visit, answer for a few steps by the real
 * trainer. Untrained it writes no well-formed call, and there would be nothing to compare.
 */
import { join } from 'node:path';
import type { ArtifactStore } from '../../../activities/adapters/artifact-store.ts';
import { batchColumns, writeParquet } from '../../../activities/adapters/parquet.ts';
import type { TrainerClient } from '../../../activities/adapters/trainer-process.ts';
import { checkpointOf } from '../../../activities/resolve-checkpoint.ts';
import { renderTrajectory, type Tokenizer } from '../../../environments/deep-research/prompt.ts';
import { runTool } from '../../../environments/deep-research/tools.ts';
import type { World } from '../../../environments/environment.ts';
import type { Checkpoint } from '../../../schemas/checkpoint.ts';
import type { Task } from '../../../schemas/task.ts';

export interface LearnInput {
  client: TrainerClient;
  tokenizer: Tokenizer;
  store: ArtifactStore;
  world: World;
  tasks: readonly Task[];
  base: { model: string; model_sha256: string; dir: string };
  dtype: 'float32' | 'bfloat16';
  threads: number;
  observationTokens: number;
  folder: string;
}

const BATCH = 4;

export async function learnToCall(input: LearnInput): Promise<Checkpoint> {
  const { client, store, folder, tasks, base } = input;
  await client.call('open', { ...openParams(input), adapter: { lora_rank: 16 } });
  for (let from = 0; from < tasks.length; from += BATCH) {
    const step = from / BATCH + 1;
    const batch = join(folder, `sft-${step}.parquet`);
    const rows = await Promise.all(tasks.slice(from, from + BATCH).map((task) => demonstrationOf(input, task)));
    await writeParquet(batch, rows, batchColumns);
    const loss = { kind: 'cross_entropy', aggregation: 'token_mean' } as const;
    const { metrics } = await client.call('step', { step_id: `fidelity/${step}`, step, batch, loss });
    console.error(`cold start ${step}/${Math.ceil(tasks.length / BATCH)}: loss ${metrics['loss']?.toFixed(3)}`);
  }
  const dir = join(folder, 'cold-start');
  await client.call('save', { dir });
  const adapter = await store.putBlob(join(dir, 'adapter.safetensors'));
  return checkpointOf({ model: base.model, model_sha256: base.model_sha256, adapters: [adapter] });
}

/** The trainer as a stage opens it. */
export function openParams({ base, dtype, threads }: Pick<LearnInput, 'base' | 'dtype' | 'threads'>) {
  return {
    stage_key: 'fidelity',
    base_dir: base.dir,
    optimizer: { learning_rate: 1e-3 },
    dtype,
    threads,
    deterministic: true,
    seed: 17,
  } as const;
}

async function demonstrationOf({ tokenizer, world, observationTokens }: LearnInput, task: Task) {
  const name = task.evidence[0] as string;
  const calls = [
    { tool: 'search', args: { query: [`${name} licence`] }, thought: `I look for ${name}.` },
    { tool: 'visit', args: { url: [name], goal: 'licence' }, thought: 'I read its page.' },
  ];
  const turns: { action: string; observation: string | null }[] = [];
  for (const { tool, args, thought } of calls) {
    const { text } = await runTool(world, { tool, args }, { tokenizer, observationTokens, searchResults: 3 });
    const call = JSON.stringify({ name: tool, arguments: args });
    turns.push({ action: `<think>${thought}</think>\n<tool_call>${call}</tool_call>`, observation: text });
  }
  const answer = `<think>The page says it.</think>\n<answer>${task.answer}</answer>`;
  turns.push({ action: answer, observation: null });
  const { token_ids, mask } = renderTrajectory(tokenizer, {
    question: task.question,
    tools: ['search', 'visit'],
    turns,
  });
  return {
    sequence_id: task.task_id,
    token_ids,
    mask,
    behavior_logprobs: [],
    advantages: [],
    temperature: 1,
    weight: 1,
  };
}
