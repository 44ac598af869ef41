import { setTimeout as sleep } from 'node:timers/promises';
import { openDedup, type TrackingPayload } from '../activities/adapters/mlflow-delivery.ts';
import { enqueue } from '../activities/adapters/outbox.ts';
import type { Stack } from './open-stack.ts';
import type { RunRow } from './run-state.ts';

const PATIENCE_MS = 10_000;

/** Put a file beside the run's others in MLflow, through the outbox as they all go; what came of it, in words. */
export async function sendToMlflow(
  { pool, store }: Stack,
  { id, mlflow_url }: RunRow,
  { name, content }: { name: string; content: string | Buffer },
): Promise<string> {
  const { rows: opened } = await pool.query('select 1 from outbox where dedup = $1', [openDedup(id)]);
  if (opened.length === 0) return `MLflow: the run was never logged there, so neither is ${name}`;
  const blob = await store.putBlob(content);
  const dedup = `file ${id} ${name} ${blob}`;
  const payload: TrackingPayload = { op: 'file', path: id, name, blob };
  await enqueue(pool, dedup, id, payload);

  const deadline = Date.now() + PATIENCE_MS;
  while (Date.now() < deadline) {
    const { rows } = await pool.query<{ sent_at: Date | null; error: string | null }>(
      'select sent_at, error from outbox where dedup = $1',
      [dedup],
    );
    const [item] = rows;
    if (item?.error) return `MLflow: refused ${name}: ${item.error}`;
    if (item?.sent_at) return `MLflow: ${name} of ${mlflow_url ?? id}`;
    await sleep(200);
  }
  return `MLflow: ${name} waits in the outbox until a worker sends it`;
}
