/** A model as grader: what it is asked, and what its reply means. Pure; who asks it is an adapter's business. */
import type { Verdict } from '../../schemas/trajectory.ts';

export interface JudgedAnswer {
  question: string;
  reference: string;
  answer: string;
}

/** Every slot is filled once: what an answer holds is never read as a slot. */
export const judgePrompt = (template: string, slots: JudgedAnswer): string =>
  template.replace(/\{(question|reference|answer)\}/g, (_, slot: keyof JudgedAnswer) => slots[slot]);

/**
 * Null when the reply decides nothing. The last `correct: yes|no` counts (BrowseComp's form, arXiv:2504.12516):
 * a model may repeat the instruction before it answers.
 */
export function readVerdict(reply: string): Verdict | null {
  const said = reply.replace(/^[\s\S]*<\/think>/, '');
  const last = [...said.matchAll(/\bcorrect\W*:\W*(yes|no)\b/gi)].at(-1)?.[1];
  return last === undefined ? null : { correct: last.toLowerCase() === 'yes', reply: said.trim() };
}

/** What counts as right: the judge's word where one was asked, else the exact match. */
export const isRight = ({
  judge,
  score,
}: {
  judge: Pick<Verdict, 'correct'> | null;
  score: { exact_match: number };
}): boolean => (judge === null ? score.exact_match >= 1 : judge.correct);
