/** What a policy's belief in the reference answer is, for whoever computes the probabilities. */
import type { IgpoSettings } from '../../schemas/algorithms.ts';
import { isMeasured } from './advantages-igpo.ts';
import { type PseudoAnswer, renderPseudoAnswer, type Tokenizer } from './prompt.ts';

/** Which beliefs are wanted. */
export type BeliefScope = Pick<IgpoSettings, 'scope' | 'every'>;
/** Log-probabilities of the ids from a position on, in nats; what is before it need not be scored. */
export type ScorePrompt = (ids: readonly number[], from: number) => Promise<number[]>;

/** Measures the belief before a turn with a policy that scores prompts; null where none is wanted. */
export function believer(t: Tokenizer, answer: string, wanted: BeliefScope, score: ScorePrompt) {
  const pseudo = renderPseudoAnswer(t, referenceText(answer));
  return (ids: readonly number[], turn: number, toolBefore: string | null): Promise<number> | null =>
    isMeasured(turn, toolBefore, wanted)
      ? score([...ids, ...pseudo.token_ids], ids.length).then((logprobs) => beliefOf(logprobs, pseudo))
      : null;
}

/**
 * The text whose probability is the belief: the first of several alternatives, and of a JSON list of labels whether none
 * of them is false, as inclusionAI/DR-Venus reads its tasks (RL/verl/trainer/ppo/ray_trainer.py).
 */
export function referenceText(answer: string): string {
  const text = (answer.split('<|answer_split|>')[0] as string).trim();
  if (!text.startsWith('[')) return text;
  const labels = labelsOf(text);
  return labels === null ? text : String(labels.every((label) => label.toLowerCase() !== 'false'));
}

/**
 * Mean log-probability, in nats, of the reference answer's tokens.
 *
 * @param logprobs of the ids of the pseudo-answer after its context
 */
export function beliefOf(logprobs: readonly number[], { mask }: Pick<PseudoAnswer, 'mask'>): number {
  const marked = mask.flatMap((bit, at) => (bit === 1 ? [logprobs[at] ?? Number.NaN] : []));
  return marked.reduce((sum, value) => sum + value, 0) / marked.length;
}

function labelsOf(text: string): string[] | null {
  try {
    const parsed: unknown = JSON.parse(text);
    if (!Array.isArray(parsed)) return null;
    const labels = parsed.map((entry: { label?: unknown } | null) => entry?.label);
    return labels.every((label) => typeof label === 'string') ? labels : null;
  } catch {
    return null;
  }
}
