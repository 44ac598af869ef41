/**
 * What each node kind executes, as digests beside its version: a change that nobody judged would reuse artifacts made
 * by other code. The check fails until the version is raised or it is written down why results stay the same:
 *
 *     node dist/tests/kind-closures.js --record ["why it has no effect"]
 *
 * Only what runs counts: types, comments and layout of TypeScript do not.
 */
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { builtinModules } from 'node:module';
import { dirname, join, relative } from 'node:path';
import { pathToFileURL } from 'node:url';
import ts from 'typescript';
import { KIND_VERSIONS } from '../plan/kind-versions.ts';
import { NODE_KINDS, type NodeKind } from '../schemas/plan.ts';
import { repoRoot } from '../services/home.ts';

const WORLD = ['environments/world/world.ts', 'environments/world/embedder-child.ts'];
const ROLLOUTS = [
  'activities/prepare-rollouts.ts',
  'activities/rollout-batch.ts',
  'activities/adapters/engine.ts',
  'workflows/rollouts.ts',
  ...WORLD,
];
const TRAINER = ['activities/train-stage.ts', 'trainer/exp_trainer/'];

/** Where the execution of a kind begins. What is handed to activities by type only is named here too. */
const ENTRIES: Record<NodeKind, string[]> = {
  corpus: ['activities/corpus.ts', 'environments/world/embedder-child.ts'], // its tokenizer counts chunks
  index: ['activities/build-index.ts', 'environments/world/embedder-child.ts'],
  tasks: ['activities/make-tasks.ts'],
  trajectories: ['activities/demonstrations.ts', ...WORLD],
  profile: ['activities/publish-profile.ts', ...ROLLOUTS],
  sft: ['activities/plan-sft.ts', 'workflows/sft-stage.ts', ...TRAINER],
  rl: ['activities/plan-rl-step.ts', 'workflows/rl-stage.ts', ...ROLLOUTS, ...TRAINER],
  benchmark: ['activities/publish-benchmark.ts', ...ROLLOUTS],
  report: ['activities/write-report.ts'],
};

/** Path of a file, or `npm NAME` or `python NAME`, and what it is at. */
type Parts = Record<string, string>;

interface RecordedKind {
  version: number;
  digest: string;
  parts: string[];
  /** Changes since the version was raised that leave results as they are. */
  no_effect: { why: string; changed: string[] }[];
}

interface Recorded {
  kinds: Partial<Record<NodeKind, RecordedKind>>;
  /** Of all kinds together, so that a change can be named. */
  parts: Parts;
}

const RECORD = 'plan/kind-closures.json';
const COMMAND = 'node dist/tests/kind-closures.js --record';

/** One line for each kind whose code is not what was recorded. */
export function staleKinds(root: string, versions: Readonly<Record<NodeKind, number>> = KIND_VERSIONS): string[] {
  const { kinds, parts } = readRecord(root);
  const closures = new Closures(root);
  return NODE_KINDS.flatMap((kind) => {
    const known = kinds[kind];
    if (known === undefined) return [`${kind}: not in ${RECORD}; run \`${COMMAND}\``];
    const now = closures.of(kind);
    const changed = changesBetween(known, parts, now);
    if (versions[kind] !== known.version)
      return [`${kind}: version ${versions[kind]}, but ${RECORD} has ${known.version}; run \`${COMMAND}\``];
    if (changed.length === 0) return [];
    return [
      `${kind}: changed since version ${known.version} was recorded: ${changed.join(', ')}\n` +
        `  when results change: raise ${kind} in plan/kind-versions.ts, then \`${COMMAND}\`\n` +
        `  when they do not:    \`${COMMAND} "why it has no effect"\``,
    ];
  });
}

function changesBetween({ parts: names, digest }: RecordedKind, before: Parts, now: Parts): string[] {
  if (digestOf(now) === digest) return [];
  const all = [...new Set([...names, ...Object.keys(now)])].sort();
  return all.filter((name) => now[name] === undefined || !names.includes(name) || now[name] !== before[name]);
}

/** Writes down what is there now. Kinds that changed under the same version need a reason. */
export function recordKinds(root: string, why: string | undefined, versions = KIND_VERSIONS): string[] {
  const { kinds, parts } = readRecord(root);
  const closures = new Closures(root);
  const recorded: Recorded = { kinds: {}, parts: {} };
  const said: string[] = [];
  for (const kind of NODE_KINDS) {
    const [known, now] = [kinds[kind], closures.of(kind)];
    const changed = known === undefined ? [] : changesBetween(known, parts, now);
    const isRaised = known === undefined || versions[kind] > known.version;
    if (known !== undefined && versions[kind] < known.version)
      throw new Error(`${kind}: version ${versions[kind]} was ${known.version} before; versions only rise`);
    if (changed.length > 0 && !isRaised && why === undefined)
      throw new Error(
        `${kind}: ${changed.join(', ')} changed under version ${known.version}: say why it has no effect`,
      );
    const before = isRaised ? [] : (known?.no_effect ?? []);
    recorded.kinds[kind] = {
      version: versions[kind],
      digest: digestOf(now),
      parts: Object.keys(now),
      no_effect: changed.length > 0 && !isRaised ? [...before, { why: why as string, changed }] : before,
    };
    Object.assign(recorded.parts, now);
    if (isRaised) said.push(`${kind}: version ${versions[kind]}`);
    else if (changed.length > 0) said.push(`${kind}: no effect (${changed.join(', ')})`);
  }
  recorded.parts = sorted(recorded.parts);
  writeFileSync(join(root, RECORD), `${JSON.stringify(recorded, null, 2)}\n`);
  return said;
}

function readRecord(root: string): Recorded {
  const path = join(root, RECORD);
  if (!existsSync(path)) return { kinds: {}, parts: {} };
  return JSON.parse(readFileSync(path, 'utf8')) as Recorded;
}

/** The transitive imports of each kind, each file read once. */
class Closures {
  readonly #root: string;
  readonly #files = new Map<string, { digest: string; imports: string[] }>();
  readonly #npm: Record<string, { version?: string }>;
  readonly #python: ReadonlyMap<string, string>;

  constructor(root: string) {
    this.#root = root;
    const lock = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')) as {
      packages: Record<string, { version?: string }>;
    };
    this.#npm = lock.packages;
    const pins = readFileSync(join(root, 'requirements.txt'), 'utf8').matchAll(/^([\w.-]+)==([^\s;]+)/gm);
    this.#python = new Map([...pins].map(([, name = '', version = '']) => [name.replaceAll('-', '_'), version]));
  }

  of(kind: NodeKind): Parts {
    const parts: Parts = {};
    const open = ENTRIES[kind].flatMap((entry) => (entry.endsWith('/') ? this.#pythonFiles(entry) : [entry]));
    for (let name = open.pop(); name !== undefined; name = open.pop()) {
      if (parts[name] !== undefined) continue;
      const version = this.#versionOf(name);
      if (version !== null) parts[name] = version;
      else {
        const { digest, imports } = this.#read(name);
        parts[name] = digest;
        open.push(...imports);
      }
    }
    return sorted(parts);
  }

  #pythonFiles(folder: string): string[] {
    return readdirSync(join(this.#root, folder))
      .filter((name) => name.endsWith('.py'))
      .map((name) => folder + name);
  }

  /** Of a package; null for a file. */
  #versionOf(name: string): string | null {
    const [ecosystem, named] = name.split(' ');
    if (named === undefined) return null;
    const version = ecosystem === 'npm' ? this.#npm[`node_modules/${named}`]?.version : this.#python.get(named);
    if (version === undefined) throw new Error(`${name} is imported and not locked`);
    return version;
  }

  #read(file: string): { digest: string; imports: string[] } {
    const known = this.#files.get(file);
    if (known) return known;
    const text = readFileSync(join(this.#root, file), 'utf8');
    const read = file.endsWith('.py')
      ? { digest: shortHash(text), imports: this.#pythonImports(text) }
      : this.#readTypeScript(file, text);
    this.#files.set(file, read);
    return read;
  }

  #readTypeScript(file: string, text: string): { digest: string; imports: string[] } {
    const { digest, specifiers } = transpiled.get(text) ?? transpile(text);
    transpiled.set(text, { digest, specifiers });
    return { digest, imports: specifiers.flatMap((specifier) => this.#resolve(specifier, file)) };
  }

  #resolve(specifier: string, from: string): string[] {
    if (specifier.startsWith('.')) return [relative(this.#root, join(this.#root, dirname(from), specifier))];
    if (specifier.startsWith('node:') || builtinModules.includes(specifier)) return [];
    const [scope = '', name = ''] = specifier.split('/');
    return [`npm ${scope.startsWith('@') ? `${scope}/${name}` : scope}`];
  }

  /** What is pinned under the name it is imported by; the rest is Python's own, or ours. */
  #pythonImports(text: string): string[] {
    const names = [...text.matchAll(/^\s*(?:import|from)\s+([A-Za-z_]\w*)/gm)].map(([, name = '']) => name);
    return names.filter((name) => this.#python.has(name)).map((name) => `python ${name}`);
  }
}

interface Transpiled {
  digest: string;
  specifiers: string[];
}

/** By text: transpiling is what takes the time, and recording after checking would do it again. */
const transpiled = new Map<string, Transpiled>();

/** Transpiled, a file holds neither types nor comments, nor imports of types alone. */
function transpile(text: string): Transpiled {
  const { outputText } = ts.transpileModule(text, {
    compilerOptions: {
      target: ts.ScriptTarget.ES2023,
      module: ts.ModuleKind.ESNext,
      removeComments: true,
      verbatimModuleSyntax: true,
    },
  });
  const { importedFiles } = ts.preProcessFile(outputText, true, true);
  return { digest: shortHash(outputText), specifiers: importedFiles.map(({ fileName }) => fileName) };
}

const sorted = (parts: Parts): Parts => Object.fromEntries(Object.entries(parts).sort(([a], [b]) => (a < b ? -1 : 1)));
const shortHash = (text: string): string => createHash('sha256').update(text).digest('hex').slice(0, 16);
const digestOf = (parts: Parts): string => shortHash(JSON.stringify(sorted(parts)));

function main(args: readonly string[]): number {
  const [flag, why, ...rest] = args;
  if (flag !== '--record' || rest.length > 0 || why === '') {
    console.error(`usage: ${COMMAND} ["why it has no effect"]`);
    return 2;
  }
  const said = recordKinds(repoRoot(), why);
  console.log(said.length > 0 ? said.join('\n') : 'nothing changed');
  return 0;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) process.exitCode = main(process.argv.slice(2));
