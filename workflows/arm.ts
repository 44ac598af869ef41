import { condition, defineQuery, defineSignal, isCancellation, setHandler, workflowInfo } from '@temporalio/workflow';
import type { NodeOutcome, NodeSkeleton } from '../activities/index.ts';
import { ledger } from './activity-proxies.ts';
import { always } from './cancellation.ts';
import { type ArmStatus, type RunStatus, worstOf } from './outcome.ts';

export interface ArmInput {
  run: string;
  plan: string;
  arm: string;
}

export type NodeStatus = NodeOutcome['status'] | 'waiting' | 'running' | 'reused';

export interface ArmState {
  arm: string;
  status: ArmStatus;
  nodes: { id: string; kind: string; key: string; status: NodeStatus; error?: { code: string; message: string } }[];
}

export const armStateQuery = defineQuery<ArmState>('state');
/** Sent by a node workflow to every subscriber when it has ended. */
export const nodeDoneSignal = defineSignal<[NodeOutcome]>('node_done');

/** Run one arm: request every node as soon as its inputs exist; report how each ended. */
export async function arm(input: ArmInput): Promise<{ status: RunStatus }> {
  const nodes = await ledger.loadSkeleton({ plan: input.plan, arm: input.arm });
  const state: ArmState = {
    arm: input.arm,
    status: 'running',
    nodes: nodes.map(({ id, kind, key }) => ({ id, kind, key, status: 'waiting' })),
  };
  setHandler(armStateQuery, () => state);
  const ended = new Map<string, NodeOutcome>();
  setHandler(nodeDoneSignal, (outcome) => void ended.set(outcome.key, outcome));

  const outcomes = new Map<string, Promise<NodeOutcome>>();
  for (const [position, node] of nodes.entries()) {
    const view = state.nodes[position] as ArmState['nodes'][number];
    outcomes.set(node.id, follow(input, node, view, outcomes, ended));
  }
  const results = await Promise.all(outcomes.values());
  state.status = worstOf(results.map(({ status }) => (status === 'skipped' ? 'done' : status)));
  await always(() => ledger.trackArm({ run: input.run, arm: input.arm, status: state.status }));
  return { status: state.status };
}

/** One node, from waiting for its inputs to its outcome. A node whose inputs failed is skipped; its neighbours go on. */
async function follow(
  input: ArmInput,
  node: NodeSkeleton,
  view: ArmState['nodes'][number],
  outcomes: ReadonlyMap<string, Promise<NodeOutcome>>,
  ended: ReadonlyMap<string, NodeOutcome>,
): Promise<NodeOutcome> {
  const inputs = await Promise.all(node.inputs.map((id) => outcomes.get(id) as Promise<NodeOutcome>));
  const outcome: NodeOutcome = inputs.every(({ status }) => status === 'done')
    ? await request(node, view, ended)
    : { id: node.id, key: node.key, status: inputs.some((i) => i.status === 'cancelled') ? 'cancelled' : 'skipped' };
  view.status = outcome.reused ? 'reused' : outcome.status;
  if (outcome.error) view.error = outcome.error;
  await always(() => ledger.trackNode({ ...input, outcome: { ...outcome, id: node.id } }));
  return outcome;
}

/** Subscribe to the node's single execution; a cancelled arm leaves, and the node ends with its last subscriber. */
async function request(
  node: NodeSkeleton,
  view: ArmState['nodes'][number],
  ended: ReadonlyMap<string, NodeOutcome>,
): Promise<NodeOutcome> {
  const { inputs: _, ...ref } = node;
  const subscriber = workflowInfo().workflowId;
  try {
    view.status = 'running';
    await ledger.requestNode({ node: ref, subscriber });
    await condition(() => ended.has(node.key));
    return ended.get(node.key) as NodeOutcome;
  } catch (error) {
    if (!isCancellation(error)) throw error;
    await always(() => ledger.leaveNode({ key: node.key, subscriber }));
    return { id: node.id, key: node.key, status: 'cancelled' };
  }
}
