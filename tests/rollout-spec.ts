import type { RolloutSpec } from '../activities/prepare-rollouts.ts';

/** A trajectory to sample, the `index`th of groups of four, of a task that needs no made world. */
export const rolloutSpec = (
  index: number,
  { agent, ...own }: Partial<Omit<RolloutSpec, 'agent'>> & { agent?: Partial<RolloutSpec['agent']> },
): RolloutSpec => ({
  trajectory_id: `t/${index}`,
  group_id: `g${Math.floor(index / 4)}`,
  sample: index % 4,
  seed: index,
  context_length: 8000,
  task: {
    task_id: `t${index}`,
    question: `What licence has package ${index}?`,
    answer: 'MIT',
    aliases: [],
    capability: 'direct_retrieval',
    split: 'train',
    source: 's',
    evidence: [],
    deny_urls: [],
  },
  agent: {
    tools: ['search'],
    max_turns: 12,
    max_turn_tokens: 64,
    observation_tokens: 64,
    search_results: 3,
    context_management: 'none',
    terminate_on_answer: true,
    faults: null,
    deny_urls: 'none',
    ...agent,
  },
  sampling: { temperature: 1, top_p: 1 },
  reward: { outcome: 'exact_match', format_penalty: 1, judge: null },
  cutoff: null,
  ...own,
});
