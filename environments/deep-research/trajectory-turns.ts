import type { Trajectory } from '../../schemas/trajectory.ts';

/** A sampled turn of a trajectory, and where its tokens are. */
export interface TrajectoryTurn {
  branch: number;
  tool: string | null;
  malformed: boolean;
  /** The sampled tokens, in the ids of its branch. */
  start: number;
  end: number;
  /** From its first token to that of the next turn of its branch, or to the branch's end. */
  tokens: number;
  belief: number | null;
}

export type BranchRow = Pick<Trajectory, 'branch' | 'spans'> & { beliefs?: readonly (number | null)[] };

/** All turns of a trajectory in the order they were taken; `rows` are its branches, which beliefs are listed by. */
export function turnsOf(rows: readonly BranchRow[]): TrajectoryTurn[] {
  return [...rows]
    .sort((a, b) => a.branch - b.branch)
    .flatMap(({ branch, spans, beliefs }) => {
      const actions = spans.filter(({ kind }) => kind === 'action');
      const length = spans.at(-1)?.end ?? 0;
      return actions.map(({ tool, status, start, end }, at) => ({
        branch,
        tool: tool === 'answer' ? null : tool,
        malformed: status === 'malformed',
        start,
        end,
        tokens: (actions[at + 1]?.start ?? length) - start,
        belief: beliefs?.[at] ?? null,
      }));
    });
}
