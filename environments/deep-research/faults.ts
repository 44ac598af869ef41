/** Tools that fail now and then, as a spec declares it: to see what an agent makes of it. */
import { createHash } from 'node:crypto';

export type Fault = 'empty' | 'error' | 'truncated';

/** Share of calls by what goes wrong, by tool. */
export type FaultShares = Readonly<Record<string, Readonly<Record<string, number>>>>;

/**
 * What goes wrong with one call, or null. A pure function of the trajectory's seed and the turn, so that a
 * trajectory that is resumed meets the same faults, and two samples of a group do not meet theirs together.
 */
export function drawFault(
  shares: FaultShares | null,
  { tool, seed, turn }: { tool: string; seed: number; turn: number },
): Fault | null {
  const ofTool = Object.entries(shares?.[tool] ?? {}).sort(([a], [b]) => (a < b ? -1 : 1));
  let drawn = createHash('sha256').update(`fault/${seed}/${turn}`).digest().readUInt32BE(0) / 2 ** 32;
  for (const [fault, share] of ofTool) {
    if (drawn < share) return fault as Fault;
    drawn -= share;
  }
  return null;
}
