/** The headless Chromium that npm carries, with the libraries it needs: nothing of the machine's is asked for. */
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { brotliDecompress } from 'node:zlib';
import { type Browser, chromium } from 'playwright-core';

const unpack = promisify(brotliDecompress);

export async function openChromium(): Promise<Browser> {
  const folder = await unpacked();
  const libraries = [join(folder, 'lib'), process.env['LD_LIBRARY_PATH']].filter(Boolean).join(':');
  return chromium.launch({
    executablePath: join(folder, 'chromium'),
    headless: true,
    // It reads files we wrote ourselves; root, as CI often is, has no sandbox.
    args: ['--no-sandbox', '--disable-gpu'],
    env: { ...process.env, LD_LIBRARY_PATH: libraries } as Record<string, string>,
  });
}

/** Unpacked once for each version; a folder that is there is whole, because it came there by rename. */
async function unpacked(): Promise<string> {
  const packed = dirname(dirname(dirname(createRequire(import.meta.url).resolve('@sparticuz/chromium'))));
  const { version } = JSON.parse(await readFile(join(packed, 'package.json'), 'utf8')) as { version: string };
  const folder = join(tmpdir(), `exp-chromium-${version}-${process.getuid?.() ?? 0}`);
  if (existsSync(folder)) return folder;
  const fresh = await mkdtemp(`${folder}.`);
  try {
    const read = async (name: string): Promise<Buffer> => unpack(await readFile(join(packed, 'bin', name)));
    await writeFile(join(fresh, 'chromium'), await read('chromium.br'), { mode: 0o755 });
    await mkdir(join(fresh, 'lib'));
    execFileSync('tar', ['-x', '-C', fresh], { input: await read('al2023.tar.br'), maxBuffer: 2 ** 26 });
    await rename(fresh, folder);
  } catch (error) {
    if (!existsSync(folder)) throw error; // another test was quicker
  } finally {
    await rm(fresh, { recursive: true, force: true });
  }
  return folder;
}
