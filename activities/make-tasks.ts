import { createWriteStream } from 'node:fs';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import type { Pool } from 'pg';
import type { FactPage } from '../environments/deep-research/tasks/fact-pool.ts';
import {
  type FactCorpus,
  type GenerationReport,
  generateTasks,
} from '../environments/deep-research/tasks/generate-tasks.ts';
import { taskOfRow } from '../environments/deep-research/tasks/import-tasks.ts';
import { inMix } from '../environments/deep-research/tasks/in-mix.ts';
import { apportion } from '../environments/deep-research/tasks/quotas.ts';
import { hashFraction } from '../environments/deep-research/tasks/seeded.ts';
import { cursorRows, readPages } from '../environments/world/pages.ts';
import type { CorpusBody, Metric, TasksBody } from '../schemas/artifact.ts';
import { ExpError } from '../schemas/errors.ts';
import { type NodeOf, nodeOf, type TaskSource } from '../schemas/node-parameters.ts';
import { BenchmarkQuestions, OverlapReport } from '../schemas/overlap.ts';
import { CAPABILITIES, type Task } from '../schemas/task.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import { countBy, importFrom } from './import-tasks.ts';
import type { CpuActivities } from './index.ts';
import type { Judges } from './judges.ts';
import type { PlanReader } from './plan-reader.ts';
import { withPulse } from './pulse.ts';
import { jsonRows, parquetRows } from './source-rows.ts';

export interface TaskDeps {
  plans: PlanReader;
  store: ArtifactStore;
  pool: Pool;
  judges: Pick<Judges, 'client'>;
  progress(key: string, done: number, total: number, detail: string): Promise<void>;
  /** Scratch space. */
  work: string;
}

/** What came of one source: `report.json` holds these by name. */
export interface SourceReport {
  tasks: number;
  dropped: Record<string, number>;
  /** Generated: how the mix, the templates and the answers came out. */
  generation?: GenerationReport;
  /** Imported, with a mix: questions by capability, as asked for, as taken, and as many as there are known to be. */
  mix?: Record<'asked' | 'realised' | 'available', Record<string, number>>;
  /** Imported: the first rows that were refused, as `file:line: reason`. */
  bad_rows?: string[];
  licence?: string;
  provenance?: string;
}

export interface MadeTasks {
  tasks: Task[];
  report: SourceReport;
}

export const createTaskActivities = ({
  plans,
  store,
  pool,
  judges,
  progress,
  work,
}: TaskDeps): Pick<CpuActivities, 'tasks'> => ({
  /**
   * Make or import the tasks of every source and publish them as one file, in the order of their ids.
   * Deterministic: the same corpus, files and seeds give the same bytes.
   */
  tasks: (ref) =>
    withPulse(async (moved) => {
      const node = nodeOf('tasks', await plans.node(ref));
      const corpusKey = async () => ((await plans.input(ref, 'corpus')).body as unknown as CorpusBody).corpus_key;
      const made = new Map<string, MadeTasks>();
      for (const [name, source] of Object.entries(node.parameters.sources).sort(([a], [b]) => (a < b ? -1 : 1))) {
        await progress(ref.key, made.size, Object.keys(node.parameters.sources).length, `source ${name}`);
        made.set(
          name,
          source.kind === 'generated'
            ? await generate(node, name, source, corpusOf(pool, await corpusKey(), moved))
            : await importFrom(node, name, source, { pool, judges, progress, moved }),
        );
      }
      const tasks = limited(
        [...made.values()].flatMap((source) => source.tasks),
        node.parameters,
        node.seed ?? 0,
      );
      if (tasks.length === 0) throw new ExpError('NO_TASKS', ref.id, 'no source gave a single task');
      await refuseContaminated(node, tasks, moved);

      await mkdir(work, { recursive: true });
      const folder = await mkdtemp(join(work, 'tasks-'));
      try {
        const files = { 'tasks.jsonl': join(folder, 'tasks.jsonl'), 'report.json': join(folder, 'report.json') };
        await pipeline(Readable.from(lines(tasks)), createWriteStream(files['tasks.jsonl']));
        const body = bodyOf(tasks, made);
        const reports = Object.fromEntries([...made].map(([name, source]) => [name, source.report]));
        await writeFile(files['report.json'], `${JSON.stringify({ ...body, sources: reports }, null, 2)}\n`);
        await progress(ref.key, tasks.length, tasks.length, splitsInWords(body.splits));
        return await store.publish({
          key: ref.key,
          kind: 'tasks',
          inputs: await plans.lineage(ref),
          files,
          body,
          metrics: metricsOf(body, made),
        });
      } finally {
        await rm(folder, { recursive: true, force: true });
      }
    }),
});

async function generate(
  node: NodeOf<'tasks'>,
  name: string,
  source: TaskSource & { kind: 'generated' },
  corpus: FactCorpus,
): Promise<MadeTasks> {
  const { mix, splits } = node.parameters;
  const { tasks, report } = await generateTasks(corpus, {
    source: name,
    count: source.count,
    seed: source.seed,
    mix,
    splits,
  });
  return { tasks, report: { tasks: tasks.length, dropped: report.dropped, generation: report } };
}

/** Pages of a corpus through cursors: neither facts nor texts are held. */
function corpusOf(pool: Pool, corpusKey: string, moved: () => void): FactCorpus {
  const from = `from corpus_pages join pages using (hash) where corpus_key = $1 and facts is not null`;
  return {
    async *factPages() {
      for await (const page of cursorRows<FactPage>(pool, `select url, facts ${from} order by url collate "C"`, [
        corpusKey,
      ])) {
        moved();
        yield page;
      }
    },
    async factPagesAt(urls) {
      const { rows } = await pool.query<FactPage>(
        `select url, facts ${from} and url = any($2) order by url collate "C"`,
        [corpusKey, urls],
      );
      return rows;
    },
    async *texts() {
      for await (const page of readPages(pool, corpusKey)) {
        moved();
        yield page;
      }
    },
  };
}

/** No task that is trained on may overlap with a benchmark set. Throws CONTAMINATED, a gate. */
async function refuseContaminated(node: NodeOf<'tasks'>, tasks: readonly Task[], moved: () => void): Promise<void> {
  const { decontaminate } = node.parameters;
  if (decontaminate === null) return;
  const questions = new BenchmarkQuestions(decontaminate.n);
  for (const [name, fields] of Object.entries(decontaminate.against)) {
    const path = node.unkeyed.paths?.[`against.${name}`] as string;
    for await (const { row } of path.endsWith('.parquet') ? parquetRows(path) : jsonRows(path)) {
      moved();
      const task = taskOfRow(row, { format: 'columns', fields, capability: null }, name);
      if (typeof task !== 'string')
        questions.add(name, { id: task.task_id, question: task.question, urls: task.evidence });
    }
  }
  const report = new OverlapReport();
  for (const { task_id, split, question, evidence } of tasks) {
    if (decontaminate.splits.includes(split)) report.note(task_id, questions.find({ question, urls: evidence }));
  }
  const message = report.message();
  if (message !== null) throw new ExpError('CONTAMINATED', node.id, message);
}

/**
 * In the order of ids; a limit takes the same share of every split, chosen by the seed, so that none runs empty, and
 * of each the capabilities as they are, where a mix was asked for.
 */
function limited(tasks: readonly Task[], { limit, mix }: NodeOf<'tasks'>['parameters'], seed: number): Task[] {
  const byId = (a: Task, b: Task) => (a.task_id < b.task_id ? -1 : 1);
  if (limit === null || limit >= tasks.length) return tasks.toSorted(byId);
  const splits = [...new Set(tasks.map(({ split }) => split))];
  const members = Object.fromEntries(splits.map((split) => [split, tasks.filter((task) => task.split === split)]));
  const counts = apportion(
    limit,
    Object.fromEntries(Object.entries(members).map(([split, all]) => [split, all.length])),
  );
  const kept = Object.entries(members).flatMap(([split, all]) => {
    const rank = new Map(all.map(({ task_id }) => [task_id, hashFraction(`${seed}/limit/${task_id}`)]));
    const ordered = all.toSorted((a, b) => (rank.get(a.task_id) as number) - (rank.get(b.task_id) as number));
    const capabilityOf = ({ capability }: Task): string => capability;
    return (mix === null ? ordered : inMix(ordered, countBy(all, capabilityOf), capabilityOf)).slice(0, counts[split]);
  });
  return kept.sort(byId);
}

function* lines(tasks: readonly Task[]): Generator<string> {
  for (const task of tasks) yield `${JSON.stringify(task)}\n`;
}

function bodyOf(tasks: readonly Task[], made: ReadonlyMap<string, MadeTasks>): TasksBody {
  const realised = countBy(tasks, ({ capability }) => capability);
  const asked: Record<string, number> = {};
  const dropped: Record<string, number> = {};
  for (const { report } of made.values()) {
    for (const part of [...Object.values(report.generation?.splits ?? {}), ...(report.mix ? [report.mix] : [])]) {
      for (const [capability, wanted] of Object.entries(part.asked))
        asked[capability] = (asked[capability] ?? 0) + wanted;
    }
    for (const [reason, times] of Object.entries(report.dropped)) dropped[reason] = (dropped[reason] ?? 0) + times;
  }
  const named = [...CAPABILITIES, 'unknown'].filter((name) => name in realised || name in asked);
  return {
    tasks: tasks.length,
    splits: countBy(tasks, ({ split }) => split),
    mix: Object.fromEntries(named.map((name) => [name, { asked: asked[name] ?? 0, realised: realised[name] ?? 0 }])),
    dropped,
  };
}

function metricsOf(body: TasksBody, made: ReadonlyMap<string, MadeTasks>): Metric[] {
  const values: Record<string, number> = { 'tasks/count': body.tasks };
  for (const [split, tasks] of Object.entries(body.splits)) values[`tasks/split/${split}`] = tasks;
  for (const [capability, { asked, realised }] of Object.entries(body.mix)) {
    values[`tasks/asked/${capability}`] = asked;
    values[`tasks/realised/${capability}`] = realised;
  }
  for (const { report } of made.values()) {
    for (const [split, { most_frequent }] of Object.entries(report.generation?.splits ?? {})) {
      for (const [capability, { share }] of Object.entries(most_frequent))
        values[`tasks/most_frequent/${split}/${capability}`] = share;
    }
  }
  const timestamp_ms = Date.now();
  return Object.entries(values).map(([name, value]) => ({ name, step: 0, value, timestamp_ms }));
}

function splitsInWords(splits: Readonly<Record<string, number>>): string {
  return Object.entries(splits)
    .map(([split, tasks]) => `${tasks} ${split}`)
    .join(', ');
}
