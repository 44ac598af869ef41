import {
  condition,
  defineQuery,
  defineSignal,
  getExternalWorkflowHandle,
  isCancellation,
  setHandler,
  workflowInfo,
} from '@temporalio/workflow';
import type { NodeOutcome, NodeSkeleton } from '../activities/index.ts';
import { ledger } from './activity-proxies.ts';
import { always } from './cancellation.ts';
import { type GateState, Gates } from './gates.ts';
import { type ArmStatus, type RunStatus, worstOf } from './outcome.ts';
import { type Hold, keepTold, listenForPause, type OverBudget, type Told } from './pausing.ts';

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
  gates: GateState[];
}

export const armStateQuery = defineQuery<ArmState>('state');
/** Sent by a node workflow to every subscriber when it has ended. */
export const nodeDoneSignal = defineSignal<[NodeOutcome]>('node_done');

/** Sent by a node workflow that stopped: this arm's run has no room in its budget for the next unit of work, or it is unhealthy. */
export const refusedSignal = defineSignal<[Refused]>('refused');
interface Refused extends Omit<OverBudget, 'arm'> {
  key: string;
}
/** As the run workflow defines it. */
const overBudgetSignal = defineSignal<[OverBudget]>('over_budget');

/** As the node workflow defines it; a signal's name is all that a sender needs. */
const pauseSubscriberSignal = defineSignal<[string, boolean]>('pause_subscriber');

/** What every node of an arm looks at. */
interface Arm {
  input: ArmInput;
  hold: Hold;
  /** Nodes whose end was told, by key. */
  ended: Map<string, NodeOutcome>;
  /** Nodes by id. */
  outcomes: Map<string, Promise<NodeOutcome>>;
  gates: Gates;
  /** What nodes in flight know of a pause, by key. */
  told: Map<string, Told>;
}

/** Run one arm: request every node as soon as its inputs exist; report how each ended. */
export async function arm(input: ArmInput): Promise<{ status: RunStatus }> {
  const hold = listenForPause();
  const nodes = await ledger.loadSkeleton({ plan: input.plan, arm: input.arm });
  const outcomes = new Map<string, Promise<NodeOutcome>>();
  const gates = new Gates(nodes, outcomes);
  const state: ArmState = {
    arm: input.arm,
    status: 'running',
    nodes: nodes.map(({ id, kind, key }) => ({ id, kind, key, status: 'waiting' })),
    gates: gates.states,
  };
  setHandler(armStateQuery, () => state);
  const context: Arm = { input, hold, ended: new Map(), outcomes, gates, told: new Map() };
  setHandler(nodeDoneSignal, (outcome) => void context.ended.set(outcome.key, outcome));
  setHandler(refusedSignal, ({ key, ...refusal }) => {
    // The node holds itself back, and the run is about to: both will hear when it goes on.
    hold.on = true;
    const told = context.told.get(key);
    if (told) told.paused = true;
    const word = { arm: input.arm, ...refusal };
    const telling = getExternalWorkflowHandle(`run/${input.run}`).signal(overBudgetSignal, word);
    telling.catch(() => undefined); // a run that has ended ends its arms
  });

  for (const [position, node] of nodes.entries()) {
    const view = state.nodes[position] as ArmState['nodes'][number];
    outcomes.set(node.id, follow(context, node, view));
  }
  const results = await Promise.all(outcomes.values());
  const missed = (await gates.passAll()).filter(({ status }) => status === 'failed');
  state.status = worstOf([
    ...results.map(({ status }) => (status === 'skipped' ? 'done' : status)),
    ...missed.map(() => 'gate_failed' as const),
  ]);
  await always(() => ledger.trackArm({ run: input.run, arm: input.arm, status: state.status }));
  return { status: state.status };
}

/** One node, from waiting for its inputs to its outcome. A node whose inputs failed is skipped; its neighbours go on. */
async function follow(arm: Arm, node: NodeSkeleton, view: ArmState['nodes'][number]): Promise<NodeOutcome> {
  const { input, outcomes } = arm;
  const inputs = await Promise.all(node.inputs.map((id) => outcomes.get(id) as Promise<NodeOutcome>));
  const outcome: NodeOutcome = inputs.every(({ status }) => status === 'done')
    ? ((await heldBack(arm, node)) ?? (await request(arm, node, view)))
    : { id: node.id, key: node.key, status: inputs.some((i) => i.status === 'cancelled') ? 'cancelled' : 'skipped' };
  view.status = outcome.reused ? 'reused' : outcome.status;
  if (outcome.error) view.error = outcome.error;
  await always(() => ledger.trackNode({ ...input, outcome: { ...outcome, id: node.id } }));
  return outcome;
}

/** The outcome of a node that a gate does not let begin; null when it may. */
async function heldBack({ gates }: Arm, { id, key, gates: names = [] }: NodeSkeleton): Promise<NodeOutcome | null> {
  for (const name of names) {
    const { status, reason } = await gates.pass(name);
    if (status === 'cancelled') return { id, key, status };
    if (status !== 'passed')
      return { id, key, status: 'skipped', error: { code: 'GATE', message: `${id}: GATE: after ${name}: ${reason}` } };
  }
  return null;
}

/** Subscribe to the node's single execution; a cancelled arm leaves, and the node ends with its last subscriber. */
async function request(
  { hold, ended, told: allTold }: Arm,
  node: NodeSkeleton,
  view: ArmState['nodes'][number],
): Promise<NodeOutcome> {
  const { inputs: _, gate: __, gates: ___, ...ref } = node;
  const subscriber = workflowInfo().workflowId;
  try {
    if (hold.on) await condition(() => !hold.on);
    view.status = 'running';
    await ledger.requestNode({ node: ref, subscriber });
    const told: Told = { paused: false };
    allTold.set(node.key, told);
    const telling = keepTold(
      (paused) => getExternalWorkflowHandle(`node/${node.key}`).signal(pauseSubscriberSignal, subscriber, paused),
      told,
      () => hold.on,
      () => ended.has(node.key),
    );
    await condition(() => ended.has(node.key));
    await telling;
    return ended.get(node.key) as NodeOutcome;
  } catch (error) {
    if (!isCancellation(error)) throw error;
    await always(() => ledger.leaveNode({ key: node.key, subscriber }));
    return { id: node.id, key: node.key, status: 'cancelled' };
  }
}
