import {
  CancellationScope,
  condition,
  defineSignal,
  getExternalWorkflowHandle,
  isCancellation,
  type SignalDefinition,
  setHandler,
  startChild,
} from '@temporalio/workflow';
import type { NodeEnding, NodeOutcome, NodeRef, SamplingRequest } from '../activities/index.ts';
import type { ArtifactRef } from '../schemas/artifact.ts';
import { cpu, ledger } from './activity-proxies.ts';
import { nodeDoneSignal, refusedSignal } from './arm.ts';
import { always } from './cancellation.ts';
import { outcomeOfError } from './outcome.ts';
import { executePausable, type OverBudget } from './pausing.ts';
import { rl_stage } from './rl-stage.ts';
import { rollouts } from './rollouts.ts';
import { sft_stage } from './sft-stage.ts';

export const subscribeSignal = defineSignal<[string]>('subscribe');
export const leaveSignal = defineSignal<[string]>('leave');
/** From a subscriber whose run is paused (true) or goes on (false). */
export const pauseSubscriberSignal = defineSignal<[string, boolean]>('pause_subscriber');

/**
 * The single flight of one key. Looks for its artifact first, runs what is missing, tells every subscriber
 * (also those who came late), and cancels itself when the last subscriber has left. It is paused while every
 * subscriber is: a run that is not paused does not wait for one that is.
 */
export async function node(ref: NodeRef): Promise<NodeOutcome> {
  const subscribers = new Set<string>();
  const paused = new Set<string>();
  const told = new Set<string>();
  let everSubscribed = false;
  setHandler(subscribeSignal, (id) => {
    subscribers.add(id);
    paused.delete(id);
    everSubscribed = true;
  });
  setHandler(leaveSignal, (id) => void subscribers.delete(id));
  setHandler(pauseSubscriberSignal, (id, on) => void (on ? paused.add(id) : paused.delete(id)));
  const isPaused = () => subscribers.size > 0 && [...subscribers].every((id) => paused.has(id));

  const subscribersOf = (run: string) => [...subscribers].filter((id) => id.startsWith(`arm/${run}/`));

  // Who subscribes while an abandoned execution is being cancelled gets a new one, not the old one's ending.
  let ending = await execution(ref, subscribers, isPaused, () => everSubscribed && subscribers.size === 0);
  const goesOn = ({ status }: NodeEnding) => status === 'paused' || (status === 'cancelled' && subscribers.size > 0);
  while (goesOn(ending) && !CancellationScope.current().consideredCancelled) {
    const hold = async (ids: readonly string[], why: Omit<OverBudget, 'arm'>) => {
      for (const id of ids) {
        paused.add(id);
        await always(() => tell(id, refusedSignal, { key: ref.key, ...why }));
      }
    };
    for (const { run, ...refusal } of ending.refusals ?? []) await hold(subscribersOf(run), refusal);
    if (ending.unhealthy !== undefined)
      await hold([...subscribers], { reason: `${ref.id}: ${ending.unhealthy}`, on_exceed: 'pause', by: 'health' });
    if (isPaused()) await condition(() => !isPaused());
    ending = await execution(ref, subscribers, isPaused, () => subscribers.size === 0);
  }

  const outcome: NodeOutcome =
    ending.status === 'paused' ? { ...ending, status: 'cancelled' } : { ...ending, status: ending.status };
  // A subscriber may arrive while another is being told: go on until nobody is left untold.
  for (let next = untold(subscribers, told); next !== undefined; next = untold(subscribers, told)) {
    told.add(next);
    await always(() => tell(next as string, nodeDoneSignal, outcome));
  }
  return outcome;
}

/** Run the node until it ends, is paused, or nobody waits for it any more. */
async function execution(
  ref: NodeRef,
  subscribers: ReadonlySet<string>,
  isPaused: () => boolean,
  isAbandoned: () => boolean,
): Promise<NodeEnding> {
  const work = new CancellationScope();
  const watch = new CancellationScope();
  const watching = watch
    .run(() => condition(isAbandoned))
    .then(
      () => work.cancel(),
      () => undefined, // nobody watches any more
    );
  try {
    return await work.run(() => execute(ref, isPaused, subscribers));
  } catch (error) {
    return outcomeOfError(ref, error);
  } finally {
    watch.cancel();
    await watching;
  }
}

const untold = (subscribers: ReadonlySet<string>, told: ReadonlySet<string>): string | undefined =>
  [...subscribers].find((id) => !told.has(id));

/** A subscriber that has ended meanwhile needs no word. */
async function tell<T>(subscriber: string, signal: SignalDefinition<[T]>, word: T): Promise<void> {
  try {
    await getExternalWorkflowHandle(subscriber).signal(signal, word);
  } catch (error) {
    if (isCancellation(error)) throw error;
  }
}

async function execute(ref: NodeRef, isPaused: () => boolean, subscribers: ReadonlySet<string>): Promise<NodeOutcome> {
  const { id, key } = ref;
  const existing = await ledger.findArtifact(ref);
  if (existing) return { id, key, status: 'done', artifact: existing, reused: true };

  await ledger.nodeStarted(ref);
  try {
    const artifact = await produce(ref, isPaused);
    await ledger.nodeEnded({ node: ref, status: 'done', detail: '', subscribers: [...subscribers] });
    return { id, key, status: 'done', artifact };
  } catch (error) {
    const outcome = outcomeOfError(ref, error);
    const detail = outcome.error?.message ?? outcome.refusals?.[0]?.reason ?? outcome.unhealthy ?? '';
    await always(() => ledger.nodeEnded({ node: ref, status: outcome.status, detail, subscribers: [...subscribers] }));
    throw error;
  }
}

/** A new kind of node does not compile until it is handled here. */
async function produce(ref: NodeRef, isPaused: () => boolean): Promise<ArtifactRef> {
  const { kind } = ref;
  switch (kind) {
    case 'corpus':
      return cpu.corpus(ref);
    case 'index':
      return cpu.buildIndex(ref);
    case 'tasks':
      return cpu.tasks(ref);
    case 'trajectories':
      return cpu.demonstrations(ref);
    case 'sft':
      return executePausable(
        () => startChild(sft_stage, { workflowId: `stage/${ref.key}`, args: [{ node: ref }] }),
        isPaused,
      );
    case 'rl':
      return executePausable(
        () => startChild(rl_stage, { workflowId: `stage/${ref.key}`, args: [{ node: ref }] }),
        isPaused,
      );
    case 'profile':
      return cpu.publishProfile({ node: ref, shards: await rollOut(ref, isPaused) });
    case 'benchmark':
      return cpu.publishBenchmark({ node: ref, shards: await rollOut(ref, isPaused) });
    case 'report':
      return cpu.report(ref);
    default:
      return kind satisfies never;
  }
}

/** All rollouts of a node that samples once: from its checkpoint, over its whole request. */
async function rollOut(ref: NodeRef, isPaused: () => boolean) {
  const checkpoint = await ledger.resolveCheckpoint(ref);
  const workflowId = `rollouts/${ref.key}/0`;
  const asked: SamplingRequest = { node: ref, step: 0, round: 0, checkpoint };
  return executePausable(() => startChild(rollouts, { workflowId, args: [asked] }), isPaused);
}
