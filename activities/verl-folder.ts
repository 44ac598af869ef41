/** Where a stage that verl runs lies: one folder on the disk that our workers and the cluster share. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { NodeOf } from '../schemas/node-parameters.ts';
import type { RayCluster } from '../schemas/profile.ts';
import type { RayJobs } from './adapters/ray-jobs.ts';

/** The Ray cluster of the profile, with its secret resolved. */
export interface Ray {
  jobs: RayJobs;
  cluster: RayCluster;
}

/** What the export found out, read by every segment. */
export interface VerlExport {
  steps: number;
  prompts: { shortest: number; longest: number };
}

export function verlFolder({ shared_dir }: RayCluster, key: string) {
  const root = join(shared_dir, key.slice(0, 12));
  return {
    root,
    model: join(root, 'model'),
    train: join(root, 'train.parquet'),
    val: join(root, 'val.parquet'),
    agent_loops: join(root, 'agent_loops.yaml'),
    tool_server: join(root, 'tool_server.json'),
    /** On Python's path there: our half of verl's agent loop. */
    python: join(root, 'python'),
    checkpoints: join(root, 'checkpoints'),
    /** Written last: what it says is all there. */
    exported: join(root, 'export.json'),
    overrides: (segment: number) => join(root, `overrides-${segment}.json`),
    metrics: (job: string) => join(root, `${job}.metrics.jsonl`),
    log: (job: string) => join(root, `${job}.log`),
  };
}
export type VerlFolder = ReturnType<typeof verlFolder>;

/** The step of the newest whole checkpoint, as verl writes it beside them; 0 when there is none. */
export async function checkpointedStep({ checkpoints }: VerlFolder): Promise<number> {
  const text = await readFile(join(checkpoints, 'latest_checkpointed_iteration.txt'), 'utf8').catch(() => '0');
  return Number.parseInt(text, 10) || 0;
}

/** Hugging Face directory of a checkpoint. */
export const huggingFaceOf = ({ checkpoints }: VerlFolder, step: number): string =>
  join(checkpoints, `global_step_${step}`, 'actor', 'huggingface');

/** Checkpoints between two ends of a segment: few enough that a pause is not far, many enough that starting verl costs little. */
const CHECKPOINTS_A_SEGMENT = 10;

/**
 * The steps at which verl ends and is started again, the last of the stage among them. A schedule that falls is one
 * piece: verl takes the end of a segment for the end of its schedule.
 */
export function segmentEnds({ parameters: { optimizer }, unkeyed }: NodeOf<'rl'>, steps: number): number[] {
  if (optimizer.schedule !== 'constant') return [steps];
  const length = (unkeyed.checkpoint?.every ?? 1) * CHECKPOINTS_A_SEGMENT;
  const ends = Array.from({ length: Math.ceil(steps / length) }, (_, index) => (index + 1) * length);
  return ends.map((end) => Math.min(end, steps));
}
