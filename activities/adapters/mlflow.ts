/**
 * MLflow over its REST API 2.0: the few calls tracking needs, each safe to send twice.
 * Leaves out the model registry, traces and datasets.
 */
import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import type { Pool } from 'pg';
import { request } from 'undici';
import { ExpError } from '../../schemas/errors.ts';
import { withAdvisoryLock } from './advisory-lock.ts';
import type { KeyValue, LogBatch } from './mlflow-limits.ts';

export type MlflowStatus = 'RUNNING' | 'FINISHED' | 'FAILED' | 'KILLED';

export interface MlflowRun {
  run_id: string;
  experiment_id: string;
  status: MlflowStatus;
  artifact_uri: string;
  /** Milliseconds since the epoch. */
  start_time: number;
  tags: Record<string, string>;
}

export interface NewRun {
  experimentId: string;
  name: string;
  /** The tag a run is found by before it is created: one run per path. */
  path: string;
  tags: KeyValue[];
  parentRunId: string | null;
  startTime: number;
}

/** A run with this tag is the one for this path of ours: `<run>`, `<run>/<arm>`, `<run>/<arm>/<node>`. */
export const PATH_TAG = 'exp.path';

interface RunJson {
  info: {
    run_id: string;
    experiment_id: string;
    status: MlflowStatus;
    artifact_uri: string;
    start_time: number | string;
  };
  data?: { tags?: KeyValue[] };
}

/**
 * Errors: MLFLOW_UNAVAILABLE (no answer, 5xx, 408, 429, or a credential that is not accepted yet: try again later),
 * MLFLOW_NOT_FOUND, MLFLOW_REFUSED (the server will never take it).
 */
export class Mlflow {
  readonly #url: string;
  readonly #token: string | undefined;
  readonly #pool: Pool;
  readonly #timeoutMs: number;

  constructor({
    url,
    token,
    pool,
    timeoutMs = 30_000,
  }: { url: string; token?: string | undefined; pool: Pool; timeoutMs?: number }) {
    this.#url = url.replace(/\/+$/, '');
    this.#token = token;
    this.#pool = pool;
    this.#timeoutMs = timeoutMs;
  }

  /** Address of a run in MLflow's own pages. */
  runUrl(run: Pick<MlflowRun, 'experiment_id' | 'run_id'>): string {
    return `${this.#url}/#/experiments/${run.experiment_id}/runs/${run.run_id}`;
  }

  async ensureExperiment(name: string): Promise<string> {
    const found = await this.#findExperiment(name);
    if (found) return found;
    const tags = [{ key: 'mlflow.experimentKind', value: 'custom_model_development' }];
    try {
      return (await this.#post<{ experiment_id: string }>('experiments/create', { name, tags })).experiment_id;
    } catch (error) {
      const createdMeanwhile = await this.#findExperiment(name);
      if (createdMeanwhile) return createdMeanwhile;
      throw error;
    }
  }

  async #findExperiment(name: string): Promise<string | null> {
    const path = `experiments/get-by-name?experiment_name=${encodeURIComponent(name)}`;
    const found = await this.#get<{ experiment: { experiment_id: string; lifecycle_stage: string } }>(path).catch(
      nullIfNotFound,
    );
    if (!found) return null;
    const { experiment_id, lifecycle_stage } = found.experiment;
    if (lifecycle_stage === 'deleted') await this.#post('experiments/restore', { experiment_id });
    return experiment_id;
  }

  /** The run of a path. Creation is not idempotent, so it happens under a lock, after a search that found none. */
  ensureRun(wanted: NewRun): Promise<MlflowRun> {
    return withAdvisoryLock(this.#pool, `mlflow ${wanted.experimentId} ${wanted.path}`, async () => {
      const [found] = await this.searchRuns(wanted.experimentId, { [PATH_TAG]: wanted.path });
      if (found) return found;
      const tags = [{ key: PATH_TAG, value: wanted.path }, ...wanted.tags];
      if (wanted.parentRunId) tags.push({ key: 'mlflow.parentRunId', value: wanted.parentRunId });
      const { run } = await this.#post<{ run: RunJson }>('runs/create', {
        experiment_id: wanted.experimentId,
        run_name: wanted.name,
        start_time: wanted.startTime,
        tags,
      });
      return toRun(run);
    });
  }

  /** Active runs that carry all these tags, oldest first. */
  async searchRuns(experimentId: string, tags: Record<string, string>): Promise<MlflowRun[]> {
    const filter = Object.entries(tags)
      .map(([key, value]) => `tags.\`${key}\` = ${quoted(value)}`)
      .join(' and ');
    const runs: MlflowRun[] = [];
    let page_token: string | undefined;
    do {
      const page = await this.#post<{ runs?: RunJson[]; next_page_token?: string }>('runs/search', {
        experiment_ids: [experimentId],
        filter,
        max_results: 1000,
        order_by: ['attributes.start_time ASC', 'attributes.run_id ASC'],
        ...(page_token && { page_token }),
      });
      runs.push(...(page.runs ?? []).map(toRun));
      page_token = page.next_page_token || undefined;
    } while (page_token);
    return runs;
  }

  async getRun(runId: string): Promise<MlflowRun | null> {
    const found = await this.#get<{ run: RunJson }>(`runs/get?run_id=${runId}`).catch(nullIfNotFound);
    return found && toRun(found.run);
  }

  /** Same rows again change nothing: a point's identity is (name, step, timestamp, value), a param's and tag's its key. */
  async logBatch(runId: string, { metrics, params, tags }: LogBatch): Promise<void> {
    await this.#post('runs/log-batch', {
      run_id: runId,
      metrics: metrics.map(({ name, step, value, timestamp_ms }) => ({
        key: name,
        value,
        timestamp: timestamp_ms,
        step,
      })),
      params,
      tags,
    });
  }

  async setStatus(runId: string, status: MlflowStatus, endTime?: number): Promise<void> {
    await this.#post('runs/update', { run_id: runId, status, ...(endTime !== undefined && { end_time: endTime }) });
  }

  async deleteRun(runId: string): Promise<void> {
    await this.#post('runs/delete', { run_id: runId });
  }

  /** Put one file under a run, through the server's artifact proxy; the same path again replaces it. */
  async uploadArtifact(run: Pick<MlflowRun, 'run_id' | 'artifact_uri'>, path: string, file: string): Promise<void> {
    const root = /^mlflow-artifacts:(?:\/\/[^/]*)?\/(.+)$/.exec(run.artifact_uri)?.[1];
    if (root === undefined) {
      throw new ExpError(
        'MLFLOW_REFUSED',
        run.run_id,
        `its artifacts (${run.artifact_uri}) are not behind the server's proxy`,
      );
    }
    const encoded = `${root}/${path}`.split('/').map(encodeURIComponent).join('/');
    const { size } = await stat(file);
    await this.#send('PUT', `/api/2.0/mlflow-artifacts/artifacts/${encoded}`, createReadStream(file), {
      'content-type': 'application/octet-stream',
      'content-length': String(size),
    });
  }

  #get<T>(path: string): Promise<T> {
    return this.#send<T>('GET', `/api/2.0/mlflow/${path}`, null, {});
  }

  #post<T>(path: string, body: object): Promise<T> {
    return this.#send<T>('POST', `/api/2.0/mlflow/${path}`, JSON.stringify(body), {
      'content-type': 'application/json',
    });
  }

  async #send<T>(
    method: 'GET' | 'POST' | 'PUT',
    path: string,
    body: string | ReturnType<typeof createReadStream> | null,
    headers: Record<string, string>,
  ): Promise<T> {
    const at = `${this.#url}${path}`;
    let statusCode: number;
    let text: string;
    try {
      const response = await request(at, {
        method,
        body,
        headers: { ...headers, ...(this.#token && { authorization: `Bearer ${this.#token}` }) },
        headersTimeout: this.#timeoutMs,
        bodyTimeout: this.#timeoutMs,
        signal: AbortSignal.timeout(2 * this.#timeoutMs),
      });
      statusCode = response.statusCode;
      text = await response.body.text();
    } catch (cause) {
      throw new ExpError('MLFLOW_UNAVAILABLE', at, `no answer (${(cause as Error).message})`, { cause });
    }
    if (statusCode < 300) return (text === '' ? {} : JSON.parse(text)) as T;
    throw new ExpError(codeOf(statusCode), at, `HTTP ${statusCode}: ${messageOf(text)}`);
  }
}

function codeOf(statusCode: number): string {
  if (statusCode === 404) return 'MLFLOW_NOT_FOUND';
  const mayPass = statusCode >= 500 || [401, 403, 408, 429].includes(statusCode);
  return mayPass ? 'MLFLOW_UNAVAILABLE' : 'MLFLOW_REFUSED';
}

/** The server's own sentence, on one line and bounded, so that it can stand in a log. */
function messageOf(text: string): string {
  let message = text;
  try {
    message = (JSON.parse(text) as { message?: string }).message ?? text;
  } catch {
    // not JSON: a proxy's page, shown as it is
  }
  return message.replace(/[\p{Cc}\s]+/gu, ' ').slice(0, 300);
}

function nullIfNotFound(error: unknown): null {
  if (error instanceof ExpError && error.code === 'MLFLOW_NOT_FOUND') return null;
  throw error;
}

/** A value in MLflow's search language, which knows two kinds of quotes and no escape. */
function quoted(value: string): string {
  if (!value.includes("'")) return `'${value}'`;
  if (!value.includes('"')) return `"${value}"`;
  throw new ExpError('MLFLOW_REFUSED', value, 'a name with both kinds of quotes cannot be searched for');
}

function toRun({ info, data }: RunJson): MlflowRun {
  return {
    run_id: info.run_id,
    experiment_id: info.experiment_id,
    status: info.status,
    artifact_uri: info.artifact_uri,
    start_time: Number(info.start_time),
    tags: Object.fromEntries((data?.tags ?? []).map(({ key, value }) => [key, value])),
  };
}
