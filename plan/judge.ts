/** What the section `judge` of a spec means for a node that asks it. */
import type { Experiment } from '../schemas/experiment.ts';
import type { JudgeParameters, Unkeyed } from '../schemas/node-parameters.ts';
import type { ResolvedNames } from './spec-names.ts';

/** Null where the spec has no judge. */
export function judgeParameters(
  { judge }: Experiment,
  { judge: model }: ResolvedNames,
  prompt: string,
): JudgeParameters | null {
  if (!judge || !model) return null;
  return { ...model, prompt, temperature: judge.temperature, max_tokens: judge.max_tokens };
}

/** Where it is. */
export function judgeAddress({ judge }: Experiment): Pick<Unkeyed, 'judge'> {
  if (judge?.url === undefined) return {};
  const { url, api_key, retries, on_failure } = judge;
  return { judge: { url, ...(api_key && { api_key }), retries, on_failure } };
}

type SpecSource = Experiment['tasks']['sources'][string];

/** Whether a judge says what the questions of a source ask for. */
export const isJudged = (source: SpecSource): boolean =>
  source.kind !== 'generated' && source.capability !== undefined && 'judge' in source.capability;

/**
 * Asked of each question of a source with `capability: { judge: true }`. The five are LiteResearcher's (its paper names
 * them and gives an example each); the definitions are ours.
 */
export const CAPABILITY_PROMPT = `A research agent answers questions by searching and reading documents. Say which one capability the question below asks for most.

direct_retrieval: one fact is looked up, on one page or along a chain of pages.
aggregation: facts from several pages are put together into one answer.
enumeration: all things that meet a condition are found and listed.
cross_verification: a thing is identified or a claim is decided by checking several conditions against different sources.
statistics: the answer is computed: counted, summed, compared or ranked.

Question: {question}

reasoning: say in one sentence what must be done to answer it
capability: direct_retrieval, aggregation, enumeration, cross_verification or statistics
`;
