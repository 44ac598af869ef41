/** What the rollouts of a step say about the policy's health. Pure; one trajectory at a time, for they may be many. */
import type { Trajectory } from '../../schemas/trajectory.ts';
import { parseAction } from './parse.ts';

export type WatchedTrajectory = Pick<
  Trajectory,
  'trajectory_id' | 'group_id' | 'branch' | 'spans' | 'messages' | 'reward' | 'termination'
>;

/** Means over the trajectories that were added; those the infrastructure broke only count as failed. */
export class RolloutHealth {
  readonly #seen = new Set<string>();
  readonly #outcomes = new Map<string, number[]>();
  readonly #answerTokens: number[] = [];
  #failed = 0;
  #calls = 0;
  #repeated = 0;
  #observations = 0;
  #toolErrors = 0;

  add(trajectory: WatchedTrajectory): void {
    const { trajectory_id, group_id, termination, reward, spans } = trajectory;
    const isNew = !this.#seen.has(trajectory_id);
    this.#seen.add(trajectory_id);
    if (termination === 'failed') {
      if (isNew) this.#failed += 1;
      return;
    }
    // Branches of a trajectory have their own turns and one outcome.
    if (isNew) this.#outcomes.set(group_id, [...(this.#outcomes.get(group_id) ?? []), reward.outcome]);
    for (const { kind, tool, status, start, end } of spans) {
      if (kind === 'action' && tool === 'answer') this.#answerTokens.push(end - start);
      if (kind !== 'observation' || tool === null) continue;
      this.#observations += 1;
      if (status === 'tool_error') this.#toolErrors += 1;
    }
    this.#countCalls(trajectory);
  }

  /** A call that was made before in the same branch, with the same arguments, finds nothing new. */
  #countCalls({ messages }: WatchedTrajectory): void {
    const made = new Set<string>();
    for (const { role, content } of messages) {
      if (role !== 'assistant') continue;
      // Where the generation prompt opens the thought, what was sampled begins inside it.
      const action = parseAction(content.includes('<think>') ? content : `<think>${content}`);
      if (action.kind !== 'tool_call') continue;
      const call = JSON.stringify([action.tool, action.args]);
      this.#calls += 1;
      if (made.has(call)) this.#repeated += 1;
      made.add(call);
    }
  }

  metrics(): Record<string, number> {
    const groups = [...this.#outcomes.values()];
    const same = groups.filter((outcomes) => outcomes.every((outcome) => outcome === outcomes[0])).length;
    return {
      'rollout/answer_tokens': ratio(
        this.#answerTokens.reduce((sum, tokens) => sum + tokens, 0),
        this.#answerTokens.length,
      ),
      'rollout/repeat_rate': ratio(this.#repeated, this.#calls),
      'rollout/tool_error_rate': ratio(this.#toolErrors, this.#observations),
      'rollout/groups_same_share': ratio(same, groups.length),
      'rollout/failed_share': ratio(this.#failed, this.#seen.size),
    };
  }
}

const ratio = (part: number, whole: number): number => (whole === 0 ? 0 : part / whole);
