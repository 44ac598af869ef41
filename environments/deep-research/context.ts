/**
 * What the next turn is conditioned on: the growing ids of one branch, how much room they leave, and what is done when
 * the next observation does not fit. Nothing that was conditioned on is ever changed: a full context is left as it is,
 * as a branch that is trained on its own, and the trajectory goes on in a new one.
 *
 * - `drop_observations`: the new branch is the prompt and all turns so far, actions as sampled, with a marker in the
 *   place of every observation but the newest.
 * - `summarize`: the policy is asked for a summary, which is the last action of the old branch and trained there; the
 *   new branch is the prompt, the summary as sampled, and the observation that did not fit.
 *
 * What a new branch repeats is its prompt: a sampled token is trained once, where it was sampled.
 */
import type { Limits, Observation, TurnRecord } from './agent-loop.ts';
import {
  isCut,
  renderClosing,
  renderDropped,
  renderForcedAnswer,
  renderObservation,
  renderSummaryRequest,
  type Tokenizer,
} from './prompt.ts';

export type ContextManagement = 'none' | 'drop_observations' | 'summarize';

export interface ConversationInput {
  tokenizer: Tokenizer;
  prompt: readonly number[];
  limits: Limits;
  management: ContextManagement;
}

/** An observation before it is known what it follows. */
export type Told = Omit<Observation, 'token_ids'> & { text: string };

export class Conversation {
  readonly records: TurnRecord[] = [];
  /** Of the branch that is growing. */
  ids: number[];
  isOver = false;
  readonly #input: ConversationInput;
  /** The longest message that may be put in the place of an observation, and the turn it asks for. */
  readonly #reserve: number;
  #forced: TurnRecord['termination'] = null;
  #pending: Observation | null = null;

  constructor(input: ConversationInput) {
    const { tokenizer, prompt, limits, management } = input;
    this.#input = input;
    this.ids = [...prompt];
    const messages = [renderForcedAnswer(tokenizer, { cut: true })];
    if (management === 'summarize') messages.push(renderSummaryRequest(tokenizer, { cut: true }));
    this.#reserve = Math.max(...messages.map(({ length }) => length)) + limits.maxTurnTokens;
  }

  get canSample(): boolean {
    const { maxTurnTokens, contextLength } = this.#input.limits;
    return this.ids.length + maxTurnTokens <= contextLength;
  }

  /** The observation that waits while the next turn writes a summary; null when that is an ordinary turn. */
  get pending(): Observation | null {
    return this.#pending;
  }

  /** Whether no turn follows the next one, whatever it says. */
  get nextIsLast(): boolean {
    return this.#forced !== null || (this.#pending === null && !this.#hasRoom(this.ids.length));
  }

  append(record: TurnRecord): void {
    this.isOver = record.observation === null;
    this.#forced = record.termination;
    this.#pending = record.pending ?? null;
    if (record.branch) this.ids = [...record.branch.token_ids];
    else this.ids.push(...record.token_ids);
    this.ids.push(...(record.observation?.token_ids ?? []));
    this.records.push(record);
  }

  /** The limit that stands in the way of appending so many tokens after an action and sampling on. */
  limitAfter(
    action: readonly number[],
    tokens: number,
    { turn, isCutOff }: { turn: number; isCutOff: boolean },
  ): 'max_turns' | 'context' | 'cutoff' | null {
    if (turn + 1 >= this.#input.limits.maxTurns) return 'max_turns';
    if (isCutOff) return 'cutoff';
    return this.#hasRoom(this.ids.length + action.length + tokens) ? null : 'context';
  }

  /** The observation as it follows an action. */
  observe(action: readonly number[], { text, ...told }: Told): Observation {
    const { tokenizer } = this.#input;
    return { ...told, token_ids: renderObservation(tokenizer, text, { cut: isCut(tokenizer, action) }) };
  }

  forcedAnswer(action: readonly number[]): Observation {
    const { tokenizer } = this.#input;
    return asked('forced', renderForcedAnswer(tokenizer, { cut: isCut(tokenizer, action) }));
  }

  /** What is recorded of a turn whose observation does not fit; null when nothing can be left out to make it fit. */
  makeRoom(
    action: readonly number[],
    told: Told,
    turn: number,
  ): Pick<TurnRecord, 'observation' | 'branch' | 'pending'> | null {
    switch (this.#input.management) {
      case 'none':
        return null;
      case 'drop_observations': {
        const observation = this.observe(action, told);
        const token_ids = this.#withoutObservations(action);
        return this.#hasRoom(token_ids.length + observation.token_ids.length)
          ? { observation, branch: { token_ids } }
          : null;
      }
      case 'summarize':
        return this.#askForSummary(action, told, turn);
    }
  }

  /** After the summary: the new branch, and in it the observation that had to wait, or the forced answer. */
  afterSummary(
    summary: readonly number[],
    { isCutOff }: { isCutOff: boolean },
  ): Pick<TurnRecord, 'observation' | 'branch' | 'termination'> {
    const { tokenizer, prompt } = this.#input;
    const branch = { token_ids: [...prompt, ...summary] };
    if (isCutOff || this.#pending === null)
      return { branch, observation: this.forcedAnswer(summary), termination: 'cutoff' };
    const closing = isCut(tokenizer, summary) ? renderClosing(tokenizer) : [];
    const observation = { ...this.#pending, token_ids: [...closing, ...this.#pending.token_ids] };
    return { branch, observation, termination: null };
  }

  /** The prompt and all actions as sampled; an observation that is no longer than the marker stays. */
  #withoutObservations(action: readonly number[]): number[] {
    const { tokenizer, prompt } = this.#input;
    const turns = this.records.flatMap(({ token_ids, observation }) => {
      const marker = renderDropped(tokenizer, { cut: isCut(tokenizer, token_ids) });
      const kept = observation?.token_ids ?? [];
      return [...token_ids, ...(kept.length > marker.length ? marker : kept)];
    });
    return [...prompt, ...turns, ...action];
  }

  /** The summary is a turn, and an ordinary one must be left after it: else the answer is the better last word. */
  #askForSummary(
    action: readonly number[],
    told: Told,
    turn: number,
  ): Pick<TurnRecord, 'observation' | 'pending'> | null {
    const { tokenizer, prompt, limits } = this.#input;
    const { text, ...rest } = told;
    const pending = { ...rest, token_ids: renderObservation(tokenizer, text) };
    const longest = prompt.length + limits.maxTurnTokens + renderClosing(tokenizer).length + pending.token_ids.length;
    if (turn + 2 >= limits.maxTurns || !this.#hasRoom(longest)) return null;
    return {
      observation: asked('summary', renderSummaryRequest(tokenizer, { cut: isCut(tokenizer, action) })),
      pending,
    };
  }

  /** A turn that is not the last needs room for itself and for the message and turn that may follow it. */
  #hasRoom(tokens: number): boolean {
    const { maxTurnTokens, contextLength } = this.#input.limits;
    return tokens + maxTurnTokens + this.#reserve <= contextLength;
  }
}

/** A message of ours in the place of an observation. */
function asked(status: 'forced' | 'summary', token_ids: number[]): Observation {
  return { token_ids, tool: null, status, latency_ms: 0, denied: 0 };
}
