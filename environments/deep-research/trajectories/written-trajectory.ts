/** Trajectories that somebody wrote down, a script or another agent, in the form that rollouts have. */
import type { Span, Trajectory } from '../../../schemas/trajectory.ts';
import type { Reference } from '../answer.ts';
import type { renderTrajectory } from '../prompt.ts';
import { score } from '../reward.ts';

export interface ShownTurn {
  action: string;
  /** Null when the action is malformed. */
  tool: string | null;
  observation: string | null;
  /** Pages the leak guard held back. */
  denied?: number;
}

export interface WrittenTrajectory
  extends Pick<Trajectory, 'trajectory_id' | 'task_id' | 'sample' | 'checkpoint' | 'answer' | 'termination'> {
  question: string;
  reference: Reference;
  isCorrect: boolean;
  turns: readonly ShownTurn[];
  rendered: ReturnType<typeof renderTrajectory>;
}

export function writtenTrajectory(written: WrittenTrajectory): Trajectory {
  const { trajectory_id, task_id, sample, checkpoint, answer, termination, turns, rendered } = written;
  const scored = turns.map(({ tool, observation }) => ({ malformed: tool === null, observation: observation ?? '' }));
  return {
    trajectory_id,
    task_id,
    group_id: task_id,
    sample,
    branch: 0,
    checkpoint,
    sampling: { temperature: 0, top_p: 1, seed: 0 },
    token_ids: rendered.token_ids,
    mask: rendered.mask,
    logprobs: rendered.token_ids.map(() => 0),
    spans: rendered.spans.map((span): Span => {
      const turn = span.kind === 'prompt' ? undefined : turns[span.turn];
      return {
        ...span,
        tool: turn?.tool ?? null,
        status: turn?.tool === null ? 'malformed' : 'ok',
        latency_ms: 0, // not recorded: the same data must give the same file
        cached: false,
        denied: span.kind === 'observation' ? (turn?.denied ?? 0) : 0,
        weight_version: '',
      };
    }),
    reward: { outcome: written.isCorrect ? 1 : 0, turns: turns.map(() => null) },
    score: score(answer, scored, written.reference),
    judge: null,
    advantages: [],
    beliefs: [],
    termination,
    failure_class: null,
    answer,
    messages: messagesOf(written.question, turns),
  };
}

export function messagesOf(question: string, turns: readonly ShownTurn[]): Trajectory['messages'] {
  const exchanged = turns.flatMap(({ action, observation }) => [
    { role: 'assistant', content: action },
    ...(observation === null ? [] : [{ role: 'tool', content: observation }]),
  ]);
  return [{ role: 'user', content: question }, ...exchanged];
}
