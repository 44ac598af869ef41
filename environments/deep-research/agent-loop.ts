/**
 * ReAct, token in and token out: one growing list of ids, to which sampled ids are appended as sampled and each
 * observation is tokenised once. Nothing is tokenised again, so what is trained is what was sampled.
 *
 * Knows no engine and no journal: `sample` completes ids, `onTurn` makes a turn durable. Left out: context
 * management. A trajectory is one branch; a manager of context would start the next branch where `force` is now.
 */
import { createHash } from 'node:crypto';
import type { Task } from '../../schemas/task.ts';
import type { FailureClass, Message, Span, Termination, Trajectory } from '../../schemas/trajectory.ts';
import type { World } from '../environment.ts';
import { type Action, parseAction } from './parse.ts';
import {
  actionPrefix,
  renderForcedAnswer,
  renderObservation,
  renderPrompt,
  type Tokenizer,
  type ToolName,
} from './prompt.ts';
import { type RewardRule, reward, type ScoredTurn, score } from './reward.ts';
import { runTool } from './tools.ts';

export interface SampleRequest {
  maxTokens: number;
  temperature: number;
  topP: number;
  /** Of this turn: a turn that is sampled again is the same request. */
  seed: number;
}

export interface Completion {
  /** As sampled; the stop token, where there is one, is the last. */
  token_ids: number[];
  /** In nats, after temperature; one per id. */
  logprobs: number[];
  /** Digest of the weights that sampled it. */
  weight_version: string;
}

export type Sample = (ids: readonly number[], request: SampleRequest) => Promise<Completion>;

export interface Limits {
  /** Completions before the forced answer. */
  maxTurns: number;
  maxTurnTokens: number;
  observationTokens: number;
  searchResults: number;
  /** Of the whole sequence, the forced answer included. */
  contextLength: number;
}

/** One finished turn: the delta that, appended to what came before, is the trajectory. */
export interface TurnRecord {
  turn: number;
  token_ids: number[];
  logprobs: number[];
  tool: string | null;
  status: 'ok' | 'malformed';
  latency_ms: number;
  weight_version: string;
  /** In the reference answer before this turn, in nats; null or absent where it was not measured. */
  belief?: number | null;
  /** What was appended after the action: an observation, the forced-answer message, or nothing. */
  observation: ({ token_ids: number[] } & Pick<Span, 'tool' | 'status' | 'latency_ms' | 'denied'>) | null;
  /** Set by the turn at which a limit was met (the forced turn follows), and by an answer. */
  termination: Exclude<Termination, 'failed'> | null;
}

export interface TrajectoryInput {
  trajectory_id: string;
  group_id: string;
  /** Index within the group. */
  sample_index: number;
  checkpoint: string;
  task: Task;
  world: World;
  sample: Sample;
  tokenizer: Tokenizer;
  tools: readonly ToolName[];
  limits: Limits;
  sampling: { temperature: number; top_p: number; seed: number };
  reward: RewardRule;
  /** Measures the belief in the reference answer before a turn; null where none is wanted. */
  believe?: (ids: readonly number[], turn: number, toolBefore: string | null) => Promise<number> | null;
  /** Finished turns of an attempt that was interrupted, in order. */
  resumeFrom?: readonly TurnRecord[];
  /** Awaited before the next turn begins. */
  onTurn?: (record: TurnRecord) => Promise<void>;
  /** True once the rollouts of this step shall come to an end. */
  isCutOff?: () => boolean;
  signal?: AbortSignal;
}

/** Infrastructure broke: never a wrong answer. The class says what. */
export class RolloutFailure extends Error {
  override readonly name = 'RolloutFailure';
  readonly failureClass: FailureClass;

  constructor(failureClass: FailureClass, message: string, options?: ErrorOptions) {
    super(message, options);
    this.failureClass = failureClass;
  }
}

/**
 * Run one trajectory to its end. Malformed output is data; an outage of the engine or the world throws
 * RolloutFailure, after which a call with the turns recorded so far goes on with identical ids.
 */
export async function runTrajectory(input: TrajectoryInput): Promise<Trajectory> {
  const { tokenizer, limits, tools } = input;
  const state = new Conversation(tokenizer, renderPrompt(tokenizer, { question: input.task.question, tools }), limits);
  for (const record of input.resumeFrom ?? []) state.append(record);

  while (!state.isOver) {
    input.signal?.throwIfAborted();
    if (!state.canSample)
      throw new RolloutFailure(
        'budget',
        `the prompt of ${state.ids.length} tokens leaves no room for an answer within ${limits.contextLength}`,
      );
    const record = await takeBelievedTurn(input, state);
    await input.onTurn?.(record);
    state.append(record);
  }
  return assembleTrajectory(input, state.records, null);
}

/** The record a trajectory leaves; with a failure class, of one that could not be finished. */
export function assembleTrajectory(
  input: TrajectoryInput,
  records: readonly TurnRecord[],
  failure: FailureClass | null,
): Trajectory {
  const { tokenizer, task, tools, sampling, checkpoint } = input;
  const prompt = renderPrompt(tokenizer, { question: task.question, tools });
  const token_ids = [...prompt];
  const mask = prompt.map(() => 0);
  const logprobs = prompt.map(() => 0);
  const span = {
    turn: 0,
    tool: null,
    status: 'ok',
    latency_ms: 0,
    cached: false,
    denied: 0,
    weight_version: '',
  } as const;
  const spans: Span[] = [{ ...span, kind: 'prompt', start: 0, end: prompt.length }];
  const messages: Message[] = [{ role: 'user', content: task.question }];
  const turns: ScoredTurn[] = [];

  for (const record of records) {
    const { turn, observation } = record;
    const start = token_ids.length;
    token_ids.push(...record.token_ids);
    mask.push(...record.token_ids.map(() => 1));
    logprobs.push(...record.logprobs);
    const { tool, status, latency_ms, weight_version } = record;
    spans.push({
      ...span,
      turn,
      kind: 'action',
      start,
      end: token_ids.length,
      tool,
      status,
      latency_ms,
      weight_version,
    });
    messages.push({ role: 'assistant', content: displayed(tokenizer, record.token_ids) });
    const observed = observation === null ? '' : displayed(tokenizer, observation.token_ids);
    turns.push({ malformed: status === 'malformed', observation: observed });
    if (observation === null) continue;

    const observationStart = token_ids.length;
    token_ids.push(...observation.token_ids);
    mask.push(...observation.token_ids.map(() => 0));
    logprobs.push(...observation.token_ids.map(() => 0));
    spans.push({
      ...span,
      turn,
      kind: 'observation',
      start: observationStart,
      end: token_ids.length,
      tool: observation.tool,
      status: observation.status,
      latency_ms: observation.latency_ms,
      denied: observation.denied,
    });
    messages.push({ role: 'tool', content: observed });
  }

  const last = records.at(-1);
  const action = last === undefined ? undefined : readAction(tokenizer, last.token_ids, tools);
  const answer = action?.kind === 'answer' ? action.answer : null;
  const termination =
    failure === null ? (records.findLast((record) => record.termination !== null)?.termination ?? 'failed') : 'failed';
  const graded = score(answer, turns, task);
  return {
    trajectory_id: input.trajectory_id,
    task_id: task.task_id,
    group_id: input.group_id,
    sample: input.sample_index,
    branch: 0,
    checkpoint,
    sampling,
    token_ids,
    mask,
    logprobs,
    spans,
    reward: reward(graded, turns, termination, input.reward),
    score: graded,
    judge: null,
    advantages: [],
    beliefs: records.some(({ belief }) => belief !== undefined) ? records.map(({ belief }) => belief ?? null) : [],
    termination,
    failure_class: failure,
    answer: answer === null ? null : printable(answer),
    messages,
  };
}

/** Seed of one turn: a pure function of the trajectory's seed, so a repeated turn asks for the same thing. */
export function turnSeed(seed: number, turn: number): number {
  return createHash('sha256').update(`${seed}/${turn}`).digest().readUInt32BE(0);
}

/** What the policy meant by sampled ids; a completion without a stop token was cut and counts as malformed. */
export function readAction(tokenizer: Tokenizer, ids: readonly number[], tools: readonly ToolName[]): Action {
  if (isCut(tokenizer, ids)) return { kind: 'malformed', reason: 'it was cut off at the limit of tokens' };
  return parseAction(actionPrefix(tokenizer) + tokenizer.decode(ids.slice(0, -1)), tools);
}

/** The growing list of ids, and what of it decides how to go on. */
class Conversation {
  readonly ids: number[];
  readonly records: TurnRecord[] = [];
  readonly #tokenizer: Tokenizer;
  readonly #limits: Limits;
  /** The longest forced-answer message and the turn it asks for. */
  readonly #reserve: number;
  #forced: Exclude<Termination, 'failed'> | null = null;
  isOver = false;

  constructor(tokenizer: Tokenizer, prompt: number[], limits: Limits) {
    this.ids = [...prompt];
    this.#tokenizer = tokenizer;
    this.#limits = limits;
    this.#reserve = renderForcedAnswer(tokenizer, { cut: true }).length + limits.maxTurnTokens;
  }

  get canSample(): boolean {
    return this.ids.length + this.#limits.maxTurnTokens <= this.#limits.contextLength;
  }

  /** Whether no turn follows the next one, whatever it says. */
  get nextIsLast(): boolean {
    return this.#forced !== null || !this.#hasRoomAfter(0);
  }

  /** The limit that stands in the way of appending an observation and sampling on. */
  limitBefore(
    observation: readonly number[],
    turn: number,
    cutOff: boolean,
    action: readonly number[],
  ): 'max_turns' | 'context' | 'cutoff' | null {
    if (turn + 1 >= this.#limits.maxTurns) return 'max_turns';
    if (cutOff) return 'cutoff';
    return this.#hasRoomAfter(action.length + observation.length) ? null : 'context';
  }

  append(record: TurnRecord): void {
    this.isOver = record.observation === null;
    this.#forced = record.termination;
    this.ids.push(...record.token_ids, ...(record.observation?.token_ids ?? []));
    this.records.push(record);
  }

  forcedAnswer(action: readonly number[]): number[] {
    return renderForcedAnswer(this.#tokenizer, { cut: isCut(this.#tokenizer, action) });
  }

  /** A turn that is not the last needs room for itself and for the forced answer that may follow it. */
  #hasRoomAfter(tokens: number): boolean {
    return this.ids.length + tokens + this.#limits.maxTurnTokens + this.#reserve <= this.#limits.contextLength;
  }
}

/** The belief before a turn is measured while the turn is sampled and its tool runs; both are in its record. */
async function takeBelievedTurn(input: TrajectoryInput, state: Conversation): Promise<TurnRecord> {
  const measured = input.believe?.([...state.ids], state.records.length, state.records.at(-1)?.tool ?? null) ?? null;
  measured?.catch(() => undefined); // awaited below, unless the turn fails first
  const record = await takeTurn(input, state);
  return measured === null ? record : { ...record, belief: await orFailure('engine', input, () => measured) };
}

async function takeTurn(input: TrajectoryInput, state: Conversation): Promise<TurnRecord> {
  const { tokenizer, limits, sampling, tools } = input;
  const turn = state.records.length;
  const started = performance.now();
  const completion = await orFailure('engine', input, () =>
    input.sample(state.ids, {
      maxTokens: limits.maxTurnTokens,
      temperature: sampling.temperature,
      topP: sampling.top_p,
      seed: turnSeed(sampling.seed, turn),
    }),
  );
  const latency_ms = performance.now() - started;
  const action = readAction(tokenizer, completion.token_ids, tools);
  const isLast = state.nextIsLast;
  const isMalformed = action.kind === 'malformed' || (isLast && action.kind === 'tool_call');
  const record = {
    turn,
    token_ids: completion.token_ids,
    logprobs: completion.logprobs,
    tool: isMalformed ? null : action.kind === 'answer' ? 'answer' : action.tool,
    status: isMalformed ? ('malformed' as const) : ('ok' as const),
    latency_ms,
    weight_version: completion.weight_version,
  };

  const forcedBy = state.records.at(-1)?.termination ?? null;
  if (isLast)
    return { ...record, observation: null, termination: forcedBy ?? (action.kind === 'answer' ? 'answer' : 'context') };
  if (action.kind === 'answer') return { ...record, observation: null, termination: 'answer' };
  return { ...record, ...(await observe(input, state, action, completion.token_ids, turn)) };
}

/** Run the tool, and append what it said, or in its place the forced-answer message when a limit is met. */
async function observe(
  input: TrajectoryInput,
  state: Conversation,
  action: Exclude<Action, { kind: 'answer' }>,
  actionIds: readonly number[],
  turn: number,
): Promise<Pick<TurnRecord, 'observation' | 'termination'>> {
  const { tokenizer, limits, tools } = input;
  const cutOff = input.isCutOff?.() ?? false;
  const force = (termination: Exclude<Termination, 'failed'>) => ({
    observation: {
      token_ids: state.forcedAnswer(actionIds),
      tool: null,
      status: 'forced' as const,
      latency_ms: 0,
      denied: 0,
    },
    termination,
  });
  // Nobody would read the observation: the tool is not even run.
  const limit = state.limitBefore([], turn, cutOff, actionIds);
  if (limit !== null) return force(limit);

  const cut = isCut(tokenizer, actionIds);
  const { text, ...outcome } =
    action.kind === 'malformed'
      ? {
          text: malformedText(action.reason, tools),
          tool: null,
          status: 'malformed' as const,
          latency_ms: 0,
          denied: 0,
        }
      : await orFailure('tool', input, () =>
          runTool(input.world, action, {
            tokenizer,
            observationTokens: limits.observationTokens,
            searchResults: limits.searchResults,
            denyUrls: input.task.deny_urls,
          }),
        );
  const token_ids = renderObservation(tokenizer, text, { cut });
  const full = state.limitBefore(token_ids, turn, false, actionIds);
  if (full !== null) return force(full);
  return {
    observation: {
      token_ids,
      tool: outcome.tool,
      status: outcome.status,
      latency_ms: outcome.latency_ms,
      denied: outcome.denied,
    },
    termination: null,
  };
}

function malformedText(reason: string, tools: readonly ToolName[]): string {
  return `Your response was malformed: ${reason}. Write your thought in think tags, then ${tools.length === 0 ? '' : `one tool call (${tools.join(' or ')}) or `}one answer, and nothing else.`;
}

function isCut(tokenizer: Tokenizer, ids: readonly number[]): boolean {
  return !tokenizer.stopIds.includes(ids.at(-1) ?? -1);
}

/** What is thrown while the whole is being cancelled is a cancellation, not a failure. */
async function orFailure<T>(
  failureClass: FailureClass,
  { signal, trajectory_id }: TrajectoryInput,
  work: () => Promise<T>,
): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    if (signal?.aborted || cause instanceof RolloutFailure) throw cause;
    throw new RolloutFailure(
      failureClass,
      `${trajectory_id}: ${cause instanceof Error ? cause.message : String(cause)}`,
      { cause },
    );
  }
}

function displayed(tokenizer: Tokenizer, ids: readonly number[]): string {
  return printable(tokenizer.decode(ids));
}

/** Parquet and PostgreSQL text hold neither NUL nor halves of a surrogate pair. */
function printable(text: string): string {
  return Buffer.from(text.replaceAll('\0', '\uFFFD')).toString();
}
