import type { LogEntry } from '@temporalio/worker';

/** One line an event: time, level, what, and the node it belongs to, so that `exp logs` can find it. */
export function logLine({ level, message, timestampNanos, meta }: LogEntry): void {
  const time = new Date(Number(timestampNanos / 1_000_000n)).toISOString();
  const { workflowId, activityType, attempt, error } = (meta ?? {}) as Record<string, unknown>;
  const where = [workflowId, activityType, attempt === undefined ? undefined : `attempt ${attempt}`]
    .filter(Boolean)
    .join(' ');
  const cause = error instanceof Error ? ` ${oneLine(error.stack ?? error.message)}` : '';
  console.log(`${time} ${level} ${where ? `[${where}] ` : ''}${oneLine(message)}${cause}`);
}

const oneLine = (text: string): string => text.replaceAll(/\s*\n\s*/g, ' | ');
