import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { histogram, meanOf } from '../environments/deep-research/benchmarks/statistics.ts';
import type { Metric, ProfileBody } from '../schemas/artifact.ts';
import { ExpError } from '../schemas/errors.ts';
import { type KeepParameters, nodeOf } from '../schemas/node-parameters.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import type { CpuActivities, NodeRef } from './index.ts';
import type { PlanReader } from './plan-reader.ts';
import { withPulse } from './pulse.ts';
import { type GradedTrajectory, readGraded, tokensOf } from './read-shards.ts';

export interface PublishProfileDeps {
  plans: PlanReader;
  store: ArtifactStore;
  progress(key: string, done: number, total: number, detail: string): Promise<void>;
  /** Scratch space. */
  work: string;
}

/** One line of `pass_rates.jsonl`. */
export interface PassRate {
  task_id: string;
  /** Rollouts that count; those that something broke are masked. */
  rollouts: number;
  masked: number;
  passes: number;
  pass_rate: number;
  kept: boolean;
  mean_tokens: number;
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
      const { keep } = nodeOf('profile', await plans.node(ref)).parameters;
      const byTask = new Map<string, GradedTrajectory[]>();
      for await (const trajectory of readGraded(store, shards)) {
        moved();
        const known = byTask.get(trajectory.task_id);
        if (known) known.push(trajectory);
        else byTask.set(trajectory.task_id, [trajectory]);
      }
      const rates = [...byTask].map(([task_id, rollouts]) => passRateOf(task_id, rollouts, keep));
      rates.sort((a, b) => (a.task_id < b.task_id ? -1 : 1));
      const body = bodyOf(rates);
      await progress(
        ref.key,
        rates.length,
        rates.length,
        `${body.never} never, ${body.sometimes} sometimes, ${body.always} always; ${body.kept} kept`,
      );
      refuseTooFew(ref, body, await promptsNeeded(plans, ref));

      const lengths = [...byTask.values()]
        .flat()
        .filter(isCounted)
        .map((trajectory) => ({ tokens: tokensOf(trajectory), passed: passed(trajectory) }));
      const tables = {
        ...body,
        masked: rates.reduce((sum, { masked }) => sum + masked, 0),
        pass_rates: histogramOfRates(rates),
        tokens: histogram(
          lengths.map(({ tokens }) => tokens),
          LENGTH_EDGES,
        ),
        tokens_of_passes: histogram(
          lengths.filter((one) => one.passed).map(({ tokens }) => tokens),
          LENGTH_EDGES,
        ),
      };
      await mkdir(work, { recursive: true });
      const folder = await mkdtemp(join(work, 'profile-'));
      try {
        const files = {
          'pass_rates.jsonl': join(folder, 'pass_rates.jsonl'),
          'table.json': join(folder, 'table.json'),
        };
        await writeFile(files['pass_rates.jsonl'], rates.map((rate) => `${JSON.stringify(rate)}\n`).join(''));
        await writeFile(files['table.json'], `${JSON.stringify(tables, null, 2)}\n`);
        return await store.publish({
          key: ref.key,
          kind: 'profile',
          inputs: await plans.lineage(ref),
          files,
          body,
          metrics: metricsOf(body, rates),
        });
      } finally {
        await rm(folder, { recursive: true, force: true });
      }
    }),
});

const isCounted = ({ termination }: GradedTrajectory): boolean => termination !== 'failed';
const passed = ({ reward }: GradedTrajectory): boolean => reward.outcome >= 1;

function passRateOf(task_id: string, rollouts: readonly GradedTrajectory[], keep: KeepParameters): PassRate {
  const counted = rollouts.filter(isCounted);
  const passes = counted.filter(passed).length;
  return {
    task_id,
    rollouts: counted.length,
    masked: rollouts.length - counted.length,
    passes,
    pass_rate: counted.length === 0 ? 0 : passes / counted.length,
    kept: counted.length > 0 && passes >= keep.min_passes && passes <= keep.max_passes,
    mean_tokens: meanOf(counted.map(tokensOf)),
  };
}

function bodyOf(rates: readonly PassRate[]): ProfileBody {
  const counted = rates.filter(({ rollouts }) => rollouts > 0);
  return {
    tasks: rates.length,
    rollouts: rates.reduce((sum, { rollouts }) => sum + rollouts, 0),
    never: counted.filter(({ passes }) => passes === 0).length,
    sometimes: counted.filter(({ passes, rollouts }) => passes > 0 && passes < rollouts).length,
    always: counted.filter(({ passes, rollouts }) => passes === rollouts).length,
    kept: rates.filter(({ kept }) => kept).length,
  };
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

function metricsOf(body: ProfileBody, rates: readonly PassRate[]): Metric[] {
  const timestamp_ms = Date.now();
  const values: Record<string, number> = {
    'profile/pass_rate': meanOf(rates.filter(({ rollouts }) => rollouts > 0).map(({ pass_rate }) => pass_rate)),
    'profile/never': body.never,
    'profile/sometimes': body.sometimes,
    'profile/always': body.always,
    'profile/kept': body.kept,
    'profile/masked': rates.reduce((sum, { masked }) => sum + masked, 0),
  };
  return Object.entries(values).map(([name, value]) => ({ name, step: 0, value, timestamp_ms }));
}
