const INTERVAL_MS = 500;

export interface ThrottledProgress {
  (done: number, detail: string): void;
  /** Wait for a report that is on its way, so that a later one is not overtaken by it. */
  last(): Promise<void>;
}

/**
 * Report progress twice a second at most, without making the work wait. A report that fails is dropped: progress is
 * for people, and the next one says more.
 */
export function throttled(report: (done: number, detail: string) => Promise<void>): ThrottledProgress {
  let sentAt = -Infinity;
  let sending: Promise<void> = Promise.resolve();
  const send = (done: number, detail: string): void => {
    if (performance.now() - sentAt < INTERVAL_MS) return;
    sentAt = performance.now();
    sending = sending.then(() => report(done, detail)).catch(() => undefined);
  };
  return Object.assign(send, { last: () => sending });
}
