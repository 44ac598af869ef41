/**
 * A Python environment with verl, Ray and Hydra, for tests only: the product has none of them. It stands on the product's
 * environment (torch, transformers, pytest), made once below .exp/ and again when either list of packages changes.
 */
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { python, repoRoot, setupDir } from '../../services/home.ts';
import { withLock } from '../../services/lock.ts';
import { requirementsPath } from '../../services/setup.ts';
import { runCommand } from '../subprocess.ts';

const requirements = join(repoRoot(), 'tests', 'verl', 'requirements.txt');
const folder = (): string => join(setupDir(), 'verl-tests');
const stamp = (): string => join(folder(), 'exp-stamp.txt');

/** Programs of the environment: python, ray. */
export const verlBin = (name: string): string => join(folder(), 'bin', name);

/** Pinned version of a package of the environment. */
export function pinned(name: string): string | undefined {
  const line = readFileSync(requirements, 'utf8').match(new RegExp(`^${name}==(\\S+)$`, 'm'));
  return line?.[1];
}

export async function makeVerlEnvironment(): Promise<void> {
  const inputs = [requirements, requirementsPath()].map((path) => readFileSync(path, 'utf8')).join('\0');
  const isCurrent = (): boolean => existsSync(stamp()) && readFileSync(stamp(), 'utf8') === inputs;
  await withLock(
    'verl-tests',
    () => console.log('another test is making the environment with verl and Ray; waiting for it'),
    async () => {
      if (isCurrent()) return;
      console.log(`making an environment with verl and Ray for these tests, once (${folder()}; half a minute) …`);
      rmSync(folder(), { recursive: true, force: true });
      await must(python(), ['-m', 'venv', folder()]);
      // Found after its own packages, and not copied: two gigabytes, most of which these tests never load.
      writeFileSync(join(await sitePackages(verlBin('python')), 'product.pth'), `${await sitePackages(python())}\n`);
      const pip = ['-m', 'pip', 'install', '--no-deps', '--no-compile', '--no-input', '--disable-pip-version-check'];
      await must(verlBin('python'), [...pip, '-r', requirements]);
      writeFileSync(stamp(), inputs);
    },
  );
}

async function sitePackages(interpreter: string): Promise<string> {
  return (await must(interpreter, ['-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'])).trim();
}

async function must(command: string, args: string[]): Promise<string> {
  const { code, output } = await runCommand(command, args, {
    cwd: dirname(requirements),
    timeoutMs: 10 * 60_000,
    output: 'capture',
    env: { PYTHONPATH: '', PYTHONHOME: '' },
  });
  if (code !== 0)
    throw new Error(`${command} ${args.slice(0, 3).join(' ')} ended with ${code}:\n${output.slice(-4000)}`);
  return output;
}
