/**
 * Join requests that arrive while one is on its way into one batch. No timer: alone, a request goes at once; under
 * load, batches grow by themselves. Only requests of the same kind (`key`) share a batch.
 */
export function coalesce<Item, Result>(
  run: (key: string, items: readonly Item[]) => Promise<readonly Result[]>,
  maxItems: number,
): (key: string, item: Item) => Promise<Result> {
  interface Waiting {
    item: Item;
    resolve(result: Result): void;
    reject(error: unknown): void;
  }
  const queues = new Map<string, Waiting[]>();
  const busy = new Set<string>();

  const drain = async (key: string): Promise<void> => {
    if (busy.has(key)) return;
    busy.add(key);
    const queue = queues.get(key) ?? [];
    while (queue.length > 0) {
      const batch = queue.splice(0, maxItems);
      try {
        const results = await run(
          key,
          batch.map(({ item }) => item),
        );
        for (const [index, { resolve }] of batch.entries()) resolve(results[index] as Result);
      } catch (error) {
        for (const { reject } of batch) reject(error);
      }
    }
    busy.delete(key);
    queues.delete(key);
  };

  return (key, item) =>
    new Promise<Result>((resolve, reject) => {
      const queue = queues.get(key) ?? [];
      queues.set(key, queue);
      queue.push({ item, resolve, reject });
      // After this turn of the event loop, so that the queries of one call travel together.
      queueMicrotask(() => void drain(key));
    });
}
