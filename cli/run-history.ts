/** What happened in a run, told from the workflows' histories: what ran, what failed, what was tried again. */
import type { Client, WorkflowExecutionInfo } from '@temporalio/client';
import type { temporal } from '@temporalio/proto';
import type { Plan } from '../schemas/plan.ts';
import { clock, oneLine } from './terminal.ts';

type HistoryEvent = temporal.api.history.v1.IHistoryEvent;
type Failure = temporal.api.failure.v1.IFailure;

/** A process gone or silent; work that was tried again after an error; the end of trying. */
export type TroubleMark = 'crash' | 'retry' | 'failure';
type Told = { text: string; mark: TroubleMark | null };

export interface LogEntry {
  at: Date;
  /** The node, `run` or an arm. */
  where: string;
  text: string;
  trouble: boolean;
  /** What kind of trouble it was; null when none. */
  mark: TroubleMark | null;
  /** The same entry read again has the same id. */
  id: string;
}

export interface HistoryQuery {
  run: string;
  /** Entries before this belong to other runs that share a node. */
  since: Date;
  plan: Plan;
  /** Only this node, by its id. */
  node?: string;
  /** Also the bookkeeping: every activity that only moved rows. */
  all: boolean;
}

/** Rows and signals: worth a line only when they fail. */
const BOOKKEEPING = new Set([
  'listArms',
  'loadSkeleton',
  'requestNode',
  'leaveNode',
  'findArtifact',
  'nodeStarted',
  'nodeEnded',
  'trackRunStarted',
  'trackNode',
  'trackArm',
  'finishRun',
  'resolveCheckpoint',
  'stagePlan',
  'nextMove',
  'acquireEngine',
  'releaseEngine',
  'prepareRollouts',
]);

/** All entries of a run so far, oldest first. */
export async function readHistory(client: Client, query: HistoryQuery): Promise<LogEntry[]> {
  const entries: LogEntry[] = [];
  const seen = new Set<string>();
  const nodes = nodeNames(query.plan);
  const wanted = [...nodes].filter(([, name]) => query.node === undefined || isNamed(name, query.node));
  const roots = [...(query.node === undefined ? [`run/${query.run}`] : []), ...wanted.map(([key]) => `node/${key}`)];

  const visit = async (workflowId: string): Promise<void> => {
    if (seen.has(workflowId)) return;
    seen.add(workflowId);
    const where = nameOf(workflowId, nodes);
    for (const execution of await executionsOf(client, workflowId, query.since)) {
      const handle = client.workflow.getHandle(workflowId, execution.runId);
      const { events } = await handle.fetchHistory();
      const history = new HistoryReader(where, execution.runId, query.all);
      entries.push(...(events ?? []).flatMap((event) => history.entry(event)));
      if (execution.status.name === 'RUNNING') entries.push(...pendingEntries(await handle.describe(), where));
      for (const child of childrenOf(events ?? [])) await visit(child);
    }
  };
  for (const root of roots) await visit(root);
  return entries.filter(({ at }) => at >= query.since).sort((a, b) => a.at.getTime() - b.at.getTime());
}

/** Node by key: its id, and before it the arm where arms have different nodes of that id. */
export function nodeNames({ arms }: Plan): Map<string, string> {
  const keysOf = (id: string): Set<string> =>
    new Set(arms.flatMap(({ nodes }) => nodes.filter((node) => node.id === id).map(({ key }) => key)));
  return new Map(
    arms.flatMap(({ name, nodes }) => nodes.map(({ key, id }) => [key, keysOf(id).size > 1 ? `${name}/${id}` : id])),
  );
}

/** Whether a name of `nodeNames` is meant by an id, with or without its arm. */
export const isNamed = (name: string, wanted: string): boolean => name === wanted || name.endsWith(`/${wanted}`);

/** Every execution of a workflow id (a resume and a continue-as-new make new ones) that was alive during the run. */
async function executionsOf(client: Client, workflowId: string, since: Date): Promise<WorkflowExecutionInfo[]> {
  const found: WorkflowExecutionInfo[] = [];
  for await (const info of client.workflow.list({ query: `WorkflowId = "${workflowId}"` })) {
    if (!info.closeTime || info.closeTime >= since) found.push(info);
  }
  return found.sort((a, b) => a.startTime.getTime() - b.startTime.getTime());
}

/** `run`, `arm control`, `stage1`, `stage1 rollouts 2`. */
function nameOf(workflowId: string, nodes: ReadonlyMap<string, string>): string {
  const [type, first = '', ...rest] = workflowId.split('/');
  const node = nodes.get(first) ?? first.slice(0, 12);
  if (type === 'run') return 'run';
  if (type === 'arm') return `arm ${rest.join('/')}`;
  if (type === 'rollouts') return `${node} rollouts ${rest.join('/')}`;
  return node;
}

function childrenOf(events: readonly HistoryEvent[]): string[] {
  return events.flatMap((event) => {
    const child = event.startChildWorkflowExecutionInitiatedEventAttributes?.workflowId;
    return child ? [child] : [];
  });
}

/** Turns the events of one execution into entries; remembers what each activity was called and when it began. */
class HistoryReader {
  readonly #where: string;
  readonly #runId: string;
  readonly #all: boolean;
  readonly #activities = new Map<string, { name: string; scheduled: Date }>();
  readonly #attempts = new Map<string, { attempt: number; failure: Failure | null }>();

  constructor(where: string, runId: string, all: boolean) {
    this.#where = where;
    this.#runId = runId;
    this.#all = all;
  }

  entry(event: HistoryEvent): LogEntry[] {
    const told = this.#tell(event);
    if (told === null) return [];
    return [
      {
        at: timeOf(event.eventTime),
        where: this.#where,
        ...told,
        trouble: told.mark !== null,
        id: `${this.#runId}/${String(event.eventId)}`,
      },
    ];
  }

  #tell(event: HistoryEvent): Told | null {
    return this.#workflowEvent(event) ?? this.#activityEvent(event);
  }

  #workflowEvent(event: HistoryEvent): Told | null {
    if (event.workflowExecutionStartedEventAttributes) return { text: 'begun', mark: null };
    if (event.workflowExecutionCompletedEventAttributes) return { text: 'ended', mark: null };
    if (event.workflowExecutionCancelRequestedEventAttributes) return { text: 'asked to cancel', mark: null };
    if (event.workflowExecutionCanceledEventAttributes) return { text: 'cancelled', mark: null };
    if (event.workflowExecutionTerminatedEventAttributes) {
      return { text: `terminated: ${event.workflowExecutionTerminatedEventAttributes.reason ?? ''}`, mark: 'crash' };
    }
    if (event.workflowExecutionTimedOutEventAttributes) return { text: 'timed out', mark: 'crash' };
    const failed = event.workflowExecutionFailedEventAttributes;
    if (failed) return { text: `failed: ${failureText(failed.failure)}`, mark: 'failure' };
    const task = event.workflowTaskFailedEventAttributes;
    if (task) return { text: `workflow code failed, waiting for a fix: ${failureText(task.failure)}`, mark: 'crash' };
    return null;
  }

  #activityEvent(event: HistoryEvent): Told | null {
    const scheduled = event.activityTaskScheduledEventAttributes;
    if (scheduled) {
      const name = scheduled.activityType?.name ?? 'activity';
      this.#activities.set(String(event.eventId), { name, scheduled: timeOf(event.eventTime) });
      return this.#quiet(name) ? null : { text: `${name} scheduled`, mark: null };
    }
    const started = event.activityTaskStartedEventAttributes;
    if (started) {
      this.#attempts.set(String(started.scheduledEventId), {
        attempt: started.attempt ?? 1,
        failure: started.lastFailure ?? null,
      });
      return null;
    }
    return this.#activityEnd(event);
  }

  #activityEnd(event: HistoryEvent): Told | null {
    const { activityTaskCompletedEventAttributes: completed, activityTaskFailedEventAttributes: failed } = event;
    const { activityTaskTimedOutEventAttributes: timedOut, activityTaskCanceledEventAttributes: cancelled } = event;
    const end = completed ?? failed ?? timedOut ?? cancelled;
    if (!end) return null;
    const id = String(end.scheduledEventId);
    const { name, scheduled } = this.#activities.get(id) ?? { name: 'activity', scheduled: timeOf(event.eventTime) };
    const { attempt, failure } = this.#attempts.get(id) ?? { attempt: 1, failure: null };
    const took = clock((timeOf(event.eventTime).getTime() - scheduled.getTime()) / 1000);
    const retried = attempt > 1 ? `, attempt ${attempt}${failure ? ` after: ${failureText(failure)}` : ''}` : '';
    if (completed)
      return this.#quiet(name) && attempt === 1
        ? null
        : { text: `${name} done in ${took}${retried}`, mark: attempt > 1 ? markOf(failure) : null };
    if (cancelled) return { text: `${name} cancelled after ${took}`, mark: null };
    return {
      text: `${name} failed after ${took}${retried}: ${failureText((failed ?? timedOut)?.failure)}`,
      mark: timedOut ? 'crash' : 'failure',
    };
  }

  #quiet(name: string): boolean {
    return !this.#all && BOOKKEEPING.has(name);
  }
}

/** Activities at work now; their attempts enter a history only when they end. */
function pendingEntries(
  description: { raw: temporal.api.workflowservice.v1.IDescribeWorkflowExecutionResponse },
  where: string,
): LogEntry[] {
  return (description.raw.pendingActivities ?? []).flatMap((activity) => {
    const name = activity.activityType?.name ?? 'activity';
    const attempt = activity.attempt ?? 1;
    if (attempt < 2 && !activity.lastFailure) return [];
    const text = `${name} at attempt ${attempt}${activity.lastFailure ? ` after: ${failureText(activity.lastFailure)}` : ''}`;
    const at = activity.lastStartedTime ? timeOf(activity.lastStartedTime) : new Date();
    const mark = markOf(activity.lastFailure);
    return [{ at, where, text, trouble: true, mark, id: `pending/${where}/${activity.activityId ?? ''}/${attempt}` }];
  });
}

/** Codes that say a process is gone. */
const GONE = new Set(['TRAINER_LOST', 'ENGINE_UNAVAILABLE']);

/** Silence ends in a time-out: nobody was there any more to say what was wrong. */
function markOf(failure: Failure | null | undefined): TroubleMark {
  const isGone = failure?.timeoutFailureInfo || GONE.has(failure?.applicationFailureInfo?.type ?? '');
  return isGone ? 'crash' : 'retry';
}

/** The innermost cause: its code and its first line. */
function failureText(failure: Failure | null | undefined): string {
  let current = failure;
  while (current?.cause && (current.activityFailureInfo || current.childWorkflowExecutionFailureInfo))
    current = current.cause;
  const message = oneLine(current?.message ?? '') || 'no reason given';
  const type = current?.applicationFailureInfo?.type;
  return type && type !== 'Error' && !message.includes(type) ? `${type}: ${message}` : message;
}

function timeOf(stamp: { seconds?: unknown; nanos?: number | null } | null | undefined): Date {
  return new Date(Number(stamp?.seconds ?? 0) * 1000 + (stamp?.nanos ?? 0) / 1e6);
}
