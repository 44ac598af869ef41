import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { bundleWorkflowCode, Worker, type WorkflowBundle } from '@temporalio/worker';
import { beforeAll, expect, test } from 'vitest';

/**
 * Histories of real runs, recorded with `temporal workflow show --output json`, replayed against today's workflows.
 * A change that would confuse a run in progress fails here; the cure is a patch, not a new recording.
 */
const folder = fileURLToPath(new URL('./histories/', import.meta.url));
const names = (await readdir(folder)).filter((name) => name.endsWith('.json'));
let workflowBundle: WorkflowBundle;

beforeAll(async () => {
  workflowBundle = await bundleWorkflowCode({
    workflowsPath: fileURLToPath(new URL('../../workflows/index.ts', import.meta.url)),
  });
});

test('every workflow type has a recorded history', () => {
  const types = new Set(names.map((name) => name.split('.')[0]));
  expect([...types].sort()).toEqual(['arm', 'node', 'rl_stage', 'rollouts', 'run', 'sft_stage']);
});

test.each(names)('%s replays', async (name) => {
  const history = JSON.parse(await readFile(join(folder, name), 'utf8')) as object;
  await expect(Worker.runReplayHistory({ workflowBundle }, history)).resolves.toBeUndefined();
});

test('a replay notices an activity that is no longer where it was', async () => {
  const name = names.find((candidate) => candidate.startsWith('run.')) as string;
  const changed = (await readFile(join(folder, name), 'utf8')).replaceAll('"listArms"', '"listLegs"');
  await expect(Worker.runReplayHistory({ workflowBundle }, JSON.parse(changed) as object)).rejects.toThrow();
});
