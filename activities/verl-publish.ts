import { mkdir, mkdtemp, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { CheckpointBody } from '../schemas/artifact.ts';
import { ExpError } from '../schemas/errors.ts';
import { nodeOf } from '../schemas/node-parameters.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import { joinSafetensors } from './adapters/safetensors.ts';
import type { StageActivities } from './index.ts';
import type { NodeProgress } from './node-progress.ts';
import type { PlanReader } from './plan-reader.ts';
import { whileStoring, withPulse } from './pulse.ts';
import { rayOf } from './verl-export.ts';
import { huggingFaceOf, type Ray, type VerlFolder, verlFolder } from './verl-folder.ts';

export interface VerlPublishDeps {
  plans: PlanReader;
  store: ArtifactStore;
  progress: Pick<NodeProgress, 'metrics'>;
  /** Scratch space. */
  work: string;
  ray: Ray | null;
}

export const createVerlPublishActivities = ({
  plans,
  store,
  progress,
  work,
  ray,
}: VerlPublishDeps): Pick<StageActivities, 'publishVerl'> => ({
  /** All weights, as verl exported them, in the place of the base's; then the shared folder is cleared. */
  publishVerl: ({ node: ref, step }) =>
    withPulse(async (moved) => {
      const published = await store.find(ref.key);
      if (published) return published; // an attempt before this one came so far
      const folder = verlFolder(rayOf({ ray }, ref).cluster, ref.key);
      const { policy, backend } = nodeOf('rl', await plans.node(ref)).parameters;
      await mkdir(work, { recursive: true });
      const scratch = await mkdtemp(join(work, 'verl-'));
      try {
        const model = join(scratch, 'model.safetensors');
        await whileStoring(moved, () => joinWeights(folder, step, model));
        const weights = await whileStoring(moved, () => store.putBlob(model));
        const body: CheckpointBody & { weights: string } = {
          model: policy.model,
          model_sha256: policy.sha256,
          weights,
          adapters: [],
          step,
          stop_reason: 'steps',
        };
        const artifact = await whileStoring(moved, async () =>
          store.publish({
            key: ref.key,
            kind: ref.kind,
            inputs: await plans.lineage(ref),
            files: { 'model.safetensors': model, ...(await filesOf(folder)) },
            body,
            metrics: await progress.metrics(ref.key),
            made_with: backend.name === 'verl' ? { verl: backend.version, engine: backend.engine } : {},
          }),
        );
        await rm(folder.root, { recursive: true, force: true });
        return artifact;
      } finally {
        await rm(scratch, { recursive: true, force: true });
      }
    }),
});

async function joinWeights(folder: VerlFolder, step: number, out: string): Promise<void> {
  const directory = huggingFaceOf(folder, step);
  const names = await readdir(directory).catch(() => []);
  const parts = names.filter((name) => name.endsWith('.safetensors')).sort();
  if (parts.length === 0) throw new ExpError('CHECKPOINT', directory, 'verl left no safetensors there');
  await joinSafetensors(
    parts.map((name) => join(directory, name)),
    out,
  );
}

/** What verl was told and what it wrote: settings and logs of every job. */
async function filesOf({ root }: VerlFolder): Promise<Record<string, string>> {
  const names = (await readdir(root)).filter((name) => /^overrides-\d+[.]json$|[.](log|metrics[.]jsonl)$/.test(name));
  return Object.fromEntries(names.map((name) => [`verl/${name}`, join(root, name)]));
}
