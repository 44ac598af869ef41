import { readLines } from '../environments/world/sources/lines.ts';
import type { Manifest } from '../schemas/artifact.ts';
import { ExpError } from '../schemas/errors.ts';
import type { Task } from '../schemas/task.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';

/** Tasks of a published `tasks` artifact, in file order. */
export async function* readTasks(store: ArtifactStore, manifest: Manifest): AsyncGenerator<Task> {
  const path = await store.openFile(manifest, 'tasks.jsonl');
  for await (const line of readLines(path)) {
    if ('error' in line) throw new ExpError('TASKS', `${path}:${line.number}`, line.error);
    if (line.text.trim() !== '') yield JSON.parse(line.text) as Task;
  }
}
