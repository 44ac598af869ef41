import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import pLimit from 'p-limit';
import { answerFromFirstResult, mostFrequentAnswers } from '../environments/deep-research/benchmarks/baselines.ts';
import { resultMetrics } from '../environments/deep-research/benchmarks/metric-names.ts';
import {
  type BenchmarkScores,
  type QuestionResult,
  type RuleAnswers,
  resultOf,
  scoreQuestions,
  ToolUse,
} from '../environments/deep-research/benchmarks/score-benchmark.ts';
import type { World } from '../environments/environment.ts';
import type { BenchmarkBody, Metric } from '../schemas/artifact.ts';
import { contentKey } from '../schemas/canonical.ts';
import { ExpError } from '../schemas/errors.ts';
import { type NodeOf, nodeOf } from '../schemas/node-parameters.ts';
import type { Task } from '../schemas/task.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import type { CpuActivities, NodeRef, RolloutShard } from './index.ts';
import type { NodeInput, PlanReader } from './plan-reader.ts';
import { withPulse } from './pulse.ts';
import { type GradedTrajectory, readGraded, readMessages } from './read-shards.ts';
import { readTasks } from './task-files.ts';

export interface PublishBenchmarkDeps {
  plans: PlanReader;
  store: ArtifactStore;
  worlds: { open(ref: NodeRef): Promise<World> };
  progress(key: string, done: number, total: number, detail: string): Promise<void>;
  /** Scratch space. */
  work: string;
}

/** Rollouts of this group prefix had no tools: they say what the policy knows by heart. */
const CLOSED_BOOK = 'closed_book/';
const CONCURRENT_SEARCHES = 16;

export const createPublishBenchmarkActivities = ({
  plans,
  store,
  worlds,
  progress,
  work,
}: PublishBenchmarkDeps): Pick<CpuActivities, 'publishBenchmark'> => ({
  /** Score the samples of a benchmark, ask its baselines, and publish both by question and in sum. */
  publishBenchmark: ({ node: ref, shards }) =>
    withPulse(async (moved) => {
      const node = nodeOf('benchmark', await plans.node(ref));
      const inputs = await plans.inputs(ref);
      const { samples, closedBook, toolUse } = await readSamples(store, shards, moved);
      const { asked, training } = await readQuestions(
        store,
        inputs,
        node,
        new Set([...samples.keys(), ...closedBook.keys()]),
      );
      const rules = await answersByRule(await worlds.open(ref), asked, training, moved);
      await progress(ref.key, asked.length, asked.length, 'baselines asked');

      const seenTemplates = new Set(training.flatMap(({ template }) => template ?? []));
      const results = asked.map((task) =>
        resultOf(task, {
          samples: samples.get(task.task_id) ?? [],
          closedBook: closedBook.get(task.task_id) ?? [],
          rules: rules.get(task.task_id) as RuleAnswers,
          seenTemplates,
        }),
      );
      const { benchmark, metrics } = node.parameters;
      const scores = scoreQuestions(results, { benchmark, samples: node.parameters.samples, metrics });
      const body = bodyOf(node, inputs, results, scores, toolUse);
      return await publish({ plans, store, work }, ref, {
        body,
        results,
        shown: await textsOf(store, shards, results),
      });
    }),
});

interface Samples {
  samples: Map<string, GradedTrajectory[]>;
  closedBook: Map<string, GradedTrajectory[]>;
  toolUse: Record<string, number>;
}

async function readSamples(store: ArtifactStore, shards: readonly RolloutShard[], moved: () => void): Promise<Samples> {
  const samples = new Map<string, GradedTrajectory[]>();
  const closedBook = new Map<string, GradedTrajectory[]>();
  const use = new ToolUse();
  for await (const trajectory of readGraded(store, shards)) {
    moved();
    const isClosed = trajectory.group_id.startsWith(CLOSED_BOOK);
    const groups = isClosed ? closedBook : samples;
    const group = groups.get(trajectory.task_id);
    if (group) group.push(trajectory);
    else groups.set(trajectory.task_id, [trajectory]);
    if (!isClosed) use.add(trajectory);
  }
  return { samples, closedBook, toolUse: use.means() };
}

/** The questions that were asked, by id, and the tasks a baseline may know: those of the training split, else of all others. */
async function readQuestions(
  store: ArtifactStore,
  inputs: readonly NodeInput[],
  node: NodeOf<'benchmark'>,
  ids: ReadonlySet<string>,
): Promise<{ asked: Task[]; training: Task[] }> {
  const manifest = inputs.find(({ kind }) => kind === 'tasks')?.manifest;
  if (!manifest) throw new ExpError('PLAN', node.id, 'has no input of kind tasks');
  const asked: Task[] = [];
  const others: Task[] = [];
  for await (const task of readTasks(store, manifest)) {
    if (ids.has(task.task_id)) asked.push(task);
    if (task.split !== node.parameters.dataset.split) others.push(task);
  }
  asked.sort((a, b) => (a.task_id < b.task_id ? -1 : 1));
  const train = others.filter(({ split }) => split === 'train');
  return { asked, training: train.length > 0 ? train : others };
}

async function answersByRule(
  world: World,
  asked: readonly Task[],
  training: readonly Task[],
  moved: () => void,
): Promise<Map<string, RuleAnswers>> {
  const mostFrequent = mostFrequentAnswers(training);
  const limit = pLimit(CONCURRENT_SEARCHES);
  const answers = await Promise.all(
    asked.map((task) =>
      limit(async () => {
        const answer_from_first_result = await answerFromFirstResult(world, task);
        moved();
        return [task.task_id, { answer_from_first_result, most_frequent_answer: mostFrequent(task) }] as const;
      }),
    ),
  );
  return new Map(answers);
}

function bodyOf(
  node: NodeOf<'benchmark'>,
  inputs: readonly NodeInput[],
  results: readonly QuestionResult[],
  scores: BenchmarkScores,
  tool_use: Record<string, number>,
): BenchmarkBody {
  const { benchmark, after, samples, dataset, agent, context_length, sampling, reward } = node.parameters;
  const digestOf = (kind: string) => inputs.find((input) => input.kind === kind)?.digest ?? null;
  return {
    benchmark,
    after,
    questions: results.length,
    samples,
    protocol: {
      dataset: { tasks: digestOf('tasks'), ...dataset, questions: contentKey(results.map(({ task_id }) => task_id)) },
      world: digestOf('index'),
      samples,
      sampling,
      agent,
      context_length,
      scoring: reward.judge ?? 'exact_match',
      denominator: 'a sample without an answer is wrong; one that the infrastructure broke is left out',
    },
    ...scores,
    tool_use,
  };
}

/** A conversation of each capability, the first sample of the first question. */
async function textsOf(
  store: ArtifactStore,
  shards: readonly RolloutShard[],
  results: readonly QuestionResult[],
): Promise<string> {
  const chosen = new Map(results.toReversed().map((result) => [result.capability, result]));
  const wanted = new Map([...chosen.values()].map((result) => [result.task_id, result]));
  const ids = new Set<string>();
  for await (const { task_id, group_id, sample, trajectory_id } of readGraded(store, shards)) {
    if (wanted.has(task_id) && sample === 0 && !group_id.startsWith(CLOSED_BOOK)) ids.add(trajectory_id);
  }
  const texts = (await readMessages(store, shards, ids)).map(({ task_id, messages }) => {
    const { capability, answer } = wanted.get(task_id) as QuestionResult;
    const exchange = messages.map(({ role, content }) => `**${role}**\n\n~~~\n${content}\n~~~`);
    return `## ${capability}: ${task_id}\n\nReference: ${answer}\n\n${exchange.join('\n\n')}`;
  });
  return `# Sample trajectories\n\n${texts.join('\n\n')}\n`;
}

async function publish(
  { plans, store, work }: Pick<PublishBenchmarkDeps, 'plans' | 'store' | 'work'>,
  ref: NodeRef,
  { body, results, shown }: { body: BenchmarkBody; results: readonly QuestionResult[]; shown: string },
) {
  await mkdir(work, { recursive: true });
  const folder = await mkdtemp(join(work, 'benchmark-'));
  try {
    const files = {
      'results.jsonl': join(folder, 'results.jsonl'),
      'table.json': join(folder, 'table.json'),
      'samples.md': join(folder, 'samples.md'),
    };
    await writeFile(files['results.jsonl'], results.map((result) => `${JSON.stringify(result)}\n`).join(''));
    await writeFile(files['table.json'], `${JSON.stringify(body, null, 2)}\n`);
    await writeFile(files['samples.md'], shown);
    return await store.publish({
      key: ref.key,
      kind: 'benchmark',
      inputs: await plans.lineage(ref),
      files,
      body,
      metrics: metricsOf(body, results),
    });
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** A benchmark is measured once for a checkpoint, so its points stand at step 0. */
function metricsOf(body: BenchmarkBody, results: readonly QuestionResult[]): Metric[] {
  const prefix = `eval/${body.benchmark}`;
  const values = resultMetrics(body.benchmark, results, body);
  for (const [name, { value }] of Object.entries(body.baselines)) values[`${prefix}/baseline/${name}`] = value;
  for (const [name, value] of Object.entries(body.tool_use)) values[`${prefix}/tool_use/${name}`] = value;
  const timestamp_ms = Date.now();
  return Object.entries(values).map(([name, value]) => ({ name, step: 0, value, timestamp_ms }));
}
