/**
 * The agent loop for a sampler elsewhere: the loop runs here as it always does (tools, limits, rendering, reward), and
 * whoever asked for the trajectory samples its completions. Ids in, ids out: the sampler appends what it is told to, so
 * it needs no tokenizer, no chat template and no tools.
 *
 *   POST /trajectories      {trajectory_id, task_id, sample, temperature, top_p, turns}   begins, or goes on after `turns`
 *   POST /trajectories/ID   {turn, token_ids, logprobs, weight_version}                   a completion that was asked for
 *
 * Both answer {record, append, max_tokens, stop_token_ids}, which asks for a completion after the ids so far and those of
 * `append`; or {record, end}, with the reward; or {record, failed}, when something broke: no reward then. `record` is the
 * turn just finished. A server that does not know ID answers 404: the caller begins again with the records it has.
 */
import type { Task } from '../../schemas/task.ts';
import type { Trajectory } from '../../schemas/trajectory.ts';
import { BadRequest, type Route } from '../world/json-server.ts';
import {
  type Completion,
  RolloutFailure,
  runTrajectory,
  type SampleRequest,
  type TrajectoryInput,
  type TurnRecord,
} from './agent-loop.ts';

/** What every trajectory of a stage has in common. */
export type Stage = Pick<TrajectoryInput, 'world' | 'tokenizer' | 'tools' | 'limits' | 'reward' | 'checkpoint'>;

export type Reply = { record: TurnRecord | null } & (
  | { append: number[]; max_tokens: number; stop_token_ids: number[] }
  | { end: Pick<Trajectory, 'reward' | 'score' | 'termination'> }
  | { failed: { failure_class: string; message: string } }
);

/** A trajectory that nobody asked about for so long was given up: its sampler was ended. */
const IDLE_MS = 3_600_000;

export function trajectoryRoutes(stage: Stage, taskOf: (id: string) => Task | undefined): { trajectories: Route } {
  const running = new Map<string, RemoteTrajectory>();
  return {
    trajectories: async (body, id) => {
      if (id !== '') {
        const known = running.get(id);
        if (!known) throw new BadRequest(404, `there is no trajectory ${id}; begin it again`);
        return known.complete(field(body, 'turn', isNumber), completionOf(body));
      }
      for (const [name, { usedAt }] of running) if (Date.now() - usedAt > IDLE_MS) running.delete(name);
      const task_id = field(body, 'task_id', isString);
      const task = taskOf(task_id);
      if (!task) throw new BadRequest(400, `there is no task ${task_id} in this stage`);
      const trajectory = new RemoteTrajectory(stage, task, body);
      running.set(trajectory.id, trajectory);
      return trajectory.reply();
    },
  };
}

/** One trajectory whose completions come from elsewhere. */
class RemoteTrajectory {
  readonly id: string;
  usedAt = Date.now();
  /** The turn that is being asked for. */
  #turn: number;
  /** Ids that the sampler has. */
  #known = 0;
  #record: TurnRecord | null = null;
  #reply = deferred<Reply>();
  #completion = deferred<Completion>();

  constructor(stage: Stage, task: Task, body: Record<string, unknown>) {
    this.id = field(body, 'trajectory_id', isString);
    const turns = field(body, 'turns', Array.isArray) as TurnRecord[];
    this.#turn = turns.length;
    const running = runTrajectory({
      ...stage,
      contextManagement: 'none', // the sampler keeps one growing list of ids
      faults: null,
      trajectory_id: this.id,
      group_id: task.task_id,
      sample_index: field(body, 'sample', isNumber),
      task,
      sampling: {
        temperature: field(body, 'temperature', isNumber),
        top_p: field(body, 'top_p', isNumber),
        seed: 0, // the sampler draws its own random numbers
      },
      sample: (ids, request) => this.#ask(ids, request, stage),
      resumeFrom: turns,
      onTurn: async (record) => {
        this.#record = record;
      },
    });
    running.then(
      ([{ reward, score, termination }]) =>
        this.#reply.resolve({ record: this.#record, end: { reward, score, termination } }),
      (error: unknown) => this.#fail(error),
    );
  }

  reply(): Promise<Reply> {
    this.usedAt = Date.now();
    return this.#reply.promise;
  }

  /** A completion whose answer was lost is sent again: it is answered again, not taken again. */
  complete(turn: number, completion: Completion): Promise<Reply> {
    if (turn === this.#turn) {
      this.#turn += 1;
      this.#known += completion.token_ids.length;
      this.#reply = deferred();
      this.#completion.resolve(completion);
    } else if (turn !== this.#turn - 1) {
      throw new BadRequest(400, `trajectory ${this.id} waits for turn ${this.#turn}, not ${turn}`);
    }
    return this.reply();
  }

  #ask(ids: readonly number[], { maxTokens }: SampleRequest, { tokenizer }: Stage): Promise<Completion> {
    const append = ids.slice(this.#known);
    this.#known = ids.length;
    this.#completion = deferred();
    this.#reply.resolve({ record: this.#record, append, max_tokens: maxTokens, stop_token_ids: tokenizer.stopIds });
    return this.#completion.promise;
  }

  #fail(error: unknown): void {
    const failure_class = error instanceof RolloutFailure ? error.failureClass : 'tool';
    const message = error instanceof Error ? error.message : String(error);
    this.#reply.resolve({ record: null, failed: { failure_class, message } });
  }
}

function completionOf(body: Record<string, unknown>): Completion {
  const token_ids = field(body, 'token_ids', isNumbers);
  const logprobs = field(body, 'logprobs', isNumbers);
  if (token_ids.length === 0 || token_ids.length !== logprobs.length)
    throw new BadRequest(
      400,
      `a completion has ids and as many logprobs, not ${token_ids.length} and ${logprobs.length}`,
    );
  return { token_ids, logprobs, weight_version: field(body, 'weight_version', isString) };
}

const isString = (value: unknown): value is string => typeof value === 'string';
const isNumber = (value: unknown): value is number => typeof value === 'number';
const isNumbers = (value: unknown): value is number[] => Array.isArray(value) && value.every(isNumber);

function field<T>(body: Record<string, unknown>, name: string, is: (value: unknown) => value is T): T {
  const value = body[name];
  if (!is(value)) throw new BadRequest(400, `\`${name}\` is missing or of another type`);
  return value;
}

interface Deferred<T> {
  promise: Promise<T>;
  resolve(value: T): void;
}

function deferred<T>(): Deferred<T> {
  let resolve: Deferred<T>['resolve'] = () => undefined;
  const promise = new Promise<T>((settle) => {
    resolve = settle;
  });
  return { promise, resolve };
}
