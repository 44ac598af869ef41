import type { Branches } from '../environments/deep-research/agent-loop.ts';
import { isRight, judgePrompt, readVerdict } from '../environments/deep-research/judge.ts';
import { ExpError } from '../schemas/errors.ts';
import type { RewardParameters, Unkeyed } from '../schemas/node-parameters.ts';
import type { Secret } from '../schemas/profile.ts';
import type { Task } from '../schemas/task.ts';
import type { Trajectory, Verdict } from '../schemas/trajectory.ts';
import { JudgeClient } from './adapters/judge-client.ts';
import type { NodeRef } from './index.ts';
import type { PlanReader } from './plan-reader.ts';

/** Grades one trajectory: what is said of its answer stands in each of its branches. */
export type Grade = (rows: Branches, task: Task, signal: AbortSignal) => Promise<Branches>;

/** Judges of nodes, by what their plans say; clients are kept, so that all batches of a worker share a judge's limit. */
export class Judges {
  readonly #plans: PlanReader;
  readonly #secret: (secret: Secret, at: string) => string;
  readonly #clients = new Map<string, JudgeClient>();

  constructor({ plans, secret }: { plans: PlanReader; secret: (secret: Secret, at: string) => string }) {
    this.#plans = plans;
    this.#secret = secret;
  }

  /** Leaves a trajectory as it is where no judge is asked. Throws SECRET_MISSING when its address is not known here. */
  async open(ref: NodeRef): Promise<Grade> {
    const { parameters, unkeyed } = await this.#plans.node(ref);
    const { judge } = (parameters as { reward: RewardParameters }).reward;
    if (judge === null) return async (rows) => rows;
    const at = (unkeyed as Unkeyed).judge;
    const client = this.client(at, ref.id);
    return async (rows, task, signal) => {
      const [{ answer, score, termination }] = rows;
      if (answer === null || termination === 'failed') return rows;
      // What matches to the letter needs no opinion.
      if (score.exact_match >= 1) return graded(rows, { correct: true, reply: 'exact match' });
      const prompt = judgePrompt(judge.prompt, { question: task.question, reference: referenceOf(task), answer });
      try {
        const verdict = await client.ask(judge, { prompt, read: readVerdict }, signal);
        return verdict === null ? unjudged(rows) : graded(rows, verdict);
      } catch (error) {
        const isDown = error instanceof ExpError && error.code === 'JUDGE_UNAVAILABLE';
        if (isDown && at?.on_failure === 'fail') return unjudged(rows);
        throw error;
      }
    };
  }

  /** Throws SECRET_MISSING when its address is not known here. `id`: the node that asks. */
  client(address: Unkeyed['judge'], id: string): JudgeClient {
    if (address === undefined) throw new ExpError('JUDGE', id, 'the plan does not say where the judge is');
    const { url, api_key, retries } = address;
    const name = JSON.stringify([url, api_key, retries]);
    const client =
      this.#clients.get(name) ??
      new JudgeClient({
        url: typeof url === 'string' ? url : this.#secret(url, 'judge.url'),
        ...(api_key && { apiKey: this.#secret(api_key, 'judge.api_key') }),
        retries,
      });
    this.#clients.set(name, client);
    return client;
  }
}

const referenceOf = ({ answer, aliases }: Task): string =>
  aliases.length === 0 ? answer : `${answer} (or: ${aliases.join('; ')})`;

const graded = (rows: Branches, judge: Verdict): Branches =>
  eachOf(rows, (row) => ({ ...row, judge, reward: { ...row.reward, outcome: isRight({ ...row, judge }) ? 1 : 0 } }));

/** No verdict is no zero: the trajectory is masked and counted. */
const unjudged = (rows: Branches): Branches =>
  eachOf(rows, (row) => ({ ...row, termination: 'failed', failure_class: 'judge' }));

const eachOf = ([first, ...others]: Branches, change: (row: Trajectory) => Trajectory): Branches => [
  change(first),
  ...others.map(change),
];
