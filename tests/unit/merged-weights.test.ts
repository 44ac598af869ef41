import { linkSync, mkdirSync, readdirSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { MergedWeights } from '../../activities/adapters/merged-weights.ts';
import { sweepMergedWeights } from '../../cli/garbage/merged-weights.ts';
import { contentKey } from '../../schemas/canonical.ts';
import { temporaryFolder } from '../temporary-folder.ts';

const HOUR_MS = 60 * 60_000;
const cache = temporaryFolder('exp-merged-');
const folder = join(cache, 'bfloat16');
const base = join(temporaryFolder('exp-base-'), 'model.safetensors');
writeFileSync(base, 'weights of the base');

/** As a merge leaves it: two files of its own, one that is the base model's, all of two hours ago. */
function make(name: string): string {
  const directory = join(folder, name);
  mkdirSync(directory, { recursive: true });
  for (const file of ['model.safetensors', 'probe.json']) writeFileSync(join(directory, file), 'x'.repeat(100));
  linkSync(base, join(directory, 'base.safetensors'));
  const made = new Date(Date.now() - 2 * HOUR_MS);
  for (const file of ['model.safetensors', 'probe.json', 'base.safetensors', ''])
    utimesSync(join(directory, file), made, made);
  return name;
}

test('what is served, was asked for lately, or is no merged directory stays; the rest goes, whole or half made', async () => {
  const [served, asked] = [make(contentKey('served')), make(contentKey('asked'))];
  make(contentKey('unused'));
  make(`.${contentKey('killed')}.part-12345678`);
  make('made-by-hand');
  const weights = new MergedWeights({
    store: {} as never,
    cache: folder,
    python: 'nobody needs it',
    packageDir: folder,
    baseDir: () => folder,
    dtype: 'bfloat16',
  });
  const checkpoint = { digest: asked, model: 'm', model_sha256: 'a'.repeat(64), adapters: [] };
  expect(await weights.directory(checkpoint)).toBe(join(folder, asked));

  const sweep = (apply: boolean) =>
    sweepMergedWeights(cache, new Set([served]), { before: new Date(Date.now() - HOUR_MS), apply });
  const going = { count: 2, bytes: 400 }; // 200 each: the base model's file is not freed
  expect(await sweep(false)).toEqual(going);
  expect(readdirSync(folder)).toHaveLength(5);
  expect(await sweep(true)).toEqual(going);
  expect(readdirSync(folder).sort()).toEqual([served, asked, 'made-by-hand'].sort());
  expect(await sweep(true)).toEqual({ count: 0, bytes: 0 });
});

test('where nothing was ever merged there is nothing to do', async () => {
  const found = await sweepMergedWeights(join(cache, 'nowhere'), new Set(), { before: new Date(), apply: true });
  expect(found).toEqual({ count: 0, bytes: 0 });
});
