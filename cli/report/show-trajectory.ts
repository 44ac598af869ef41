/** From a row of a shard to what the reader shows. Pure. */
import type { Task } from '../../schemas/task.ts';
import type { Span, Trajectory } from '../../schemas/trajectory.ts';
import type { Outcome, ShownTrajectory, ShownTurn } from './document.ts';

export type GradedRow = Pick<
  Trajectory,
  | 'trajectory_id'
  | 'task_id'
  | 'group_id'
  | 'branch'
  | 'spans'
  | 'reward'
  | 'score'
  | 'termination'
  | 'failure_class'
  | 'answer'
>;
export type ShownRow = GradedRow & Pick<Trajectory, 'checkpoint' | 'sampling' | 'messages'>;

/** What a sequence was trained with. */
export interface Trained {
  /** Advantages where they change: [first token, advantage]. */
  advantages: AdvantageSteps;
  /** Of its turns, where the algorithm rewards turns; they take the place of those known while sampling. */
  rewards: readonly (number | null)[] | null;
}

type AdvantageSteps = readonly (readonly [from: number, advantage: number])[];

/** A row is a trajectory, or one branch of it. */
export const rowId = ({ trajectory_id, branch }: Pick<GradedRow, 'trajectory_id' | 'branch'>): string =>
  branch === 0 ? trajectory_id : `${trajectory_id}#${branch}`;

/** An answer that is right but badly written is right here, whatever its reward. */
export function outcomeOf({ termination, answer, score, reward }: GradedRow): Outcome {
  if (termination === 'failed') return 'broken';
  if (score.exact_match >= 1 || reward.outcome >= 1) return 'right';
  return answer === null ? 'unfinished' : 'wrong';
}

export function showTrajectory(row: ShownRow, task: Task | null, trained: Trained | null): ShownTrajectory {
  const { spans, messages, sampling } = row;
  return {
    id: rowId(row),
    task_id: row.task_id,
    question: messages[0]?.content ?? task?.question ?? '',
    reference: task?.answer ?? null,
    aliases: task?.aliases ?? [],
    capability: task?.capability ?? 'unknown',
    evidence: task?.evidence ?? [],
    answer: row.answer,
    outcome: outcomeOf(row),
    reward: row.reward.outcome,
    score: row.score,
    termination: row.termination,
    failure_class: row.failure_class,
    checkpoint: row.checkpoint,
    temperature: sampling.temperature,
    top_p: sampling.top_p,
    seed: sampling.seed,
    prompt_tokens: spans.filter(({ kind }) => kind === 'prompt').reduce((sum, span) => sum + lengthOf(span), 0),
    turns: turnsOf(row, trained),
  };
}

const lengthOf = ({ start, end }: Span): number => end - start;

/** The question is the first message; after it each action and each observation has one. */
function turnsOf({ spans, messages, reward }: ShownRow, trained: Trained | null): ShownTurn[] {
  const rewards = trained?.rewards ?? reward.turns;
  const turns: ShownTurn[] = [];
  let actions = 0;
  const said = spans.filter(({ kind }) => kind !== 'prompt');
  for (const [at, span] of said.entries()) {
    const content = messages[at + 1]?.content ?? '';
    const { status, latency_ms } = span;
    if (span.kind === 'action') {
      turns.push({
        turn: span.turn,
        action: withoutMarkup(content),
        action_tokens: lengthOf(span),
        tool: span.tool,
        status,
        latency_ms,
        reward: rewards[actions] ?? null,
        advantage: trained === null ? null : meanAdvantage(trained.advantages, span),
        observation: null,
      });
      actions += 1;
      continue;
    }
    // A later branch begins with what the last action of the branch before it was told.
    if (turns.length === 0) turns.push(actionElsewhere(span));
    const turn = turns.at(-1) as ShownTurn;
    const { cached, denied } = span;
    turn.observation = { text: withoutMarkup(content), tokens: lengthOf(span), status, latency_ms, cached, denied };
  }
  return turns;
}

function actionElsewhere({ turn, tool }: Span): ShownTurn {
  const nothing = { action_tokens: 0, latency_ms: 0, reward: null, advantage: null, observation: null };
  return { ...nothing, turn, tool, status: 'ok', action: '(said in the branch before this one)' };
}

/** Over the tokens of an action, each of which has one. */
function meanAdvantage(steps: AdvantageSteps, { start, end }: Span): number {
  let sum = 0;
  for (const [at, [from, advantage]] of steps.entries()) {
    const to = steps[at + 1]?.[0] ?? Number.POSITIVE_INFINITY;
    sum += advantage * Math.max(0, Math.min(end, to) - Math.max(start, from));
  }
  return end > start ? sum / (end - start) : 0;
}

/** What frames a message in the policy's chat format says nothing to a reader. */
function withoutMarkup(content: string): string {
  return content
    .replace(/<\|im_end\|>\s*<\|im_start\|>assistant\s*(<think>\s*)?$/, '')
    .replace(/^\s*(<\|im_end\|>)?\s*<\|im_start\|>user\n/, '')
    .replace(/<\|(im_end|endoftext)\|>\s*$/, '')
    .replace(/^<tool_response>\n([\s\S]*?)\n?<\/tool_response>\s*$/, '$1')
    .trim();
}
