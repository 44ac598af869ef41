/**
 * ReAct, token in and token out: a growing list of ids, to which sampled ids are appended as sampled and each
 * observation is tokenised once. Nothing is tokenised again, so what is trained is what was sampled.
 *
 * Knows no engine and no journal: `sample` completes ids, `onTurn` makes a turn durable. What is done when the context
 * is full is context.ts's business.
 */
import { createHash } from 'node:crypto';
import type { Task } from '../../schemas/task.ts';
import type { FailureClass, Span, Termination, Trajectory } from '../../schemas/trajectory.ts';
import type { World } from '../environment.ts';
import { type ContextManagement, Conversation, type Told } from './context.ts';
import { drawFault, type FaultShares } from './faults.ts';
import { type Action, parseAction } from './parse.ts';
import { actionPrefix, isCut, renderPrompt, type Tokenizer, type ToolName } from './prompt.ts';
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
  /** Completions before the forced answer, summaries and all branches included. */
  maxTurns: number;
  maxTurnTokens: number;
  observationTokens: number;
  searchResults: number;
  /** Of the whole sequence (one branch), the forced answer included. */
  contextLength: number;
}

/** What was appended after an action: an observation, or a message of ours in its place. */
export type Observation = { token_ids: number[] } & Pick<Span, 'tool' | 'status' | 'latency_ms' | 'denied'>;

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
  /** Null after the last turn. */
  observation: Observation | null;
  /** Where a new branch begins after this turn: its ids up to the observation, which follows there. */
  branch?: { token_ids: number[] };
  /** The observation that waits for the summary which the next turn writes. */
  pending?: Observation;
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
  contextManagement: ContextManagement;
  /** Declared faults of tools; null for none. */
  faults: FaultShares | null;
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

/** The rows of one trajectory, in order: one, unless the context was managed. */
export type Branches = [Trajectory, ...Trajectory[]];

/**
 * Run one trajectory to its end. Malformed output is data; an outage of the engine or the world throws
 * RolloutFailure, after which a call with the turns recorded so far goes on with identical ids.
 */
export async function runTrajectory(input: TrajectoryInput): Promise<Branches> {
  const { tokenizer, limits, tools, contextManagement: management } = input;
  const prompt = renderPrompt(tokenizer, { question: input.task.question, tools });
  const state = new Conversation({ tokenizer, prompt, limits, management });
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

/** The rows a trajectory leaves; with a failure class, of one that could not be finished. */
export function assembleTrajectory(
  input: TrajectoryInput,
  records: readonly TurnRecord[],
  failure: FailureClass | null,
): Branches {
  const { tokenizer, task, tools, sampling, checkpoint } = input;
  const branches = branchesOf(input, records);
  const turns: ScoredTurn[] = records.map(({ status, observation }) => ({
    malformed: status === 'malformed',
    observation: observation === null ? '' : displayed(tokenizer, observation.token_ids),
  }));
  const last = records.at(-1);
  const action = last === undefined ? undefined : readAction(tokenizer, last.token_ids, tools);
  const answer = action?.kind === 'answer' ? action.answer : null;
  const termination =
    failure === null ? (records.findLast((record) => record.termination !== null)?.termination ?? 'failed') : 'failed';
  const graded = score(answer, turns, task);
  const rewarded = reward(graded, turns, termination, input.reward);
  const isMeasured = records.some(({ belief }) => belief !== undefined);
  const beliefs = isMeasured ? records.map(({ belief }) => belief ?? null) : [];
  const rows = branches.map(({ firstTurn, endTurn, ...own }, branch) => ({
    trajectory_id: input.trajectory_id,
    task_id: task.task_id,
    group_id: input.group_id,
    sample: input.sample_index,
    branch,
    checkpoint,
    sampling,
    ...own,
    reward: { outcome: rewarded.outcome, turns: rewarded.turns.slice(firstTurn, endTurn) },
    score: graded,
    judge: null,
    advantages: [],
    beliefs: beliefs.slice(firstTurn, endTurn),
    termination,
    failure_class: failure,
    answer: answer === null ? null : printable(answer),
  }));
  return rows as unknown as Branches;
}

/** What is a branch's own. */
type Branch = Pick<Trajectory, 'token_ids' | 'mask' | 'logprobs' | 'spans' | 'messages'> & {
  firstTurn: number;
  endTurn: number;
};

const NO_SPAN = { tool: null, status: 'ok', latency_ms: 0, cached: false, denied: 0, weight_version: '' } as const;

function branchesOf({ tokenizer, task, tools }: TrajectoryInput, records: readonly TurnRecord[]): Branch[] {
  const begin = (prompt: readonly number[], firstTurn: number): Branch => {
    const empty = { token_ids: [], mask: [], logprobs: [], spans: [], firstTurn, endTurn: firstTurn };
    const branch: Branch = { ...empty, messages: [{ role: 'user', content: task.question }] };
    extend(branch, prompt, null, { ...NO_SPAN, turn: firstTurn, kind: 'prompt' });
    return branch;
  };
  let growing = begin(renderPrompt(tokenizer, { question: task.question, tools }), 0);
  const branches = [growing];
  for (const { turn, token_ids, logprobs, tool, status, latency_ms, weight_version, ...after } of records) {
    extend(growing, token_ids, logprobs, {
      ...NO_SPAN,
      turn,
      kind: 'action',
      tool,
      status,
      latency_ms,
      weight_version,
    });
    growing.endTurn = turn + 1;
    growing.messages.push({ role: 'assistant', content: displayed(tokenizer, token_ids) });
    if (after.branch) {
      growing = begin(after.branch.token_ids, turn + 1);
      branches.push(growing);
    }
    if (after.observation === null) continue;
    const { token_ids: observed, ...told } = after.observation;
    extend(growing, observed, null, { ...NO_SPAN, turn, kind: 'observation', ...told });
    growing.messages.push({ role: 'tool', content: displayed(tokenizer, observed) });
  }
  return branches;
}

/** Append ids to a branch; those with logprobs were sampled. */
function extend(
  branch: Branch,
  ids: readonly number[],
  logprobs: readonly number[] | null,
  span: Omit<Span, 'start' | 'end'>,
): void {
  const start = branch.token_ids.length;
  for (const [index, id] of ids.entries()) {
    branch.token_ids.push(id);
    branch.mask.push(logprobs === null ? 0 : 1);
    branch.logprobs.push(logprobs?.[index] ?? 0);
  }
  branch.spans.push({ ...span, start, end: branch.token_ids.length });
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
  const { token_ids, logprobs, weight_version } = completion;
  const action = readAction(tokenizer, token_ids, tools);
  const isLast = state.nextIsLast;
  const isSummary = state.pending !== null && action.kind !== 'answer';
  const isMalformed = isSummary
    ? isNoSummary(tokenizer, token_ids, action)
    : action.kind === 'malformed' || (isLast && action.kind === 'tool_call');
  const record = {
    turn,
    token_ids,
    logprobs,
    tool: isMalformed ? null : isSummary ? 'summary' : toolOf(action),
    status: isMalformed ? ('malformed' as const) : ('ok' as const),
    latency_ms,
    weight_version,
  };

  const forcedBy = state.records.at(-1)?.termination ?? null;
  if (isLast)
    return { ...record, observation: null, termination: forcedBy ?? (action.kind === 'answer' ? 'answer' : 'context') };
  if (action.kind === 'answer') return { ...record, observation: null, termination: 'answer' };
  if (isSummary) return { ...record, ...state.afterSummary(token_ids, { isCutOff: input.isCutOff?.() ?? false }) };
  return { ...record, ...(await observe(input, state, action, token_ids, turn)) };
}

/** A summary may be written in any way, but it has to be whole, say something, and not be a call that nobody runs. */
function isNoSummary(tokenizer: Tokenizer, ids: readonly number[], action: Action): boolean {
  return action.kind === 'tool_call' || isCut(tokenizer, ids) || tokenizer.decode(ids.slice(0, -1)).trim() === '';
}

function toolOf(action: Action): string | null {
  return action.kind === 'tool_call' ? action.tool : action.kind === 'answer' ? 'answer' : null;
}

/** Run the tool, and append what it said; make room for it, or put the forced-answer message in its place, at a limit. */
async function observe(
  input: TrajectoryInput,
  state: Conversation,
  action: Exclude<Action, { kind: 'answer' }>,
  actionIds: readonly number[],
  turn: number,
): Promise<Pick<TurnRecord, 'observation' | 'branch' | 'pending' | 'termination'>> {
  const force = (termination: Exclude<Termination, 'failed'>) => ({
    observation: state.forcedAnswer(actionIds),
    termination,
  });
  // Nobody would read the observation: the tool is not even run.
  const isCutOff = (): boolean => input.isCutOff?.() ?? false;
  const limit = state.limitAfter(actionIds, 0, { turn, isCutOff: isCutOff() });
  if (limit !== null && (limit !== 'context' || state.makeRoom(actionIds, NOTHING, turn) === null)) return force(limit);

  const told = await tell(input, action, turn);
  const observation = state.observe(actionIds, told);
  const full = state.limitAfter(actionIds, observation.token_ids.length, { turn, isCutOff: isCutOff() });
  if (full === null) return { observation, termination: null };
  if (full === 'cutoff') return force(full); // it came while the tool ran
  const room = state.makeRoom(actionIds, told, turn);
  return room === null ? force(full) : { ...room, termination: null };
}

const NOTHING: Told = { text: '', tool: null, status: 'ok', latency_ms: 0, denied: 0 };

/** What an action is told in return. */
async function tell(input: TrajectoryInput, action: Exclude<Action, { kind: 'answer' }>, turn: number): Promise<Told> {
  const { tokenizer, limits, tools, faults, sampling } = input;
  if (action.kind === 'malformed')
    return { ...NOTHING, text: malformedText(action.reason, tools), status: 'malformed' };
  const { text, tool, status, latency_ms, denied } = await orFailure('tool', input, () =>
    runTool(input.world, action, {
      tokenizer,
      observationTokens: limits.observationTokens,
      searchResults: limits.searchResults,
      denyUrls: input.task.deny_urls,
      fault: drawFault(faults, { tool: action.tool, seed: sampling.seed, turn }),
    }),
  );
  return { text, tool, status, latency_ms, denied };
}

function malformedText(reason: string, tools: readonly ToolName[]): string {
  return `Your response was malformed: ${reason}. Write your thought in think tags, then ${tools.length === 0 ? '' : `one tool call (${tools.join(' or ')}) or `}one answer, and nothing else.`;
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
