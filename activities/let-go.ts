import { nodeOf } from '../schemas/node-parameters.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import type { StepLedger } from './adapters/step-ledger.ts';
import type { NodeRef } from './index.ts';
import type { NodeProgress } from './node-progress.ts';
import type { PlanReader } from './plan-reader.ts';
import { keptSteps, samplesAhead } from './stage-course.ts';

export interface LetGoDeps {
  plans: PlanReader;
  store: Pick<ArtifactStore, 'blobCollector'>;
  ledger: StepLedger;
  progress: NodeProgress;
}

/**
 * Forget saved states of an rl stage of `steps` that `checkpoint.keep` does not ask for, and remove their files. The newest
 * stays always: a new trainer goes on from it; and what samples the next step, which an engine may ask for again. Batches
 * stay, so every step can still be told.
 */
export async function letGo({ plans, store, ledger, progress }: LetGoDeps, ref: NodeRef, steps: number): Promise<void> {
  const { parameters, unkeyed } = nodeOf('rl', await plans.node(ref));
  const { evaluate, health } = parameters;
  const { every = 1, keep = { last: 1 } } = unkeyed.checkpoint ?? {};
  const best = keep.best ?? (health?.on_breach === 'back_to_best' ? 1 : 0);
  const curves = await progress.curves(ref.key, evaluate ? [evaluate.metric] : []);
  const measured = evaluate ? (curves.get(evaluate.metric) ?? new Map<number, number>()) : new Map<number, number>();
  const before = new Date();
  const saved = await ledger.savedSteps(ref.key);
  const kept = keptSteps(saved, measured, { every, last: keep.last, best });
  const newest = saved.at(-1) ?? 0;
  if (newest < steps && samplesAhead(parameters, newest + 1)) kept.add(newest - 1);
  for (const blob of await ledger.letGo(ref.key, [...kept])) await store.blobCollector?.remove(blob, before);
}
