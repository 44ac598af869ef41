/** Where things lie: the checkout, what set-up made in it, and the data of this stack. */
import { existsSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';

let cachedRoot: string | undefined;

/** The checkout: the nearest folder above this file with the lockfile in it (this file runs from services/ and from dist/services/). */
export function repoRoot(): string {
  if (cachedRoot === undefined) {
    let folder = import.meta.dirname;
    while (!existsSync(join(folder, 'package-lock.json'))) {
      const parent = dirname(folder);
      if (parent === folder) throw new Error(`no package-lock.json above ${import.meta.dirname}`);
      folder = parent;
    }
    cachedRoot = folder;
  }
  return cachedRoot;
}

/** Data, logs and addresses of this stack: `EXP_HOME`, or `.exp` in the checkout. */
export function home(): string {
  return process.env.EXP_HOME ? resolve(process.env.EXP_HOME) : join(repoRoot(), '.exp');
}

/** What set-up makes is shared by every home of a checkout. */
export function setupDir(): string {
  return join(repoRoot(), '.exp');
}

/** Models made at set-up: `<name>/` holds an HF directory (policies) or ONNX files and tokenizer.json (embedders). */
export function modelsDir(): string {
  return join(setupDir(), 'models');
}

export function venvBin(name: string): string {
  return join(setupDir(), 'venv', 'bin', name);
}

/** The interpreter of the one Python environment. */
export function python(): string {
  return venvBin('python');
}
