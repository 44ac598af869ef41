import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { histogram, meanOf } from '../environments/deep-research/benchmarks/statistics.ts';
import type { Metric, ProfileBody } from '../schemas/artifact.ts';
import { ExpError } from '../schemas/errors.ts';
import { type BucketParameters, nodeOf } from '../schemas/node-parameters.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import type { CpuActivities, NodeRef } from './index.ts';
import {
  bodyOf,
  linesOf,
  type Measured,
  measurePassRates,
  type PassRate,
  profileMetrics,
  readByTask,
  rolloutOf,
} from './measure-pass-rates.ts';
import type { PlanReader } from './plan-reader.ts';
import { withPulse } from './pulse.ts';
import { readTasks } from './task-files.ts';

export interface PublishProfileDeps {
  plans: PlanReader;
  store: ArtifactStore;
  progress(key: string, done: number, total: number, detail: string): Promise<void>;
  /** Scratch space. */
  work: string;
}

const LENGTH_EDGES = [512, 768, 1024, 1280, 1536, 2048, 4096, 8192, 16384, 32768];

export const createPublishProfileActivities = ({
  plans,
  store,
  progress,
  work,
}: PublishProfileDeps): Pick<CpuActivities, 'publishProfile'> => ({
  /**
   * Pass rates of profiled tasks, and which of them are partly solvable.
   * Throws TOO_FEW_SOLVABLE when fewer are left than one step of the stage behind it samples.
   */
  publishProfile: ({ node: ref, shards }) =>
    withPulse(async (moved) => {
      const { parameters } = nodeOf('profile', await plans.node(ref));
      const capabilities = new Map<string, string>();
      for await (const task of readTasks(store, await plans.input(ref, 'tasks')))
        capabilities.set(task.task_id, task.capability);
      const measured = measurePassRates(await readByTask(store, shards, rolloutOf, moved), capabilities, parameters);
      const { rates } = measured;
      const body = bodyOf(measured, parameters);
      const said = `${body.never} never, ${body.sometimes} sometimes, ${body.always} always; ${body.kept} kept`;
      await progress(
        ref.key,
        rates.length,
        rates.length,
        body.saved > 0 ? `${said}; ${body.saved} rollouts saved` : said,
      );
      refuseTooFew(ref, body, await promptsNeeded(plans, ref));

      await mkdir(work, { recursive: true });
      const folder = await mkdtemp(join(work, 'profile-'));
      try {
        const files = {
          'pass_rates.jsonl': join(folder, 'pass_rates.jsonl'),
          'table.json': join(folder, 'table.json'),
        };
        await writeFile(files['pass_rates.jsonl'], linesOf(rates));
        await writeFile(
          files['table.json'],
          `${JSON.stringify(tablesOf(body, measured, parameters.buckets), null, 2)}\n`,
        );
        return await store.publish({
          key: ref.key,
          kind: 'profile',
          inputs: await plans.lineage(ref),
          files,
          body,
          metrics: metricsOf(body, measured),
        });
      } finally {
        await rm(folder, { recursive: true, force: true });
      }
    }),
});

/** What a reader of the artifact sees at a glance. */
function tablesOf(body: ProfileBody, { rates, lengths }: Measured, buckets: BucketParameters | null): object {
  return {
    ...body,
    masked: rates.reduce((sum, { masked }) => sum + masked, 0),
    pass_rates: histogramOfRates(rates),
    buckets: buckets === null ? null : bucketsOf(rates, buckets),
    tokens: histogram(
      lengths.map(({ tokens }) => tokens),
      LENGTH_EDGES,
    ),
    tokens_of_passes: histogram(
      lengths.filter(({ passed }) => passed).map(({ tokens }) => tokens),
      LENGTH_EDGES,
    ),
  };
}

/** Tasks by mean length: how many, how many of them kept, how often solved, how often drawn. */
function bucketsOf(rates: readonly PassRate[], { edges, weights }: BucketParameters): object[] {
  return [0, ...edges].map((from, bucket) => {
    const members = rates.filter((rate) => rate.bucket === bucket && rate.rollouts > 0);
    return {
      from,
      to: edges[bucket] ?? null,
      tasks: members.length,
      kept: members.filter(({ kept }) => kept).length,
      pass_rate: meanOf(members.map(({ pass_rate }) => pass_rate)),
      weight: weights?.[bucket] ?? 1,
    };
  });
}

/** Prompts that one step of the stages behind this profile samples; 0 where nothing trains on it. */
async function promptsNeeded(plans: PlanReader, ref: NodeRef): Promise<number> {
  const readers = (await plans.nodes(ref)).filter(({ kind, inputs }) => kind === 'rl' && inputs.includes(ref.id));
  return readers.reduce((most, node) => Math.max(most, nodeOf('rl', node).parameters.rollout.prompts_per_step), 0);
}

function refuseTooFew(ref: NodeRef, { kept, tasks, never, sometimes, always }: ProfileBody, needed: number): void {
  if (kept >= needed) return;
  throw new ExpError(
    'TOO_FEW_SOLVABLE',
    ref.id,
    `${kept} of ${tasks} tasks are partly solvable and a step needs ${needed}: ${never} never solved, ${sometimes} sometimes, ${always} always`,
  );
}

/** How many tasks have each number of passes. */
function histogramOfRates(rates: readonly PassRate[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const { passes, rollouts } of rates)
    counts[`${passes}/${rollouts}`] = (counts[`${passes}/${rollouts}`] ?? 0) + 1;
  return Object.fromEntries(Object.entries(counts).sort(([a], [b]) => (a < b ? -1 : 1)));
}

function metricsOf(body: ProfileBody, measured: Measured): Metric[] {
  const timestamp_ms = Date.now();
  return Object.entries(profileMetrics(body, measured)).map(([name, value]) => ({
    name,
    step: 0,
    value,
    timestamp_ms,
  }));
}
