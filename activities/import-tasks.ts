/** Questions from files: read, given a capability, and chosen by it where a mix is asked for. */
import { Context } from '@temporalio/activity';
import {
  chooseTasks,
  type ImportedTask,
  inSeededOrder,
  splitTasks,
  taskOfRow,
} from '../environments/deep-research/tasks/import-tasks.ts';
import { countsInMix } from '../environments/deep-research/tasks/in-mix.ts';
import { RowReport } from '../environments/world/sources/row-report.ts';
import { ExpError } from '../schemas/errors.ts';
import type { JudgeParameters, NodeOf, TaskSource } from '../schemas/node-parameters.ts';
import { judgeCapabilities } from './judge-capabilities.ts';
import type { MadeTasks, SourceReport, TaskDeps } from './make-tasks.ts';
import { whileStoring } from './pulse.ts';
import { jsonRows, parquetRows } from './source-rows.ts';

type ImportSource = Exclude<TaskSource, { kind: 'generated' }>;
type ImportDeps = Pick<TaskDeps, 'pool' | 'judges' | 'progress'> & { moved: () => void };

/** Rows of files become tasks; bad ones are reported by file and line, and more than one per cent of them is refused. */
export async function importFrom(
  node: NodeOf<'tasks'>,
  name: string,
  source: ImportSource,
  deps: ImportDeps,
): Promise<MadeTasks> {
  const { mix, splits } = node.parameters;
  const needsCapability = mix !== null && !isJudged(source);
  const path = node.unkeyed.paths?.[name];
  if (path === undefined) throw new ExpError('REF', `tasks.sources.${name}`, 'the source has no path');
  const rows = new RowReport(`tasks.sources.${name}`);
  const byQuestion = new Map<string, ImportedTask>();
  const dropped: Record<string, number> = {};
  for await (const { at, row, error } of source.kind === 'parquet' ? parquetRows(path) : jsonRows(path)) {
    deps.moved();
    const task = error ?? taskOfRow(row, source, name);
    if (typeof task === 'string') {
      rows.reject(at, task);
      continue;
    }
    if (needsCapability && task.capability === 'unknown') throw withoutCapability(at, name, source);
    rows.accept();
    if (byQuestion.has(task.question)) dropped.repeated_question = (dropped.repeated_question ?? 0) + 1;
    else byQuestion.set(task.question, task);
  }
  rows.check(node.unkeyed.expect?.[name]);
  if (rows.bad > 0) dropped.bad_row = rows.bad;
  const ordered = inSeededOrder([...byQuestion.values()], source.seed);
  const known = isJudged(source) ? await judged(ordered, node, name, source, deps) : ordered;
  const chosen = chooseTasks(known, { mix, limit: source.limit });
  const { licence, provenance } = source;
  const report: SourceReport = { tasks: chosen.length, dropped, bad_rows: rows.examples, licence, provenance };
  if (mix !== null) {
    report.mix = mixOf(name, mix, { known, chosen, limit: source.limit });
    const outside = Math.min(source.limit ?? ordered.length, ordered.length) - chosen.length;
    if (outside > 0) dropped.outside_mix = outside;
  }
  return { tasks: splitTasks(chosen, splits), report };
}

type JudgedSource = ImportSource & { capability: { judge: JudgeParameters } };
const isJudged = (source: ImportSource): source is JudgedSource =>
  source.capability !== null && 'judge' in source.capability;

function withoutCapability(at: string, name: string, { capability, fields }: ImportSource): ExpError {
  const column = capability !== null && 'column' in capability ? capability.column : fields.capability;
  return new ExpError(
    'NO_CAPABILITY',
    at,
    `\`tasks.mix\` chooses questions by capability, and this one has none in its column ${column}; say in ` +
      `\`tasks.sources.${name}.capability\` what the values of a column mean, let the judge say it ({ judge: true }), ` +
      'or leave out `tasks.mix`',
  );
}

/** Questions of which the judge hears before they are counted. */
const JUDGED_AT_ONCE = 256;
const MAX_UNKNOWN_SHARE = 0.01;

/**
 * Tasks with the capability that the judge names, in their order, until they are enough for the limit. Where it names
 * none, a task stays unknown; a mix cannot take it. Throws NO_CAPABILITY when there are more than a few such.
 */
async function judged(
  ordered: readonly ImportedTask[],
  node: NodeOf<'tasks'>,
  name: string,
  source: JudgedSource,
  { pool, judges, progress, moved }: ImportDeps,
): Promise<ImportedTask[]> {
  const { cancellationSignal: signal } = Context.current();
  const client = judges.client(node.unkeyed.judge, node.id);
  const { judge } = source.capability;
  const choice = { mix: node.parameters.mix, limit: source.limit };
  const tasks: ImportedTask[] = [];
  while (tasks.length < ordered.length && chooseTasks(tasks, choice).length < (source.limit ?? ordered.length)) {
    await progress(node.key, tasks.length, ordered.length, `capabilities of source ${name}`);
    const next = ordered.slice(tasks.length, tasks.length + JUDGED_AT_ONCE);
    const questions = next.map(({ question }) => question);
    // A reply may take longer than the heartbeat; the client gives up by itself.
    const capabilities = await whileStoring(moved, () =>
      judgeCapabilities(questions, { pool, client, judge, nodeKey: node.key, signal }),
    );
    tasks.push(...next.map((task, index) => ({ ...task, capability: capabilities[index] ?? ('unknown' as const) })));
  }
  const unknown = tasks.filter(({ capability }) => capability === 'unknown');
  if (node.parameters.mix !== null && unknown.length > tasks.length * MAX_UNKNOWN_SHARE)
    throw new ExpError(
      'NO_CAPABILITY',
      `tasks.sources.${name}`,
      `the judge named no capability for ${unknown.length} of ${tasks.length} questions (at most 1 % may be): ` +
        `${unknown
          .slice(0, 3)
          .map(({ task_id }) => task_id)
          .join(', ')}; see what it replies, or give it more \`judge.max_tokens\``,
    );
  return tasks;
}

/** Throws NO_CAPABILITY when the mix asks for what the source has not. */
function mixOf(
  name: string,
  mix: Readonly<Record<string, number>>,
  { known, chosen, limit }: { known: readonly ImportedTask[]; chosen: readonly ImportedTask[]; limit: number | null },
): NonNullable<SourceReport['mix']> {
  const available = countBy(known, ({ capability }) => capability);
  const missing = Object.keys(mix).filter((kind) => (mix[kind] as number) > 0 && available[kind] === undefined);
  if (missing.length > 0)
    throw new ExpError(
      'NO_CAPABILITY',
      `tasks.sources.${name}`,
      `\`tasks.mix\` asks for ${missing.join(', ')}, and none of its ${known.length} questions is that ` +
        `(${Object.entries(available)
          .map(([kind, count]) => `${kind} ${count}`)
          .join(', ')})`,
    );
  return {
    asked: countsInMix(limit ?? chosen.length, mix),
    realised: countBy(chosen, ({ capability }) => capability),
    available,
  };
}

export function countBy<T>(items: readonly T[], kindOf: (item: T) => string): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const item of items) counts[kindOf(item)] = (counts[kindOf(item)] ?? 0) + 1;
  return counts;
}
