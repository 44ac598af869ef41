/** Carries out what the outbox holds: each payload is one call to MLflow, addressed by our path, not by MLflow's id. */
import type { Pool } from 'pg';
import { ExpError } from '../../schemas/errors.ts';
import type { Mlflow, MlflowRun, MlflowStatus } from './mlflow.ts';
import type { KeyValue, LogBatch } from './mlflow-limits.ts';

export interface OpenRun {
  op: 'open';
  path: string;
  /** Path of the run this one is nested in; it was opened before. */
  parent: string | null;
  experiment: string;
  name: string;
  tags: KeyValue[];
  start_ms: number;
}

/** Everything tracking sends. Times were fixed when the payload was written. */
export type TrackingPayload =
  | OpenRun
  | { op: 'log'; path: string; batch: LogBatch }
  | { op: 'file'; path: string; name: string; blob: string }
  | { op: 'status'; path: string; status: MlflowStatus; at_ms: number | null }
  /** The end of a submit: whatever of it is still open is closed, whatever is there twice is removed. */
  | { op: 'settle'; path: string; at_ms: number };

type Tracked = Pick<MlflowRun, 'run_id' | 'experiment_id' | 'artifact_uri'>;

export interface MlflowDeliveryDeps {
  pool: Pool;
  mlflow: Mlflow;
  store: { openBlob(sha256: string): Promise<string> };
}

/** The dedup key under which the payload that opens a path is stored. */
export const openDedup = (path: string): string => `open ${path}`;

/** Codes after which an item is given up: MLflow, or our own store, will never give another answer. */
export const REFUSED_CODES = ['MLFLOW_REFUSED', 'ARTIFACT_MISSING'];

export function createMlflowDelivery({ pool, mlflow, store }: MlflowDeliveryDeps) {
  const known = new Map<string, Tracked>();

  /** MLflow's run of a path: remembered, or looked up, or created as its stored `open` says. */
  async function resolve(path: string, runId: string): Promise<Tracked> {
    const tracked = known.get(path) ?? (await stored(path)) ?? (await create(path, runId));
    known.set(path, tracked);
    return tracked;
  }

  async function stored(path: string): Promise<Tracked | null> {
    const { rows } = await pool.query<{ mlflow_run_id: string; experiment_id: string; artifact_uri: string }>(
      'select mlflow_run_id, experiment_id, artifact_uri from tracked_runs where path = $1',
      [path],
    );
    return rows[0] ? { ...rows[0], run_id: rows[0].mlflow_run_id } : null;
  }

  async function create(path: string, runId: string): Promise<Tracked> {
    const { rows } = await pool.query<{ payload: OpenRun }>('select payload from outbox where dedup = $1', [
      openDedup(path),
    ]);
    const wanted = rows[0]?.payload;
    if (!wanted) throw new ExpError('MLFLOW_REFUSED', path, 'nothing says how this run is to be opened');
    const parentRunId = wanted.parent === null ? null : (await resolve(wanted.parent, runId)).run_id;
    const experimentId = await mlflow.ensureExperiment(wanted.experiment);
    const { name, tags, start_ms: startTime } = wanted;
    const run = await mlflow.ensureRun({ experimentId, name, path, tags, parentRunId, startTime });
    await pool.query(
      `insert into tracked_runs (path, run_id, mlflow_run_id, experiment_id, artifact_uri) values ($1, $2, $3, $4, $5)
       on conflict (path) do update set mlflow_run_id = $3, experiment_id = $4, artifact_uri = $5`,
      [path, runId, run.run_id, run.experiment_id, run.artifact_uri],
    );
    if (wanted.parent === null) {
      await pool.query('update runs set mlflow_url = $2 where id = $1', [runId, mlflow.runUrl(run)]);
    }
    return run;
  }

  async function apply(payload: TrackingPayload, runId: string): Promise<void> {
    const run = await resolve(payload.path, runId);
    switch (payload.op) {
      case 'open':
        return;
      case 'log':
        return mlflow.logBatch(run.run_id, payload.batch);
      case 'file':
        return mlflow.uploadArtifact(run, payload.name, await store.openBlob(payload.blob));
      case 'status':
        return mlflow.setStatus(run.run_id, payload.status, payload.at_ms ?? undefined);
      case 'settle':
        return settle(payload.path, run, runId, payload.at_ms);
      default:
        return payload satisfies never;
    }
  }

  /**
   * A creation whose answer was lost in a time-out may have happened after we looked for it, so a path can be
   * there twice: ours is the recorded one. A level that nobody ended was abandoned, and says so.
   */
  async function settle(path: string, top: Tracked, runId: string, atMs: number): Promise<void> {
    const { rows } = await pool.query<{ mlflow_run_id: string }>(
      'select mlflow_run_id from tracked_runs where run_id = $1',
      [runId],
    );
    const ours = new Set(rows.map((row) => row.mlflow_run_id));
    for (const run of await mlflow.searchRuns(top.experiment_id, { 'exp.run': path })) {
      if (!ours.has(run.run_id)) await mlflow.deleteRun(run.run_id);
      else if (run.status === 'RUNNING') await mlflow.setStatus(run.run_id, 'KILLED', atMs);
    }
  }

  /** MLflow has lost a run that it had (its store was replaced): forget what we knew and send all of it once more. */
  async function startOver(path: string, runId: string): Promise<void> {
    known.clear();
    await pool.query('delete from tracked_runs where run_id = $1', [runId]);
    await pool.query('update outbox set sent_at = null, error = null where run_id = $1', [runId]);
    throw new ExpError(
      'MLFLOW_UNAVAILABLE',
      path,
      'the server no longer has this run; sending it again from the start',
    );
  }

  return async function deliver(payload: TrackingPayload, runId: string): Promise<void> {
    try {
      await apply(payload, runId);
    } catch (error) {
      if (!(error instanceof ExpError) || error.code !== 'MLFLOW_NOT_FOUND') throw error;
      const tracked = known.get(payload.path);
      if (tracked && (await mlflow.getRun(tracked.run_id)) === null) await startOver(payload.path, runId);
      throw new ExpError('MLFLOW_REFUSED', payload.path, error.message, { cause: error });
    }
  };
}
