/** Which tasks are sampled: seeded, so that the same step draws the same ones. Pure. */
import { createHash } from 'node:crypto';
import type { Task } from '../../schemas/task.ts';

/** A task of a training pool. */
export interface PoolTask {
  task: Task;
  /** How often it is taken, compared with the others; 0 is never. */
  weight: number;
}

/** Where a step's prompts lie in the endless sequence, and how many they are. */
export interface Block {
  start: number;
  count: number;
}

/**
 * The prompts of a block of an endless sequence of epochs, each epoch in its own seeded order. An epoch has every task
 * as often as its weight over the mean says, on average: one of weight 1/2 comes every other time. No task comes
 * twice in a block: a repetition, at the end of an epoch, gives way to what follows.
 */
export function promptsFrom(pool: readonly PoolTask[], { start, count }: Block, seed: string): Task[] {
  const drawn = pool.filter(({ weight }) => weight > 0);
  const wanted = Math.min(count, drawn.length);
  const chosen = new Map<string, Task>();
  if (wanted === 0) return [];
  const timesIn = appearances(drawn, seed);
  let position = 0;
  for (let epoch = 0; chosen.size < wanted; epoch += 1) {
    const times = timesIn(epoch);
    const size = times.reduce((sum, one) => sum + one, 0);
    if (position + size > start) {
      for (const task of epochOrder(drawn, times, `${seed}:${epoch}`).slice(Math.max(0, start - position)))
        if (chosen.size < wanted) chosen.set(task.task_id, task);
    }
    position += size;
  }
  return [...chosen.values()];
}

/** Other prompts for a step whose groups were dropped: in an order of the step's own, without those of its block. */
export function refillFrom(
  pool: readonly PoolTask[],
  block: Block,
  refill: Block,
  { seed, step }: { seed: string; step: number },
): Task[] {
  const taken = new Set(promptsFrom(pool, block, seed).map(({ task_id }) => task_id));
  const others = pool.filter(({ task, weight }) => weight > 0 && !taken.has(task.task_id)).map(({ task }) => task);
  return seededOrder(others, `${seed}:refill:${step}`).slice(refill.start, refill.start + refill.count);
}

function epochOrder(pool: readonly PoolTask[], times: readonly number[], seed: string): Task[] {
  const copies = pool.flatMap(({ task }, index) =>
    Array.from({ length: times[index] as number }, (_, copy) => ({
      task,
      rank: digest(`${seed}:${task.task_id}${copy > 0 ? `:${copy}` : ''}`).toString('hex'),
    })),
  );
  return copies.sort((a, b) => (a.rank < b.rank ? -1 : 1)).map(({ task }) => task);
}

/** How often each task comes in an epoch: whole numbers whose mean over epochs is its weight over the mean weight. */
function appearances(pool: readonly PoolTask[], seed: string): (epoch: number) => number[] {
  const once = pool.map(() => 1);
  if (pool.every(({ weight }) => weight === pool[0]?.weight)) return () => once;
  const mean = pool.reduce((sum, { weight }) => sum + weight, 0) / pool.length;
  const shares = pool.map(({ task, weight }) => ({
    share: weight / mean,
    phase: digest(`${seed}:phase:${task.task_id}`).readUInt32BE(0) / 2 ** 32,
  }));
  return (epoch) =>
    shares.map(({ share, phase }) => Math.floor(share * (epoch + 1) + phase) - Math.floor(share * epoch + phase));
}

/** `count` tasks in a seeded order, taking the capabilities in turn by their share, so that the mix is kept. */
export function stratified(tasks: readonly Task[], count: number, seed: number | null): Task[] {
  if (count >= tasks.length) return seededOrder(tasks, `${seed}`);
  const byCapability = new Map<string, Task[]>();
  for (const task of seededOrder(tasks, `${seed}`)) {
    byCapability.set(task.capability, [...(byCapability.get(task.capability) ?? []), task]);
  }
  const ranked = [...byCapability.values()].flatMap((group) =>
    group.map((task, position) => ({ task, rank: (position + 0.5) / group.length })),
  );
  ranked.sort((a, b) => a.rank - b.rank);
  return ranked.slice(0, count).map(({ task }) => task);
}

function seededOrder(tasks: readonly Task[], seed: string): Task[] {
  const rank = new Map(tasks.map(({ task_id }) => [task_id, digest(`${seed}:${task_id}`).toString('hex')]));
  return [...tasks].sort((a, b) => ((rank.get(a.task_id) as string) < (rank.get(b.task_id) as string) ? -1 : 1));
}

const digest = (text: string): Buffer => createHash('sha256').update(text).digest();

/** 31 bits from a node's seed and a trajectory's name, so that no two trajectories share a seed. */
export const seedOf = (seed: number | null, name: string): number => digest(`${seed}:${name}`).readUInt32BE(0) >>> 1;
