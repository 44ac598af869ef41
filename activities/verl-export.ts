import { existsSync } from 'node:fs';
import { cp, mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { renderPrompt, type Tokenizer, type ToolName } from '../environments/deep-research/prompt.ts';
import { ExpError } from '../schemas/errors.ts';
import { type NodeOf, nodeOf } from '../schemas/node-parameters.ts';
import type { Task } from '../schemas/task.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import type { MergedWeights } from './adapters/merged-weights.ts';
import { type Columns, writeParquet } from './adapters/parquet.ts';
import type { PoolLedger } from './adapters/pool-ledger.ts';
import type { NodeRef, StageActivities } from './index.ts';
import type { PlanReader } from './plan-reader.ts';
import { stepsOf } from './prepare-rollouts.ts';
import { whileStoring, withPulse } from './pulse.ts';
import { parentCheckpoint } from './resolve-checkpoint.ts';
import { readTasks } from './task-files.ts';
import { trainingPool } from './training-pool.ts';
import { type Ray, segmentEnds, type VerlExport, type VerlFolder, verlFolder } from './verl-folder.ts';

export interface VerlExportDeps {
  plans: PlanReader;
  store: ArtifactStore;
  pools: PoolLedger;
  merged: Pick<MergedWeights, 'directory'>;
  tokenizers: { load(model: string): Promise<Tokenizer> };
  modelDir(model: string): string;
  /** Folder with the Python package `exp_trainer`. */
  packageDir: string;
  /** Null where the profile has no Ray cluster. */
  ray: Ray | null;
}

/** Modules of `exp_trainer` that verl's workers import; they need nothing that verl does not bring. */
const PYTHON_MODULES = ['__init__', 'errors', 'verl_rollout', 'verl_loop', 'verl_register'];

/** A row of verl's task file (verl/utils/dataset/rl_dataset.py); what our agent loop reads is the task's id. */
const TASK_COLUMNS: Columns = {
  data_source: 'VARCHAR',
  prompt: 'STRUCT("role" VARCHAR, "content" VARCHAR)[]',
  ability: 'VARCHAR',
  reward_model: 'STRUCT("style" VARCHAR, ground_truth STRUCT(target VARCHAR[]))',
  extra_info: 'STRUCT("index" BIGINT, split VARCHAR, task_id VARCHAR, question VARCHAR, deny_urls VARCHAR[])',
  agent_name: 'VARCHAR',
};

export const createVerlExportActivities = (deps: VerlExportDeps): Pick<StageActivities, 'exportVerl'> => ({
  /** Write all that verl reads into the stage's folder; an export that was finished before stands. */
  exportVerl: (ref) =>
    withPulse(async (moved) => {
      const node = nodeOf('rl', await deps.plans.node(ref));
      const folder = verlFolder(rayOf(deps, ref).cluster, ref.key);
      const pool = await tasksOfStage(deps, ref, node, moved);
      const { steps } = stepsOf(node, pool.length);
      const found: VerlExport = {
        steps,
        prompts: await promptLengths(deps, node, pool, moved),
      };
      await mkdir(folder.root, { recursive: true });
      await writeParquet(folder.train, taskRows(pool, moved), TASK_COLUMNS);
      // verl opens a validation set even where it never validates.
      await writeParquet(folder.val, taskRows(pool.slice(0, 1), moved), TASK_COLUMNS);
      await writeFile(folder.agent_loops, agentLoops(folder));
      await whileStoring(moved, async () => {
        await makeOnce(folder.python, (part) => copyPython(deps.packageDir, part));
        await makeOnce(folder.model, async (part) =>
          cp(await startingWeights(deps, ref), part, { recursive: true, dereference: true }),
        );
      });
      await writeFile(folder.exported, JSON.stringify(found));
      return { ends: segmentEnds(node, steps) };
    }),
});

/** Throws RAY where the profile has none: the plan said so, and the profile has changed since. */
export function rayOf({ ray }: { ray: Ray | null }, { id }: NodeRef): Ray {
  if (ray === null)
    throw new ExpError('RAY', id, 'the stage runs on verl, and this profile has no Ray cluster (`ray`)');
  return ray;
}

async function tasksOfStage(
  { plans, store, pools }: VerlExportDeps,
  ref: NodeRef,
  node: NodeOf<'rl'>,
  moved: () => void,
): Promise<Task[]> {
  const all: Task[] = [];
  for await (const task of readTasks(store, await plans.input(ref, 'tasks'))) {
    all.push(task);
    moved();
  }
  const drawn = await trainingPool({ plans, store, pools }, ref, node, all, 1);
  const pool = drawn.tasks.map(({ task }) => task);
  const { prompts_per_step } = node.parameters.rollout;
  if (pool.length < prompts_per_step)
    throw new ExpError(
      'TOO_FEW_SOLVABLE',
      ref.id,
      `verl needs the ${prompts_per_step} different tasks of a step, and there are ${pool.length} to train on`,
    );
  return pool;
}

async function promptLengths(
  { tokenizers }: VerlExportDeps,
  { parameters: { agent, policy } }: NodeOf<'rl'>,
  pool: readonly Task[],
  moved: () => void,
): Promise<VerlExport['prompts']> {
  const tokenizer = await tokenizers.load(policy.model);
  let [shortest, longest] = [Number.POSITIVE_INFINITY, 0];
  for (const { question } of pool) {
    const { length } = renderPrompt(tokenizer, { question, tools: agent.tools as ToolName[] });
    [shortest, longest] = [Math.min(shortest, length), Math.max(longest, length)];
    moved();
  }
  return { shortest, longest };
}

function* taskRows(pool: readonly Task[], moved: () => void) {
  for (const [index, { task_id, question, answer, aliases, capability, split, source, deny_urls }] of pool.entries()) {
    moved();
    yield {
      data_source: source,
      prompt: [{ role: 'user', content: question }],
      ability: capability,
      reward_model: { style: 'rule', ground_truth: { target: [answer, ...aliases] } },
      extra_info: { index, split, task_id, question, deny_urls },
      agent_name: 'exp_react',
    };
  }
}

/** verl reads it with OmegaConf: JSON is YAML. */
function agentLoops({ tool_server }: VerlFolder): string {
  return JSON.stringify([{ name: 'exp_react', _target_: 'exp_trainer.verl_loop.ExpReactLoop', tool_server }]);
}

/** Hugging Face directory of what the stage starts from; the base itself where nothing was trained on it yet. */
async function startingWeights({ plans, merged, modelDir }: VerlExportDeps, ref: NodeRef): Promise<string> {
  const checkpoint = await parentCheckpoint(plans, ref);
  const { policy } = nodeOf('rl', await plans.node(ref)).parameters;
  const isBase = checkpoint.adapters.length === 0 && !('weights' in checkpoint);
  return isBase ? modelDir(policy.model) : merged.directory(checkpoint);
}

async function copyPython(packageDir: string, target: string): Promise<void> {
  const package_ = join(target, 'exp_trainer');
  await mkdir(package_, { recursive: true });
  for (const name of PYTHON_MODULES)
    await cp(join(packageDir, 'exp_trainer', `${name}.py`), join(package_, `${name}.py`), { dereference: true });
}

/** A folder whole or not at all; one that is there already stays, since a job may be reading it. */
async function makeOnce(target: string, make: (part: string) => Promise<void>): Promise<void> {
  if (existsSync(target)) return;
  const part = `${target}.part`;
  await rm(part, { recursive: true, force: true });
  await make(part);
  await rename(part, target);
}
