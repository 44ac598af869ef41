import { setTimeout as sleep } from 'node:timers/promises';
import type { SpendLedger } from './adapters/spend-ledger.ts';
import { type Amounts, BudgetRefusal } from './budget.ts';
import type { NodeRef } from './index.ts';

/** What a unit has taken so far; counted by the work, written down now and then. */
export type Taken = Pick<Amounts, 'tokens' | 'tool_calls'>;

interface Unit {
  node: NodeRef;
  unit: string;
  most: Amounts;
  signal: AbortSignal;
  /** Called while it waits for other work to end. */
  waiting(): void;
}

const LOOK_AGAIN_MS = 500;
const REPORT_MS = 2_000;

/**
 * Do a unit of work within the budgets of those who wait for it: reserved before, counted while it lasts and when it
 * ends, however it ends. Throws BUDGET when nobody has room for it.
 */
export async function charged<T>(
  ledger: SpendLedger,
  { node, unit, most, signal, waiting }: Unit,
  work: (taken: Taken) => Promise<T>,
): Promise<T> {
  await admitted(ledger, { node, unit, most, signal, waiting });
  const taken: Taken = { tokens: 0, tool_calls: 0 };
  const report = () => ledger.report(node.key, unit, taken);
  const reporting = setInterval(() => void report().catch(() => {}), REPORT_MS);
  try {
    return await work(taken);
  } finally {
    clearInterval(reporting);
    await report();
    await ledger.close(node.key, unit);
  }
}

async function admitted(ledger: SpendLedger, { node, unit, most, signal, waiting }: Unit): Promise<void> {
  for (;;) {
    const admission = await ledger.admit(node.key, unit, most);
    if (admission.kind === 'admitted') return;
    if (admission.kind === 'refused') throw new BudgetRefusal(node.id, admission.refusals);
    waiting();
    await sleep(LOOK_AGAIN_MS, undefined, { signal });
  }
}
