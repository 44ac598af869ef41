import {
  CancellationScope,
  condition,
  defineSignal,
  executeChild,
  getExternalWorkflowHandle,
  isCancellation,
  setHandler,
} from '@temporalio/workflow';
import type { NodeOutcome, NodeRef } from '../activities/index.ts';
import type { ArtifactRef } from '../schemas/artifact.ts';
import { cpu, ledger } from './activity-proxies.ts';
import { nodeDoneSignal } from './arm.ts';
import { always } from './cancellation.ts';
import { outcomeOfError } from './outcome.ts';
import { rl_stage } from './rl-stage.ts';
import { rollouts } from './rollouts.ts';
import { sft_stage } from './sft-stage.ts';

export const subscribeSignal = defineSignal<[string]>('subscribe');
export const leaveSignal = defineSignal<[string]>('leave');

/**
 * The single flight of one key. Looks for its artifact first, runs what is missing, tells every subscriber
 * (also those who came late), and cancels itself when the last subscriber has left.
 */
export async function node(ref: NodeRef): Promise<NodeOutcome> {
  const subscribers = new Set<string>();
  const told = new Set<string>();
  let everSubscribed = false;
  setHandler(subscribeSignal, (id) => {
    subscribers.add(id);
    everSubscribed = true;
  });
  setHandler(leaveSignal, (id) => void subscribers.delete(id));

  // Who subscribes while an abandoned execution is being cancelled gets a new one, not the old one's ending.
  let outcome = await execution(ref, () => everSubscribed && subscribers.size === 0);
  while (outcome.status === 'cancelled' && subscribers.size > 0 && !CancellationScope.current().consideredCancelled) {
    outcome = await execution(ref, () => subscribers.size === 0);
  }

  // A subscriber may arrive while another is being told: go on until nobody is left untold.
  for (let next = untold(subscribers, told); next !== undefined; next = untold(subscribers, told)) {
    told.add(next);
    await always(() => tell(next as string, outcome));
  }
  return outcome;
}

/** Run the node until it ends or nobody waits for it any more. */
async function execution(ref: NodeRef, isAbandoned: () => boolean): Promise<NodeOutcome> {
  const work = new CancellationScope();
  const watch = new CancellationScope();
  const watching = watch
    .run(() => condition(isAbandoned))
    .then(
      () => work.cancel(),
      () => undefined, // nobody watches any more
    );
  try {
    return await work.run(() => execute(ref));
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
async function tell(subscriber: string, outcome: NodeOutcome): Promise<void> {
  try {
    await getExternalWorkflowHandle(subscriber).signal(nodeDoneSignal, outcome);
  } catch (error) {
    if (isCancellation(error)) throw error;
  }
}

async function execute(ref: NodeRef): Promise<NodeOutcome> {
  const { id, key } = ref;
  const existing = await ledger.findArtifact(ref);
  if (existing) return { id, key, status: 'done', artifact: existing, reused: true };

  await ledger.nodeStarted(ref);
  try {
    const artifact = await produce(ref);
    await ledger.nodeEnded({ node: ref, status: 'done', detail: '' });
    return { id, key, status: 'done', artifact };
  } catch (error) {
    const outcome = outcomeOfError(ref, error);
    await always(() => ledger.nodeEnded({ node: ref, status: outcome.status, detail: outcome.error?.message ?? '' }));
    throw error;
  }
}

/** A new kind of node does not compile until it is handled here. */
async function produce(ref: NodeRef): Promise<ArtifactRef> {
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
      return executeChild(sft_stage, { workflowId: `stage/${ref.key}`, args: [{ node: ref }] });
    case 'rl':
      return executeChild(rl_stage, { workflowId: `stage/${ref.key}`, args: [{ node: ref }] });
    case 'profile':
      return cpu.publishProfile({ node: ref, shards: await rollOut(ref) });
    case 'benchmark':
      return cpu.publishBenchmark({ node: ref, shards: await rollOut(ref) });
    case 'report':
      return cpu.report(ref);
    default:
      return kind satisfies never;
  }
}

/** All rollouts of a node that samples once: from its checkpoint, over its whole request. */
async function rollOut(ref: NodeRef) {
  const checkpoint = await ledger.resolveCheckpoint(ref);
  return executeChild(rollouts, {
    workflowId: `rollouts/${ref.key}/0`,
    args: [{ node: ref, step: 0, round: 0, checkpoint }],
  });
}
