import { createHash } from 'node:crypto';
import { readdir, readFile, utimes, writeFile } from 'node:fs/promises';
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

test('a flipped bit is found', async () => {
  const store = new DirectoryBlobStore(temporaryFolder('exp-blobs-'));
  const sha256 = await store.put(Buffer.from('hello'));
  expect(await store.check(sha256)).toBe('whole');
  await writeFile(await store.open(sha256), 'hellp');
  expect(await store.check(sha256)).toBe('damaged');
  expect(await store.check('ab'.repeat(32))).toBe('missing');
});

test('a blob is removed only if nobody stored it again', async () => {
  const store = new DirectoryBlobStore(temporaryFolder('exp-blobs-'));
  const sha256 = await store.put(Buffer.from('hello'));
  const long_ago = new Date('2020-01-01');
  await utimes(await store.open(sha256), long_ago, long_ago);
  const hour_ago = new Date(Date.now() - 3_600_000);
  expect(await listed(store)).toEqual([{ sha256, bytes: 5, stored_at: long_ago }]);

  await store.put(Buffer.from('hello'));
  expect(await store.remove(sha256, hour_ago)).toBe(false);
  expect(await store.check(sha256)).toBe('whole');

  await utimes(await store.open(sha256), long_ago, long_ago);
  expect(await store.remove(sha256, hour_ago)).toBe(true);
  expect(await listed(store)).toEqual([]);
  expect(await store.remove(sha256, hour_ago)).toBe(false);
});

async function listed(store: DirectoryBlobStore): Promise<object[]> {
  const found: object[] = [];
  for await (const blob of store.list()) found.push(blob);
  return found;
}
