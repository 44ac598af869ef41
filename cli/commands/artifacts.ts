import { parseArgs } from 'node:util';
import type { ListedArtifact } from '../../activities/adapters/artifact-store.ts';
import type { Manifest } from '../../schemas/artifact.ts';
import { ExitCode, ExpError } from '../../schemas/errors.ts';
import { NODE_KINDS, type Plan } from '../../schemas/plan.ts';
import { type ArtifactCheck, checkArtifact } from '../artifact-check.ts';
import type { Command, CommandIo } from '../command.ts';
import { type Stack, withStack } from '../open-stack.ts';
import { findRun, listRuns } from '../run-state.ts';
import { count, detectTerminal, renderTable } from '../terminal.ts';

type Verb = (argv: string[], io: CommandIo) => Promise<number>;

export const command: Command = {
  name: 'artifacts',
  summary: 'List, show and verify artifacts.',
  usage: 'artifacts ls | show | verify  [options]',
  help: [
    'artifacts ls [--run R] [--kind K] [--after KEY] [--limit 50]     in the order of keys',
    'artifacts show KEY                                               its manifest, its files, the runs that use it',
    'artifacts verify KEY [KEY …] | --all | --run R                   hash every file again, and look at the services',
    '          exit code 1 when something is broken, naming it',
    'KEY may be shortened while one artifact alone begins like it. all: [--profile P] [--json]',
  ].join('\n'),
  async run(argv, io) {
    const verbs: Record<string, Verb> = { ls, show, verify };
    const [name, ...rest] = argv;
    const verb = name === undefined ? undefined : verbs[name];
    if (!verb) throw new ExpError('USAGE', 'exp artifacts', `say one of: ${Object.keys(verbs).join(', ')}`);
    return verb(rest, io);
  },
};

const PAGE = 100;
const SHOWN_KEY = 12;

async function ls(argv: string[], io: CommandIo): Promise<number> {
  const { values } = parseArgs({
    args: argv,
    options: {
      run: { type: 'string' },
      kind: { type: 'string' },
      after: { type: 'string', default: '' },
      limit: { type: 'string', default: '50' },
      profile: { type: 'string' },
      json: { type: 'boolean', default: false },
    },
  });
  const { kind, after } = values;
  const limit = Number(values.limit);
  if (!Number.isSafeInteger(limit) || limit < 1) throw new ExpError('USAGE', '--limit', 'wants a number of artifacts');
  if (kind !== undefined && !(NODE_KINDS as readonly string[]).includes(kind))
    throw new ExpError('USAGE', '--kind', `there are ${NODE_KINDS.join(', ')}`);
  return withStack(values.profile, async (stack) => {
    const keys = values.run === undefined ? undefined : await keysOfRun(stack, values.run);
    const found = await stack.store.list({ after, limit: limit + 1, kind, ...(keys && { keys }) });
    const rows = await Promise.all(found.slice(0, limit).map((row) => described(stack, row)));
    const next = found.length > limit ? (rows.at(-1)?.key ?? null) : null;
    if (values.json) {
      io.out(JSON.stringify({ artifacts: rows, next }));
      return ExitCode.done;
    }
    if (rows.length === 0) {
      io.out('no artifact');
      return ExitCode.done;
    }
    const titles = ['key', 'kind', 'generation', 'made', 'files', 'bytes'];
    const cells = rows.map(({ key, kind: of, generation, created_at, files, bytes }) => [
      key.slice(0, SHOWN_KEY),
      of,
      String(generation),
      stamp(created_at),
      String(files),
      count(bytes),
    ]);
    table(titles, cells, io);
    if (next !== null) io.out(`to go on: exp artifacts ls --after ${next}`);
    return ExitCode.done;
  });
}

async function described({ store }: Stack, { key, kind, generation, digest, created_at }: ListedArtifact) {
  const { files } = await store.manifest({ key, kind, generation, digest });
  const bytes = files.reduce((sum, file) => sum + file.bytes, 0);
  return { key, kind, generation, digest, created_at: created_at.toISOString(), files: files.length, bytes };
}

async function keysOfRun({ pool, store }: Stack, wanted: string): Promise<string[]> {
  const { plan_blob } = await findRun(pool, wanted);
  return keysOf(await store.readJson<Plan>(plan_blob));
}

const keysOf = ({ arms }: Plan): string[] => [...new Set(arms.flatMap(({ nodes }) => nodes.map(({ key }) => key)))];

async function show(argv: string[], io: CommandIo): Promise<number> {
  const { values, positionals } = parseArgs({
    args: argv,
    allowPositionals: true,
    options: { profile: { type: 'string' }, json: { type: 'boolean', default: false } },
  });
  const [wanted, ...more] = positionals;
  if (wanted === undefined || more.length > 0) throw new ExpError('USAGE', 'exp artifacts show', 'wants one KEY');
  return withStack(values.profile, async (stack) => {
    const { key, kind, generation, digest } = await findArtifact(stack, wanted);
    const manifest = await stack.store.manifest({ key, kind, generation, digest });
    const runs = await runsWith(stack, key);
    if (values.json) io.out(JSON.stringify({ generation, digest, manifest, runs }));
    else for (const line of describe(manifest, { generation, digest, runs })) io.out(line);
    return ExitCode.done;
  });
}

interface Use {
  run: string;
  nodes: string[];
}

/** Runs whose plan has the key, newest first, with what they call it. */
async function runsWith({ pool, store }: Stack, key: string): Promise<Use[]> {
  const uses: Use[] = [];
  for (const { id, plan_blob } of await listRuns(pool)) {
    const { arms } = await store.readJson<Plan>(plan_blob);
    const nodes = new Set(
      arms.flatMap(({ nodes: all }) => all.filter((node) => node.key === key).map((node) => node.id)),
    );
    if (nodes.size > 0) uses.push({ run: id, nodes: [...nodes] });
  }
  return uses;
}

function describe(
  { key, kind, created_at, files, inputs, body, made_with }: Manifest,
  { generation, digest, runs }: { generation: number; digest: string; runs: readonly Use[] },
): string[] {
  const rows: [string, string[]][] = [
    ['key', [key]],
    ['kind', [kind]],
    ['made', [`${stamp(created_at)}, generation ${generation}`]],
    ['with', Object.entries(made_with).map(([name, value]) => `${name} ${value}`)],
    ['digest', [digest]],
    [
      'inputs',
      inputs.map(
        ({ node, key: of, digest: read }) => `${node} ${of.slice(0, SHOWN_KEY)}, as ${read.slice(0, SHOWN_KEY)}`,
      ),
    ],
    ['files', files.map(({ name, bytes, sha256 }) => `${name}  ${count(bytes)} bytes  ${sha256}`)],
    ['says', JSON.stringify(body, null, 2).split('\n')],
    ['runs', runs.map(({ run, nodes }) => `${run} (${nodes.join(', ')})`)],
  ];
  return rows.flatMap(([title, lines]) => lines.map((line, at) => `${(at === 0 ? title : '').padEnd(8)}${line}`));
}

async function verify(argv: string[], io: CommandIo): Promise<number> {
  const { values, positionals } = parseArgs({
    args: argv,
    allowPositionals: true,
    options: {
      all: { type: 'boolean', default: false },
      run: { type: 'string' },
      profile: { type: 'string' },
      json: { type: 'boolean', default: false },
    },
  });
  const { all, run } = values;
  if ([positionals.length > 0, all, run !== undefined].filter(Boolean).length !== 1)
    throw new ExpError('USAGE', 'exp artifacts verify', 'wants KEYs, or --all, or --run R');
  return withStack(values.profile, async (stack) => {
    const checks: ArtifactCheck[] = [];
    for await (const row of wantedArtifacts(stack, positionals, run)) {
      const check = await checkArtifact(stack, row);
      checks.push({ ...check });
      if (!values.json) for (const line of check.broken) io.err(`${check.key}: BROKEN: ${check.kind}: ${line}`);
    }
    const broken = checks.filter((check) => check.broken.length > 0).length;
    const bytes = checks.reduce((sum, check) => sum + check.bytes, 0);
    if (values.json) io.out(JSON.stringify({ artifacts: checks, broken }));
    else
      io.out(
        `${checks.length} artifacts, ${count(bytes)} bytes of files: ${broken === 0 ? 'all whole' : `${broken} broken`}`,
      );
    return broken === 0 ? ExitCode.done : ExitCode.runFailed;
  });
}

async function* wantedArtifacts(
  stack: Stack,
  keys: readonly string[],
  run: string | undefined,
): AsyncGenerator<ListedArtifact> {
  if (keys.length > 0) {
    for (const key of keys) yield await findArtifact(stack, key);
    return;
  }
  const only = run === undefined ? undefined : await keysOfRun(stack, run);
  for (let after = ''; ; ) {
    const rows = await stack.store.list({ after, limit: PAGE, ...(only && { keys: only }) });
    yield* rows;
    const last = rows.at(-1);
    if (last === undefined || rows.length < PAGE) return;
    after = last.key;
  }
}

/** Throws ARTIFACT_MISSING, ARTIFACT_AMBIGUOUS. */
async function findArtifact({ store, pool }: Stack, wanted: string): Promise<ListedArtifact> {
  const { rows } = await pool.query<{ key: string }>(
    'select distinct key from artifacts where starts_with(key, $1) order by key limit 2',
    [wanted],
  );
  if (rows.length === 0) throw new ExpError('ARTIFACT_MISSING', wanted, 'no artifact has this key or begins like it');
  if (rows.length > 1 && wanted.length < 64)
    throw new ExpError('ARTIFACT_AMBIGUOUS', wanted, 'more than one artifact begins like this');
  const [found] = await store.list({ limit: 1, keys: rows.map(({ key }) => key) });
  return found as ListedArtifact;
}

function table(titles: readonly string[], rows: readonly string[][], io: CommandIo): void {
  const columns = titles.map((title) => ({
    title,
    align: title === 'bytes' || title === 'files' ? ('right' as const) : ('left' as const),
  }));
  for (const line of renderTable(detectTerminal(io), columns, rows)) io.out(line);
}

const stamp = (time: string): string => `${time.slice(0, 16).replace('T', ' ')} UTC`;
