/** `npm run check`: everything about the code that needs no service, two checks at a time; one line each. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { repoRoot, venvBin } from '../services/home.ts';
import { staleKinds } from './kind-closures.ts';
import { unnoticedImports } from './planted-imports.ts';
import { runCommand } from './subprocess.ts';

interface Check {
  name: string;
  /** Problems, as text for the reader; empty when all is well. */
  run(): Promise<string>;
}

const root = repoRoot();
const FOLDERS = [
  'schemas',
  'plan',
  'workflows',
  'activities',
  'environments',
  'services',
  'worker',
  'cli',
  'tests',
  'bench',
];

/** A tool is content when it ends with 0; otherwise what it printed is the problem. */
async function tool(command: string, args: readonly string[]): Promise<string> {
  const ended = await runCommand(command, args, {
    cwd: root,
    timeoutMs: 300_000,
    output: 'capture',
    env: { NO_COLOR: '1' },
  });
  if (ended.timedOut) return `${command} did not end in 5 minutes`;
  return ended.code === 0 ? '' : ended.output.trim() || `${command} ended with code ${ended.code}`;
}

const bin = (name: string): string => join(root, 'node_modules/.bin', name);
const npmTool =
  (name: string, ...args: string[]): Check['run'] =>
  () =>
    tool(bin(name), args);
const pythonTool =
  (name: string, ...args: string[]): Check['run'] =>
  () =>
    tool(venvBin(name), args);

/** Long ones first, so that the two lanes end together. */
const CHECKS: Check[] = [
  { name: 'types (Python)', run: npmTool('pyright', '--project', 'pyrightconfig.json') },
  { name: 'promises and switches', run: npmTool('eslint', '.') },
  { name: 'types (TypeScript)', run: npmTool('tsc', '--noEmit', '--tsBuildInfoFile', 'dist/.check.tsbuildinfo') },
  { name: 'types (report page)', run: npmTool('tsc', '-p', 'cli/report/page/tsconfig.json') },
  { name: 'import boundaries', run: npmTool('depcruise', '--config', '.dependency-cruiser.cjs', '--', ...FOLDERS) },
  { name: 'planted imports are caught', run: async () => (await unnoticedImports(root)).join('\n') },
  { name: 'format', run: npmTool('biome', 'format', '--colors=off', '.') },
  {
    name: 'lint',
    run: npmTool('biome', 'check', '--colors=off', '--formatter-enabled=false', '--error-on-warnings', '.'),
  },
  { name: 'format (Python)', run: pythonTool('ruff', 'format', '--check', '.') },
  { name: 'lint (Python)', run: pythonTool('ruff', 'check', '.') },
  { name: 'generated schema files', run: () => tool(process.execPath, ['dist/cli/main.js', 'schema', '--check']) },
  { name: 'versions of node kinds', run: async () => staleKinds(root).join('\n') },
  { name: 'lockfile without addresses', run: lockfileAddresses },
  { name: 'no registry named', run: registriesNamed },
];

/** A lockfile with addresses installs only where those hosts can be reached. */
async function lockfileAddresses(): Promise<string> {
  const lock = JSON.parse(await readFile(join(root, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, { resolved?: string }>;
  };
  const named = Object.entries(lock.packages).filter(([, { resolved }]) => resolved !== undefined);
  return named.map(([name, { resolved }]) => `package-lock.json: ${name} names ${resolved}`).join('\n');
}

/** Hosts of package registries, as patterns so that this file does not name them itself. */
const REGISTRY_HOSTS = [
  'registry[.]npmjs[.]org',
  'registry[.]yarnpkg[.]com',
  'pypi[.]org',
  'files[.]pythonhosted[.]org',
  'npm[.]pkg[.]github[.]com',
];

async function registriesNamed(): Promise<string> {
  const ended = await runCommand('git', ['grep', '-nIE', REGISTRY_HOSTS.join('|')], {
    cwd: root,
    timeoutMs: 30_000,
    output: 'capture',
  });
  if (ended.code > 1) return ended.output; // not a git checkout: git's own words
  return ended.code === 0 ? ended.output.trim() : '';
}

async function main(): Promise<number> {
  const began = performance.now();
  const waiting = [...CHECKS];
  const failures: { name: string; problems: string }[] = [];
  const lane = async (): Promise<void> => {
    for (let check = waiting.shift(); check; check = waiting.shift()) {
      const started = performance.now();
      const problems = await check.run().catch((error: Error) => error.stack ?? error.message);
      const seconds = ((performance.now() - started) / 1000).toFixed(1).padStart(6);
      console.log(`${problems === '' ? 'ok    ' : 'FAILED'} ${seconds} s  ${check.name}`);
      if (problems !== '') failures.push({ name: check.name, problems });
    }
  };
  await Promise.all([lane(), lane()]);
  for (const { name, problems } of failures)
    console.log(`\n── ${name} ${'─'.repeat(Math.max(0, 60 - name.length))}\n${problems}`);
  const seconds = ((performance.now() - began) / 1000).toFixed(0);
  console.log(`\n${CHECKS.length - failures.length} of ${CHECKS.length} checks passed in ${seconds} s`);
  return failures.length === 0 ? 0 : 1;
}

process.exitCode = await main();
