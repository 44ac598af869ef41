/** verl's own numbers (its `file` logger: one JSON line a step) as metrics of our node. */
import { readFile } from 'node:fs/promises';

export interface VerlStep {
  step: number;
  values: Record<string, number>;
}

/** What verl and our trainer both measure has our name; the rest keeps verl's, below `verl/`. */
const OUR_NAMES: Readonly<Record<string, string>> = {
  'actor/pg_loss': 'train/loss',
  'actor/grad_norm': 'train/grad_norm',
  'actor/lr': 'train/learning_rate',
  'actor/entropy': 'train/entropy',
  'actor/pg_clipfrac': 'train/clip_share',
  'actor/kl_loss': 'train/kl_reference',
  'critic/score/mean': 'rollout/reward',
  'timing_s/step': 'train/seconds',
};

/** The steps a file holds so far; a last line that is still being written is left for the next time. */
export async function readVerlMetrics(path: string): Promise<VerlStep[]> {
  const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return ''; // verl opens it at its first step
    throw error;
  });
  const whole = text.slice(0, text.lastIndexOf('\n') + 1);
  return whole
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => {
      const { step, data } = JSON.parse(line) as { step: number; data: Record<string, unknown> };
      return { step, values: named(data) };
    });
}

function named(data: Record<string, unknown>): Record<string, number> {
  const numbers = Object.entries(data).filter((entry): entry is [string, number] => typeof entry[1] === 'number');
  return Object.fromEntries(numbers.map(([name, value]) => [OUR_NAMES[name] ?? `verl/${mlflowName(name)}`, value]));
}

/** MLflow refuses other characters; verl writes `mean@4`. */
const mlflowName = (name: string): string => name.replaceAll('@', '_at_').replaceAll(/[^\w\-./ :]/g, '_');
