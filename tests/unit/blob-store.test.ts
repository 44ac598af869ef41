import { createHash } from 'node:crypto';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { DirectoryBlobStore } from '../../activities/adapters/blob-store.ts';
import { temporaryFolder } from '../temporary-folder.ts';

test('a blob is named by its bytes, stored once, and leaves no temporary file', async () => {
  const root = temporaryFolder('exp-blobs-');
  const store = new DirectoryBlobStore(join(root, 'store'));
  const file = join(root, 'input');
  await writeFile(file, 'hello');

  const [first, second] = await Promise.all([store.put(file), store.put(Buffer.from('hello'))]);

  expect(first).toBe(createHash('sha256').update('hello').digest('hex'));
  expect(second).toBe(first);
  expect(await readFile(await store.open(first), 'utf8')).toBe('hello');
  expect(await readdir(join(root, 'store', first.slice(0, 2)))).toEqual([first]);
});

test('a blob that is not there is an error that names it', async () => {
  const store = new DirectoryBlobStore(temporaryFolder('exp-blobs-'));
  await expect(store.open('ab'.repeat(32))).rejects.toMatchObject({ code: 'ARTIFACT_MISSING', at: 'ab'.repeat(32) });
});
