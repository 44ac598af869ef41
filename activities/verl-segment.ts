import { readFile, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { Context } from '@temporalio/activity';
import type { Tokenizer, ToolName } from '../environments/deep-research/prompt.ts';
import { trajectoryRoutes } from '../environments/deep-research/serve-trajectories.ts';
import type { World } from '../environments/environment.ts';
import { type JsonServer, serveJson } from '../environments/world/json-server.ts';
import { worldRoutes } from '../environments/world/serve-world.ts';
import { ExpError } from '../schemas/errors.ts';
import { type NodeOf, nodeOf } from '../schemas/node-parameters.ts';
import type { Task } from '../schemas/task.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import { hasEnded, type RayJob } from './adapters/ray-jobs.ts';
import type { SpendLedger } from './adapters/spend-ledger.ts';
import { BudgetRefusal } from './budget.ts';
import { isAsked } from './hold-trainer.ts';
import type { NodeRef, StageActivities } from './index.ts';
import type { NodeProgress } from './node-progress.ts';
import type { PlanReader } from './plan-reader.ts';
import { withPulse } from './pulse.ts';
import { readTasks } from './task-files.ts';
import { rayOf } from './verl-export.ts';
import { checkpointedStep, type Ray, type VerlExport, type VerlFolder, verlFolder } from './verl-folder.ts';
import { readVerlMetrics } from './verl-metrics.ts';
import { verlOverrides } from './verl-overrides.ts';

export interface VerlSegmentDeps {
  plans: PlanReader;
  store: ArtifactStore;
  worlds: { open(ref: NodeRef): Promise<World> };
  tokenizers: { load(model: string): Promise<Tokenizer> };
  progress: Pick<NodeProgress, 'report' | 'record'>;
  spend: Pick<SpendLedger, 'hold' | 'mayGoOn'>;
  servingDtype: 'float32' | 'bfloat16';
  ray: Ray | null;
}

/** One segment of a stage, as everything below needs it. */
interface Segment {
  ref: NodeRef;
  node: NodeOf<'rl'>;
  folder: VerlFolder;
  number: number;
  until: number;
  exported: VerlExport;
}

const POLL_MS = 2_000;
/** Logs and budgets are looked at less often than the job. */
const POLLS_A_LOOK = 8;
/** Jobs of one segment that may fail without a checkpoint between them. */
const MOST_FAILURES = 3;
/** What an adopted job may take to end once it was asked to. */
const STOP_MS = 60_000;

export const createVerlSegmentActivities = (deps: VerlSegmentDeps): Pick<StageActivities, 'runVerlSegment'> => ({
  /**
   * Submit the segment's job and follow it. Run again after a crash it finds the job by its id: one that runs is
   * adopted, one that failed is followed by the next, which goes on from verl's last checkpoint. A worker that shuts
   * down leaves the job running; a segment that is cancelled, or over its budget, ends it.
   */
  runVerlSegment: ({ node: ref, segment: number, until }) =>
    withPulse(async (moved) => {
      const segment = await openSegment(deps, ref, number, until);
      const server = await serveTools(deps, segment);
      try {
        let failures = 0;
        for (let attempt = 0; (await checkpointedStep(segment.folder)) < until; attempt += 1) {
          const before = await checkpointedStep(segment.folder);
          const ended = await runJob(deps, segment, jobId(segment, attempt), moved);
          if (ended === null) continue; // of an earlier execution
          const after = await checkpointedStep(segment.folder);
          failures = ended.status === 'FAILED' && after === before ? failures + 1 : 0;
          if (failures === MOST_FAILURES || (ended.status === 'SUCCEEDED' && after < until))
            throw new ExpError('VERL', ref.id, `verl stopped at step ${after} of ${until}: ${lastLine(ended)}`);
        }
      } finally {
        await server.close();
      }
    }),
});

async function openSegment({ plans, ray }: VerlSegmentDeps, ref: NodeRef, number: number, until: number) {
  const folder = verlFolder(rayOf({ ray }, ref).cluster, ref.key);
  const exported = JSON.parse(await readFile(folder.exported, 'utf8')) as VerlExport;
  return { ref, node: nodeOf('rl', await plans.node(ref)), folder, number, until, exported } satisfies Segment;
}

/** The same for everybody who asks, so a job is never submitted twice. */
const jobId = ({ ref, number }: Segment, attempt: number): string =>
  `exp-${ref.key.slice(0, 12)}-${number}${attempt > 0 ? `-${attempt}` : ''}`;

/** The tools of the stage, for as long as its job runs; their address is told to it by a file. */
async function serveTools(
  { store, plans, worlds, tokenizers, ray }: VerlSegmentDeps,
  segment: Segment,
): Promise<JsonServer> {
  const { ref, node, folder } = segment;
  const { agent, reward, policy, context_length } = node.parameters;
  const tasks = new Map<string, Task>();
  for await (const task of readTasks(store, await plans.input(ref, 'tasks'))) {
    tasks.set(task.task_id, agent.deny_urls === 'none' ? { ...task, deny_urls: [] } : task);
  }
  if (reward.outcome === 'judge')
    throw new ExpError('REWARD', ref.id, 'outcome "judge" needs a judge, which this version has not');
  const [world, tokenizer] = await Promise.all([worlds.open(ref), tokenizers.load(policy.model)]);
  const countTokens = (text: string): number => tokenizer.encodeText(text).length;
  const limits = {
    maxTurns: agent.max_turns,
    maxTurnTokens: agent.max_turn_tokens,
    observationTokens: agent.observation_tokens,
    searchResults: agent.search_results,
    contextLength: context_length,
  };
  const stage = {
    world,
    tokenizer,
    tools: agent.tools as ToolName[],
    limits,
    reward: { outcome: reward.outcome, format_penalty: reward.format_penalty },
    checkpoint: `verl ${ref.key.slice(0, 12)}`,
  };
  const routes = {
    ...trajectoryRoutes(stage, (id) => tasks.get(id)),
    ...worldRoutes({ world, countTokens, searchResults: agent.search_results, visitTokens: agent.observation_tokens }),
  };
  const { listen, port } = rayOf({ ray }, ref).cluster.tool_server;
  const server = await serveJson(routes, { host: listen, port });
  const name = listen === '0.0.0.0' || listen === '::' ? hostname() : listen;
  await writeFile(folder.tool_server, JSON.stringify({ url: `http://${name}:${server.port}` }));
  return server;
}

/** Submit a job unless it is there, and follow it to its end; null when it had ended before. */
async function runJob(deps: VerlSegmentDeps, segment: Segment, id: string, moved: () => void): Promise<RayJob | null> {
  const { jobs, cluster } = rayOf(deps, segment.ref);
  const known = await jobs.find(id);
  if (known && hasEnded(known)) return null;
  try {
    await refuseOverBudget(deps, segment);
    if (!known) {
      const overrides = overridesOf(deps, segment);
      await writeFile(segment.folder.overrides(segment.number), `${JSON.stringify(overrides, null, 1)}\n`);
      await jobs.submit({ id, command: [...cluster.command, ...overrides], env: environmentOf(segment, id) });
    }
    return await follow(deps, segment, id, moved);
  } catch (error) {
    const { cancellationSignal } = Context.current();
    const isCancelled = cancellationSignal.aborted && isAsked(cancellationSignal.reason);
    if (isCancelled || error instanceof BudgetRefusal) await stop(deps, segment, id);
    throw error;
  }
}

async function refuseOverBudget({ spend }: VerlSegmentDeps, { ref }: Segment): Promise<void> {
  const admission = await spend.mayGoOn(ref.key);
  if (admission.kind === 'refused') throw new BudgetRefusal(ref.id, admission.refusals);
}

function overridesOf({ servingDtype }: VerlSegmentDeps, { ref, node, folder, until, exported }: Segment): string[] {
  const { model, train, val, agent_loops, checkpoints } = folder;
  return verlOverrides(node, {
    paths: { model, train, val, agent_loops, checkpoints },
    name: ref.key.slice(0, 12),
    prompts: exported.prompts,
    steps: exported.steps,
    until,
    serving_dtype: servingDtype,
  });
}

/** Of the driver and of all its workers. */
function environmentOf({ node, folder }: Segment, id: string): Record<string, string> {
  const { backend } = node.parameters;
  return {
    PYTHONPATH: `${folder.python}:\${PYTHONPATH}`, // Ray puts in what the machine has
    VERL_USE_EXTERNAL_MODULES: 'exp_trainer.verl_register',
    VERL_FILE_LOGGER_PATH: folder.metrics(id),
    ...(backend.name === 'verl' && { EXP_VERL_VERSION: backend.version }),
  };
}

/** Look at a job until it has ended. Every answer of Ray's is a sign of life of ours; what verl does shows in its metrics. */
async function follow(deps: VerlSegmentDeps, segment: Segment, id: string, moved: () => void): Promise<RayJob> {
  const { jobs } = rayOf(deps, segment.ref);
  for (let poll = 0; ; poll += 1) {
    const job = await jobs.find(id);
    moved();
    const isOver = job === null || hasEnded(job);
    if (isOver || poll % POLLS_A_LOOK === 0) await look(deps, segment, id);
    if (job === null)
      return { status: 'FAILED', message: 'Ray does not know the job any more: its head was restarted' };
    if (isOver) return job;
    if (poll % POLLS_A_LOOK === 0) await refuseOverBudget(deps, segment);
    await Context.current().sleep(POLL_MS);
  }
}

/** What it has done and what it has cost so far. */
async function look(deps: VerlSegmentDeps, segment: Segment, id: string): Promise<void> {
  const { ref, node, folder } = segment;
  const { gpu = 0, nodes = 1 } = node.unkeyed.resources ?? {};
  await deps.spend.hold(ref.key, `verl ${id}`, { gpus: gpu * nodes, cpus: 0 });
  await recordMetrics(deps, segment, id);
  await writeFile(folder.log(id), await rayOf(deps, ref).jobs.logs(id));
}

/**
 * A step counts once a checkpoint holds it: what verl did after its last checkpoint is done again after a failure, and
 * then measured anew. How far it is shows at once.
 */
async function recordMetrics(
  { progress }: VerlSegmentDeps,
  { ref, folder, exported }: Segment,
  id: string,
): Promise<void> {
  const [steps, durable] = await Promise.all([readVerlMetrics(folder.metrics(id)), checkpointedStep(folder)]);
  for (const { step, values } of steps) if (step <= durable) await progress.record(ref.key, step, values);
  const last = steps.at(-1);
  if (last) {
    const said = last.step > durable ? `, the last checkpoint at ${durable}` : '';
    await progress.report(ref.key, last.step, exported.steps, `verl: step ${last.step}${said}`);
  }
}

/** End a job and see it end: its GPUs are somebody else's from then on. */
async function stop(deps: VerlSegmentDeps, { ref }: Segment, id: string): Promise<void> {
  const { jobs } = rayOf(deps, ref);
  await jobs.stop(id);
  for (const deadline = Date.now() + STOP_MS; Date.now() < deadline; ) {
    const job = await jobs.find(id);
    if (job === null || hasEnded(job)) return;
    Context.current().heartbeat();
    await new Promise((resolve) => setTimeout(resolve, POLL_MS / 4));
  }
}

const lastLine = ({ message }: RayJob): string => message.trim().split('\n').at(-1)?.slice(0, 500) ?? '';
