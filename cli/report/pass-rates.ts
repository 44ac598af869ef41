import { readFile } from 'node:fs/promises';
import type { PassRate } from '../../activities/measure-pass-rates.ts';
import type { ProfileBody } from '../../schemas/artifact.ts';
import type { Stack } from '../open-stack.ts';
import type { PassRates } from './document.ts';
import type { NodeFacts } from './read-nodes.ts';

/** How many tasks passed how often, before and after filtering, of every profile that is published. */
export async function readPassRates({ store }: Stack, nodes: readonly NodeFacts[]): Promise<PassRates[]> {
  const profiles = nodes.filter(({ node, manifest }) => node.kind === 'profile' && manifest !== null);
  return Promise.all(
    profiles.map(async ({ reported, manifest }) => {
      if (manifest === null) throw new Error(`${reported.name} was published a moment ago`);
      const lines = (await readFile(await store.openFile(manifest, 'pass_rates.jsonl'), 'utf8')).split('\n');
      const rates = lines.filter((line) => line !== '').map((line) => JSON.parse(line) as PassRate);
      return { node: reported.name, body: manifest.body as unknown as ProfileBody, ...countPasses(rates) };
    }),
  );
}

type Tally = Pick<PassRate, 'rollouts' | 'passes' | 'kept'>;

/** A task whose rollouts were all masked was not measured. */
export function countPasses(rates: readonly Tally[]): Pick<PassRates, 'rollouts' | 'before' | 'after'> {
  const measured = rates.filter(({ rollouts }) => rollouts > 0);
  const rollouts = measured.reduce((most, rate) => Math.max(most, rate.rollouts), 0);
  const count = (some: readonly Tally[]): number[] =>
    Array.from({ length: rollouts + 1 }, (_, passes) => some.filter((rate) => rate.passes === passes).length);
  return { rollouts, before: count(measured), after: count(measured.filter(({ kept }) => kept)) };
}
