/** Ray's job REST API (Ray 2.60, `/api/jobs/`): submit once, look, read logs, stop. */
import { request as httpRequest } from 'node:http';
import { request as httpsRequest } from 'node:https';
import { text } from 'node:stream/consumers';
import { ExpError } from '../../schemas/errors.ts';

export type RayJobStatus = 'PENDING' | 'RUNNING' | 'STOPPED' | 'SUCCEEDED' | 'FAILED';

export interface RayJob {
  status: RayJobStatus;
  /** In Ray's words; of a failed job, the end of its log. */
  message: string;
}

export interface RaySubmission {
  /** Chosen by us: the same id is the same job, however often it is submitted. */
  id: string;
  /** Argument vector of the driver. */
  command: readonly string[];
  /** Of the driver and of all its workers. */
  env: Readonly<Record<string, string>>;
}

export const hasEnded = ({ status }: RayJob): boolean => status !== 'PENDING' && status !== 'RUNNING';

const TIMEOUT_MS = 30_000;

export class RayJobs {
  readonly #address: string;
  readonly #token: string | undefined;

  constructor({ address, token }: { address: string; token?: string }) {
    this.#address = address.replace(/\/+$/, '');
    this.#token = token;
  }

  /** Start a job unless there is one of this id: then that one is meant. Throws UNAVAILABLE when Ray does not answer. */
  async submit({ id, command, env }: RaySubmission): Promise<void> {
    const body = { submission_id: id, entrypoint: command.map(shellWord).join(' '), runtime_env: { env_vars: env } };
    const response = await this.#request('POST', '', body);
    if (isOk(response)) return;
    // A request whose answer was lost, or another worker's, came first. Ray answers both with 500 and a traceback.
    if (await this.find(id)) return;
    throw this.#refused(`submitting ${id}`, response);
  }

  /** Null when Ray knows no such job. */
  async find(id: string): Promise<RayJob | null> {
    const response = await this.#request('GET', id);
    if (response.status === 404) return null;
    if (!isOk(response)) throw this.#refused(`looking at ${id}`, response);
    const { status, message } = JSON.parse(response.body) as { status: RayJobStatus; message: string | null };
    return { status, message: message ?? '' };
  }

  /** All that a job has written so far; '' of a job whose log is not there yet, or no more. */
  async logs(id: string): Promise<string> {
    const response = await this.#request('GET', `${id}/logs`);
    return isOk(response) ? ((JSON.parse(response.body) as { logs: string | null }).logs ?? '') : '';
  }

  /** Ask a job to end; it ends a few seconds later. Of a job that has ended, or that Ray does not know, nothing. */
  async stop(id: string): Promise<void> {
    const response = await this.#request('POST', `${id}/stop`);
    if (!isOk(response) && response.status !== 404) throw this.#refused(`stopping ${id}`, response);
  }

  /** Not `fetch`: Ray takes its Sec-Fetch headers for a browser's, and a browser may not submit. */
  async #request(method: 'GET' | 'POST', path: string, body?: object): Promise<Answer> {
    const url = new URL(`${this.#address}/api/jobs/${path}`);
    try {
      return await new Promise<Answer>((resolve, reject) => {
        const request = (url.protocol === 'https:' ? httpsRequest : httpRequest)(url, {
          method,
          headers: {
            'content-type': 'application/json',
            ...(this.#token !== undefined && { authorization: `Bearer ${this.#token}` }),
          },
          signal: AbortSignal.timeout(TIMEOUT_MS),
        });
        request.on('error', reject);
        request.on('response', (response) => {
          text(response).then((answer) => resolve({ status: response.statusCode ?? 0, body: answer }), reject);
        });
        request.end(body && JSON.stringify(body));
      });
    } catch (cause) {
      throw new ExpError('UNAVAILABLE', this.#address, `Ray does not answer: ${(cause as Error).message}`, { cause });
    }
  }

  /** A refusal that a later call may not get is an outage; a wrong token or a wrong request stays one. */
  #refused(doing: string, { status, body }: Answer): ExpError {
    const said = body.trim().split('\n').at(-1) ?? '';
    const isOutage = status >= 500 || status === 429;
    return new ExpError(isOutage ? 'UNAVAILABLE' : 'RAY', this.#address, `${doing}: ${status} ${said.slice(0, 500)}`);
  }
}

interface Answer {
  status: number;
  body: string;
}

const isOk = ({ status }: Answer): boolean => status >= 200 && status < 300;

/** Ray runs an entry point through a shell. */
const shellWord = (word: string): string =>
  /^[\w./:@%+,=-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
