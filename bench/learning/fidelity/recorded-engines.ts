/** An engine pool that remembers what was sent and answered, by the seed of the turn, which no two turns share. */
import type { EnginePool } from '../../../activities/adapters/engine.ts';
import type { Completion } from '../../../environments/deep-research/agent-loop.ts';

export interface Exchange {
  ids: readonly number[];
  completion: Completion;
}

export class RecordedEngines {
  readonly sampled = new Map<number, Exchange>();
  readonly #pool: EnginePool;

  constructor(pool: EnginePool) {
    this.#pool = pool;
  }

  async acquire(...args: Parameters<EnginePool['acquire']>) {
    const lease = await this.#pool.acquire(...args);
    const sampler: typeof lease.sampler = (...options) => {
      const sample = lease.sampler(...options);
      return async (ids, request) => {
        const sent = [...ids];
        const completion = await sample(ids, request);
        this.sampled.set(request.seed, { ids: sent, completion: structuredClone(completion) });
        return completion;
      };
    };
    return { epoch: lease.epoch, sampler, renew: () => lease.renew() };
  }

  release(holder: string): Promise<void> {
    return this.#pool.release(holder);
  }

  close(): Promise<void> {
    return this.#pool.close();
  }
}
