import { Context } from '@temporalio/activity';
import { type Client, WorkflowNotFoundError } from '@temporalio/client';
import type { Pool } from 'pg';
import type { ArtifactRef } from '../schemas/artifact.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import { setBounds } from './adapters/spend-ledger.ts';
import type { CpuActivities, NodeRef } from './index.ts';
import type { NodeProgress } from './node-progress.ts';
import type { PlanReader } from './plan-reader.ts';

export interface RunNodesDeps {
  client: Client;
  plans: PlanReader;
  store: ArtifactStore;
  progress: NodeProgress;
  pool: Pool;
  /** True when what the artifact describes in PostgreSQL or Milvus is still there, unchanged. */
  verifyLive(artifact: ArtifactRef): Promise<boolean>;
}

type RunNodesActivities = Pick<
  CpuActivities,
  | 'listArms'
  | 'loadSkeleton'
  | 'requestNode'
  | 'leaveNode'
  | 'findArtifact'
  | 'readMetric'
  | 'nodeStarted'
  | 'nodeEnded'
  | 'setBudget'
>;

/** What `run`, `arm` and `node` ask of the world outside: the plan's shape, single flight, reuse, and their diary. */
export const createRunNodesActivities = ({
  client,
  plans,
  store,
  progress,
  pool,
  verifyLive,
}: RunNodesDeps): RunNodesActivities => ({
  async listArms({ plan }) {
    return { arms: (await plans.load(plan)).arms.map(({ name }) => name) };
  },

  async loadSkeleton({ plan, arm }) {
    const { nodes, gates = [] } = await plans.arm({ plan, arm });
    return nodes.map(({ id, kind, key, inputs }) => {
      const gate = gates.find(({ name }) => name === id);
      const waits = gates.filter(({ blocks }) => blocks.includes(id)).map(({ name }) => name);
      return { plan, arm, id, kind, key, inputs, ...(gate && { gate }), ...(waits.length > 0 && { gates: waits }) };
    });
  },

  /** Signal-with-start: whoever asks first starts the node, everybody else joins it. */
  async requestNode({ node, subscriber }) {
    await pool.query(
      `insert into subscriptions (node_key, subscriber, run) values ($1, $2, $3) on conflict do nothing`,
      [node.key, subscriber, runOf(subscriber)],
    );
    await client.workflow.signalWithStart('node', {
      workflowId: `node/${node.key}`,
      taskQueue: Context.current().info.taskQueue,
      args: [node],
      signal: 'subscribe',
      signalArgs: [subscriber],
    });
  },

  async leaveNode({ key, subscriber }) {
    await pool.query('delete from subscriptions where node_key = $1 and subscriber = $2', [key, subscriber]);
    try {
      await client.workflow.getHandle(`node/${key}`).signal('leave', subscriber);
    } catch (error) {
      if (!(error instanceof WorkflowNotFoundError)) throw error; // it has ended: nothing to leave
    }
  },

  /**
   * The artifact of a node if it may be reused: the artifacts it was made from are still the current ones
   * (or are gone and not needed), and what lives in services is still there. One that fails is retired.
   */
  async findArtifact(ref: NodeRef) {
    const artifact = await store.find(ref.key);
    if (!artifact) return null;
    const manifest = await store.manifest(artifact);
    const current = await store.findAll(manifest.inputs.map(({ key }) => key));
    const stale = manifest.inputs.find(({ key, digest }) => current.has(key) && current.get(key)?.digest !== digest);
    const reason = stale
      ? `made from ${stale.node} ${stale.digest.slice(0, 12)}, which has been made anew`
      : (await verifyLive(artifact))
        ? null
        : 'what it describes is no longer in the services';
    if (reason === null) return artifact;
    await store.retire(artifact, reason);
    return null;
  },

  async readMetric({ artifact, metric }) {
    const { metrics } = await store.manifest(artifact);
    return metrics.findLast(({ name }) => name === metric)?.value ?? null;
  },

  nodeStarted: (node) => progress.started(node),

  /** Nothing of it is in flight any more, so nothing is reserved; who was told waits for it no longer. */
  async nodeEnded({ node, status, detail, subscribers = [] }) {
    await progress.ended(node.key, status, detail);
    await pool.query('update spend set open = false where node_key = $1 and open', [node.key]);
    if (status === 'paused') return;
    await pool.query('delete from subscriptions where node_key = $1 and subscriber = any($2)', [node.key, subscribers]);
  },

  setBudget: ({ run, bounds }) => setBounds(pool, run, bounds),
});

/** `arm/<run>/<arm>`. */
const runOf = (subscriber: string): string => subscriber.split('/')[1] ?? '';
