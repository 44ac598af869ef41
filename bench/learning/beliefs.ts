/**
 * Beliefs by the engine against beliefs by the trainer: how far they are apart in nats, and what each costs against the
 * length of the context.
 *
 *     npm run bench -- beliefs [MODEL] [LENGTH,LENGTH,...]
 *
 * Starts an engine and a trainer of its own for a model of the local profile. A trajectory of each length is this
 * checkout's documentation, with 8 boundaries evenly spaced: the engine is asked for each belief by itself (a whole
 * prefill), one at a time; the trainer for all of them together (one forward, cut back at each boundary). Milliseconds are
 * those of all 8.
 */
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { EngineClient } from '../../activities/adapters/engine-client.ts';
import { beliefColumns, readParquet, writeParquet } from '../../activities/adapters/parquet.ts';
import { endProcessGroup, startTrainer, type TrainerClient } from '../../activities/adapters/trainer-process.ts';
import { beliefOf } from '../../environments/deep-research/beliefs.ts';
import {
  loadTokenizer,
  type PseudoAnswer,
  renderPrompt,
  renderPseudoAnswer,
} from '../../environments/deep-research/prompt.ts';
import { loadProfile } from '../../plan/profile.ts';
import { python, repoRoot } from '../../services/home.ts';
import { modelPath } from '../../services/programs.ts';
import { startStack } from '../../tests/services.ts';

const BOUNDARIES = 8;
const [model = 'smollm2-135m-instruct', lengthsText = '512,1024,2048,4096'] = process.argv.slice(2);
const lengths = lengthsText.split(',').map(Number);

interface Trajectory {
  length: number;
  token_ids: number[];
  boundaries: number[];
}

interface Measured {
  beliefs: number[];
  ms: number;
}

const profile = loadProfile('local', join(repoRoot(), 'profiles'));
const directory = modelPath(profile, model);
const tokenizer = await loadTokenizer(directory);
const pseudo = renderPseudoAnswer(tokenizer, 'Apache License 2.0');
const trajectories = lengths.map(trajectoryOf(await documentation()));

const byEngine = await withEngine(async (client) => {
  const { boot } = await client.info();
  const believe = async (ids: readonly number[]): Promise<number> =>
    beliefOf(await client.score(boot, [...ids, ...pseudo.token_ids], ids.length), pseudo);
  const found: Measured[] = [];
  for (const { length, token_ids, boundaries } of trajectories) {
    const contexts = boundaries.map((boundary) => token_ids.slice(0, boundary));
    await believe(contexts[0] as number[]); // warm
    const each: [belief: number, ms: number][] = [];
    for (const context of contexts) each.push(await timed(() => believe(context)));
    const ms = sum(each.map(([, one]) => one));
    found.push({ beliefs: each.map(([belief]) => belief), ms });
    say({ by: 'engine', length, ms: Math.round(ms), ms_of_the_last: Math.round(each.at(-1)?.[1] ?? 0) });
  }
  return found;
});

for (const dtype of ['bfloat16', 'float32'] as const) {
  const byTrainer = await withTrainer(dtype, measureAll);
  for (const [at, { length }] of trajectories.entries()) {
    const [engine, trainer] = [byEngine[at], byTrainer[at]];
    if (engine === undefined || trainer === undefined) continue;
    const apart = engine.beliefs.map((belief, index) => Math.abs(belief - (trainer.beliefs[index] as number)));
    say({
      by: 'trainer',
      dtype,
      length,
      ms: Math.round(trainer.ms),
      nats_from_engine_mean: rounded(sum(apart) / apart.length, 4),
      nats_from_engine_max: rounded(Math.max(...apart), 4),
      belief_mean: rounded(sum(trainer.beliefs) / apart.length, 3),
    });
  }
}

function say(line: object): void {
  console.log(JSON.stringify({ model, beliefs: BOUNDARIES, ...line }));
}

async function documentation(): Promise<number[]> {
  const files = (await readdir(join(repoRoot(), 'docs'))).filter((name) => name.endsWith('.md')).sort();
  const texts = await Promise.all(files.map((name) => readFile(join(repoRoot(), 'docs', name), 'utf8')));
  return tokenizer.encodeText(texts.join('\n\n'));
}

function trajectoryOf(text: readonly number[]) {
  const prompt = renderPrompt(tokenizer, { question: 'What licence has this project?', tools: ['search', 'visit'] });
  return (length: number): Trajectory => {
    if (text.length + prompt.length < length) throw new Error(`the documentation has only ${text.length} tokens`);
    const token_ids = [...prompt, ...text].slice(0, length);
    const step = (length - prompt.length) / (BOUNDARIES - 1);
    const boundaries = Array.from({ length: BOUNDARIES }, (_, at) => Math.round(prompt.length + at * step));
    return { length, token_ids, boundaries };
  };
}

async function withEngine<T>(work: (client: EngineClient) => Promise<T>): Promise<T> {
  const room = Math.max(...lengths) + pseudo.token_ids.length + 1;
  Object.assign(profile.embedded?.engine ?? {}, { model, kv_cache_gib: 2, max_model_len: Math.min(8192, room) });
  const stack = await startStack(['engine'], { profile });
  const client = new EngineClient(stack.connections.engines[0] as never);
  try {
    return await work(client);
  } finally {
    await client.close();
    await stack.stop();
  }
}

async function withTrainer<T>(
  dtype: 'bfloat16' | 'float32',
  work: (client: TrainerClient, folder: string) => Promise<T>,
): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), 'beliefs-'));
  const packageDir = join(repoRoot(), 'trainer');
  const { lease, client } = await startTrainer({ python: python(), packageDir, logDir: folder, name: 'beliefs' });
  try {
    await client.call('open', {
      stage_key: 'bench',
      base_dir: directory,
      adapter: { lora_rank: 16 },
      optimizer: { learning_rate: 1e-5 },
      dtype,
      threads: availableParallelism(),
      deterministic: false,
      seed: 0,
    });
    return await work(client, folder);
  } finally {
    client.disconnect();
    await endProcessGroup(lease.pid, lease.startTime);
    await rm(folder, { recursive: true, force: true });
  }
}

async function measureAll(client: TrainerClient, folder: string): Promise<Measured[]> {
  await measure(client, folder, trajectories[0] as Trajectory, pseudo); // warm
  const found: Measured[] = [];
  for (const trajectory of trajectories) found.push(await measure(client, folder, trajectory, pseudo));
  return found;
}

async function measure(
  client: TrainerClient,
  folder: string,
  { token_ids, boundaries }: Trajectory,
  { token_ids: suffix_ids, mask: suffix_mask }: PseudoAnswer,
): Promise<Measured> {
  const [batch, out] = [join(folder, 'batch.parquet'), join(folder, 'beliefs.parquet')];
  await writeParquet(batch, [{ sequence_id: 'one', token_ids, boundaries, suffix_ids, suffix_mask }], beliefColumns);
  const [, ms] = await timed(() => client.call('beliefs', { batch, out, temperature: 1 }));
  for await (const { beliefs } of readParquet<{ beliefs: number[] }>(out)) return { beliefs, ms };
  throw new Error('the trainer answered with nothing');
}

async function timed<T>(work: () => Promise<T>): Promise<[result: T, ms: number]> {
  const startedAt = performance.now();
  const result = await work();
  return [result, performance.now() - startedAt];
}

function rounded(value: number, digits: number): number {
  return Number(value.toFixed(digits));
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
