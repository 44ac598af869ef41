import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import type { Launcher, Processes } from '../../activities/adapters/launch-command.ts';
import { batchColumns, readParquet, writeParquet } from '../../activities/adapters/parquet.ts';
import {
  adoptTrainer,
  endProcessGroup,
  endTrainer,
  type OpenParams,
  startTrainer,
  type TrainerClient,
  type TrainerLease,
} from '../../activities/adapters/trainer-process.ts';
import { python, repoRoot } from '../../services/home.ts';

/** The real trainer process with a tiny random policy, driven as the activities drive it. */
const packageDir = join(repoRoot(), 'trainer');
const VOCABULARY = 1_000;
let folder: string;
let lease: TrainerLease;
let client: TrainerClient;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'exp-trainer-test-'));
  const vocab = Object.fromEntries(Array.from({ length: VOCABULARY }, (_, id) => [`t${id}`, id]));
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify({ model: { vocab }, added_tokens: [] }));
  const make = join(packageDir, 'tests', 'tiny_policy.py');
  await promisify(execFile)(python(), [make, '--tokenizer', folder, '--out', join(folder, 'base')]);
  ({ lease, client } = await start());
});

afterAll(async () => {
  client.disconnect();
  await endTrainer(lease);
  await rm(folder, { recursive: true, force: true });
});

const start = (more: { processes?: Processes; launcher?: Launcher } = {}) =>
  startTrainer({ python: python(), packageDir, logDir: join(folder, 'logs'), name: 'test', ...more });

const openParams = (more: Partial<OpenParams> = {}): OpenParams => ({
  stage_key: 'stage',
  base_dir: join(folder, 'base'),
  adapter: { lora_rank: 4 },
  optimizer: { learning_rate: 0.01 },
  dtype: 'float32',
  threads: 1,
  deterministic: true,
  seed: 17,
  ...more,
});

/** A batch as the activities write it: two actions in each sequence, the rest observed. */
async function writeBatch(name: string, seed: number, sequences = 6): Promise<string> {
  const rows = Array.from({ length: sequences }, (_, row) => {
    const tokens = Array.from({ length: 60 }, (_, at) => (at * 31 + row * 17 + seed * 7) % VOCABULARY);
    const mask = tokens.map((_, at) => Number((at > 10 && at < 20) || at > 50));
    return {
      sequence_id: `t${row}#0`,
      token_ids: tokens,
      mask,
      behavior_logprobs: mask.map((sampled) => -5 * sampled),
      advantages: mask.map((sampled) => sampled * (row % 2 ? 1 : -1)),
      temperature: 1,
      weight: 1,
    };
  });
  const path = join(folder, name);
  await writeParquet(path, rows, batchColumns);
  return path;
}

const step = (batch: string, number: number, of: TrainerClient = client) =>
  of.call('step', {
    step_id: `stage/${number}`,
    step: number,
    batch,
    loss: { kind: 'policy_gradient', clip: { low: 0.2, high: 0.4 } },
    micro_batch_tokens: 128,
  });

test('the process leads a session of its own and its socket is the user’s alone', () => {
  const fields = readFileSync(`/proc/${lease.pid}/stat`, 'utf8').split(') ').at(-1)?.split(' ') ?? [];
  expect([Number(fields[2]), Number(fields[3])]).toEqual([lease.pid, lease.pid]);
  expect(lease.socket.length).toBeLessThan(100);
  expect(statSync(lease.socket).mode & 0o077).toBe(0);
});

test('steps of batches written by the activities; a repeated id is answered from the record', async () => {
  const opened = await client.call('open', openParams());
  expect(opened).toMatchObject({ step: 0, made_with: { dtype: 'float32', threads: '1', device: 'cpu' } });
  const batch = await writeBatch('one.parquet', 1);
  const first = await step(batch, 1);
  expect(first).toMatchObject({ step: 1, repeated: false, metrics: { sequences: 6, action_tokens: 6 * 18 } });
  expect(await step(batch, 1)).toEqual({ ...first, repeated: true });
  await expect(step(batch, 3)).rejects.toMatchObject({ code: 'STEP_ORDER' });
  await expect(step(join(folder, 'none.parquet'), 2)).rejects.toMatchObject({ code: 'IO' });
});

test('pings during a step show that it moves; one that stands still does not', async () => {
  const moves: boolean[] = [];
  const batch = await writeBatch('long.parquet', 2, 300);
  await client.call(
    'step',
    { step_id: 'stage/2', step: 2, batch, loss: { kind: 'cross_entropy' }, micro_batch_tokens: 64 },
    { onPing: (state, moved) => state.phase === 'step' && moves.push(moved), pingEveryMs: 200 },
  );
  expect(moves.length).toBeGreaterThan(0);
  expect(moves).not.toContain(false);

  // Stopped by SIGSTOP it cannot even answer: no ping, so nobody would send a heartbeat for it.
  process.kill(lease.pid, 'SIGSTOP');
  const silent: unknown[] = [];
  const waiting = client.call(
    'ping',
    {},
    { signal: AbortSignal.timeout(2_000), onPing: (state) => silent.push(state), pingEveryMs: 200 },
  );
  await expect(waiting).rejects.toMatchObject({ name: 'TimeoutError' });
  process.kill(lease.pid, 'SIGCONT');
  expect(silent).toEqual([]);
});

test('leaving does not stop the work; whoever adopts the process finds the step done once', async () => {
  const batch = await writeBatch('left.parquet', 3, 100);
  const leaving = step(batch, 3);
  await delay(50);
  client.disconnect();
  await expect(leaving).rejects.toMatchObject({ code: 'TRAINER_LOST' });
  client = (await adoptTrainer(lease)) as TrainerClient;
  expect(await step(batch, 3)).toMatchObject({ step: 3 });
  expect(await client.ping()).toMatchObject({ stage_key: 'stage', step: 3, busy: false });
});

test('scores are aligned with tokens; the first has none', async () => {
  const batch = await writeBatch('scored.parquet', 4);
  const out = join(folder, 'scores.parquet');
  expect(await client.call('score', { batch, out, temperature: 0.7 })).toEqual({ sequences: 6, tokens: 360 });
  for await (const row of readParquet<{ logprobs: (number | null)[] }>(out, ['logprobs'])) {
    expect(row.logprobs).toHaveLength(60);
    expect(row.logprobs[0]).toBeNull();
    expect(row.logprobs.slice(1).every((value) => (value as number) < 0)).toBe(true);
  }
});

test('killed in mid-step, a new process resumes from the save and ends with the same bytes', async () => {
  const batches = await Promise.all([1, 2, 3, 4].map((seed) => writeBatch(`resume-${seed}.parquet`, seed)));
  const takeFrom = async (from: number, of: TrainerClient) => {
    for (let number = from; number <= 4; number++) await step(batches[number - 1] as string, number, of);
  };
  await client.call('open', openParams());
  await step(batches[0] as string, 1);
  await client.call('save', { dir: join(folder, 'saved') });
  await takeFrom(2, client);
  await client.call('save', { dir: join(folder, 'undisturbed') });

  await client.call('open', openParams({ resume_dir: join(folder, 'saved') }));
  const dying = step(await writeBatch('killer.parquet', 9, 500), 2);
  await delay(100);
  process.kill(lease.pid, 'SIGKILL');
  await expect(dying).rejects.toMatchObject({ code: 'TRAINER_LOST' });
  // Its socket closes a moment before the process is gone.
  await vi.waitFor(async () => expect(await adoptTrainer(lease)).toBeNull());
  expect(existsSync(lease.socket)).toBe(false);

  ({ lease, client } = await start());
  expect(await client.call('open', openParams({ resume_dir: join(folder, 'saved') }))).toMatchObject({ step: 1 });
  await takeFrom(2, client);
  await client.call('save', { dir: join(folder, 'resumed') });
  const [resumed, undisturbed] = await Promise.all(
    ['resumed', 'undisturbed'].map((name) => readFile(join(folder, name, 'adapter.safetensors'))),
  );
  expect(resumed?.equals(undisturbed as Buffer)).toBe(true);
});

/** Trainer processes that name the socket; torchrun, which names it too, is none. */
const ranksAt = (socket: string): number[] =>
  readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .filter((name) => {
      try {
        const command = readFileSync(`/proc/${name}/cmdline`, 'utf8').split('\0');
        return command.includes(socket) && !command.includes('torch.distributed.run');
      } catch {
        return false;
      }
    })
    .map(Number);

test('a killed rank ends two processes; two others, reached over TCP, go on from the save and end where one does', async () => {
  const processes = { count: 2, machines: 1 };
  const batches = await Promise.all([1, 2].map((seed) => writeBatch(`many-${seed}.parquet`, seed)));
  const [first, second] = batches as [string, string];
  await client.call('open', openParams());
  await step(first, 1);
  await step(second, 2);
  await client.call('save', { dir: join(folder, 'by-one') });

  const doomed = await start({ processes });
  const opened = await doomed.client.call('open', openParams());
  expect(opened.made_with).toMatchObject({ processes: '2' });
  await step(first, 1, doomed.client);
  await doomed.client.call('save', { dir: join(folder, 'by-two') });
  const { pid } = await doomed.client.ping();
  const ranks = ranksAt(doomed.lease.socket);
  expect(ranks).toHaveLength(2);
  const dying = step(await writeBatch('many-long.parquet', 9, 2_000), 2, doomed.client);
  await delay(500);
  const killed = Date.now();
  process.kill(ranks.find((rank) => rank !== pid) as number, 'SIGKILL');
  await expect(dying).rejects.toMatchObject({ code: 'TRAINER_LOST' });
  while (existsSync(`/proc/${doomed.lease.pid}`) || ranksAt(doomed.lease.socket).length > 0) await delay(50);
  expect(Date.now() - killed).toBeLessThan(20_000);
  expect(await adoptTrainer(doomed.lease)).toBeNull();

  const cancelled = join(folder, 'cancelled');
  const launcher = { command: ['env', 'JOB={{job}}', '{{command}}'], cancel: ['touch', cancelled], remote: true };
  const again = await start({ processes, launcher });
  expect(statSync(again.lease.socket).mode & 0o077).toBe(0); // it holds the token
  const resumed = openParams({ resume_dir: join(folder, 'by-two') });
  expect(await again.client.call('open', resumed)).toMatchObject({ step: 1 });
  await step(second, 2, again.client);
  await again.client.call('export', { dir: join(folder, 'served-by-two'), export_dtype: 'float32' });
  await client.call('export', { dir: join(folder, 'served-by-one'), export_dtype: 'float32' });
  again.client.disconnect();
  const adopted = await adoptTrainer(again.lease);
  expect(await adopted?.ping()).toMatchObject({ stage_key: 'stage', step: 2 });
  await endTrainer(again.lease);
  expect(ranksAt(again.lease.socket)).toEqual([]);
  expect(existsSync(cancelled)).toBe(true);

  const [one, two] = await Promise.all(['served-by-one', 'served-by-two'].map(probeOf));
  one?.forEach((logprob, at) => void expect(two?.[at]).toBeCloseTo(logprob, 4));
}, 240_000);

/** Logprobs of a fixed prompt under weights that were exported. */
async function probeOf(name: string): Promise<number[]> {
  const probe = JSON.parse(await readFile(join(folder, name, 'probe.json'), 'utf8')) as { logprobs: number[] };
  return probe.logprobs.slice(1);
}

test('export writes a directory to serve, with a probe', async () => {
  await client.call('export', { dir: join(folder, 'served'), export_dtype: 'bfloat16' });
  const probe = JSON.parse(await readFile(join(folder, 'served', 'probe.json'), 'utf8')) as Record<string, unknown[]>;
  expect(probe['token_ids']).toHaveLength(48);
  expect(probe['logprobs']).toHaveLength(48);
  expect(existsSync(join(folder, 'served', 'tokenizer.json'))).toBe(true);
});

test('a group is ended whole, members that ignore SIGTERM or outlived their leader too; a stranger is left alone', async () => {
  const script = '(trap "" TERM; while :; do sleep 1; done) & echo $!; wait';
  const child = spawn('bash', ['-c', script], { detached: true, stdio: ['ignore', 'pipe', 'ignore'] });
  const [printed] = (await once(child.stdout, 'data')) as [Buffer];
  const pid = child.pid as number;
  const startTime = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ')[19] as string;
  await endProcessGroup(pid, '1'); // somebody else's start time
  expect(existsSync(`/proc/${pid}`)).toBe(true);
  process.kill(pid, 'SIGKILL');
  await once(child, 'exit');
  await endProcessGroup(pid, startTime);
  const left = await readFile(`/proc/${String(printed).trim()}/stat`, 'utf8').catch(() => ') Z');
  expect(left.split(') ')[1]?.[0]).toBe('Z');
}, 40_000);
