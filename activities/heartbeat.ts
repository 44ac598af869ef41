import type { TrainerClient } from './adapters/trainer-process.ts';
import { withPulse } from './pulse.ts';

const INTERVAL_MS = 2_000;

/**
 * Heartbeat while a trainer's work moves, or while it waits for us (weights are being stored). A process that hangs
 * answers pings and is still not kept alive by them.
 */
export const heartbeatWhile = <T>(client: TrainerClient, work: () => Promise<T>): Promise<T> =>
  withPulse(async (moved) => {
    let last = -1;
    const timer = setInterval(() => {
      client
        .ping()
        .then(({ busy, progress }) => {
          if (!busy || progress !== last) moved();
          last = progress;
        })
        .catch(() => undefined); // no answer, or cancelled: no heartbeat
    }, INTERVAL_MS);
    try {
      return await work();
    } finally {
      clearInterval(timer);
    }
  });
