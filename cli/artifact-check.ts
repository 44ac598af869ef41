/** Whether an artifact still is what was published: its manifest, its files, and what it describes in the services. */
import type { ListedArtifact } from '../activities/adapters/artifact-store.ts';
import type { CheckpointBody, Manifest } from '../schemas/artifact.ts';
import { contentKey } from '../schemas/canonical.ts';
import { linksOf } from '../schemas/checkpoint.ts';
import type { Stack } from './open-stack.ts';

export interface ArtifactCheck {
  key: string;
  kind: string;
  generation: number;
  files: number;
  bytes: number;
  /** What is wrong, each by its place; empty when all is well. */
  broken: string[];
}

export async function checkArtifact(stack: Stack, row: ListedArtifact): Promise<ArtifactCheck> {
  const { key, kind, generation } = row;
  const check: ArtifactCheck = { key, kind, generation, files: 0, bytes: 0, broken: [] };
  const manifest = await checkManifest(stack, row, check);
  if (manifest === null) return check;
  for (const { name, sha256, bytes } of manifest.files) {
    const state = await stack.store.checkBlob(sha256);
    if (state !== 'whole') check.broken.push(`file ${name} (${sha256}) is ${state}`);
    check.files += 1;
    check.bytes += bytes;
  }
  await checkLinks(stack, manifest, check);
  if (!(await stack.verifyLive(row)))
    check.broken.push(
      kind === 'corpus' ? 'its pages are not all there, or changed' : 'its index is not there, or changed',
    );
  return check;
}

/** Null when it cannot be read; what is wrong with it is added to `check`. */
async function checkManifest(
  { store }: Stack,
  { key, digest, manifest_blob }: ListedArtifact,
  check: ArtifactCheck,
): Promise<Manifest | null> {
  const state = await store.checkBlob(manifest_blob);
  if (state !== 'whole') {
    check.broken.push(`its manifest (${manifest_blob}) is ${state}`);
    return null;
  }
  const manifest = await store.readJson<Manifest>(manifest_blob);
  const { kind, inputs, body, files } = manifest;
  if (contentKey({ key, kind, inputs, body, files }) !== digest)
    check.broken.push('its manifest is not the one that was published under this key');
  return manifest;
}

/** Weights are a chain: the earlier links are files of other artifacts. */
async function checkLinks({ store }: Stack, { kind, body, files }: Manifest, check: ArtifactCheck): Promise<void> {
  if (kind !== 'sft' && kind !== 'rl') return;
  const own = new Set(files.map(({ sha256 }) => sha256));
  const { weights, adapters = [] } = body as unknown as CheckpointBody;
  for (const sha256 of linksOf({ weights, adapters })) {
    const state = own.has(sha256) ? 'whole' : await store.checkBlob(sha256);
    if (state !== 'whole') check.broken.push(`weights ${sha256} below its own: ${state}`);
  }
}
