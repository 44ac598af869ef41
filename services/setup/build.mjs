// Compile the checkout into dist/, which is replaced whole: a killed build leaves the old one. Plain JavaScript, since
// nothing is compiled when it runs. Types are checked by `npm run check`, not here.
//
// usage: node services/setup/build.mjs [--force]
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join, relative } from 'node:path';

const root = dirname(dirname(import.meta.dirname));
const dist = join(root, 'dist');
const fresh = join(root, 'dist.new');
const SOURCES = [
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
/** What a worker runs; a change elsewhere restarts no worker. */
const WORKER_SOURCES = ['schemas', 'plan', 'workflows', 'activities', 'environments', 'services', 'worker'];
const WORKFLOW_SOURCES = ['schemas', 'plan', 'workflows', 'activities/index.ts'];

/** Folders among the sources; `results` are what benchmarks measured. */
const NO_SOURCES = ['node_modules', '__pycache__', 'results'];

const isSource = (name) => /[.](ts|json|css)$/.test(name);

function filesBelow(path) {
  if (!existsSync(path)) return [];
  if (isSource(path)) return [path];
  return readdirSync(path, { withFileTypes: true })
    .filter(({ name }) => !NO_SOURCES.includes(name))
    .flatMap((entry) =>
      entry.isDirectory() ? filesBelow(join(path, entry.name)) : isSource(entry.name) ? [join(path, entry.name)] : [],
    )
    .sort();
}

function digest(folders) {
  const hash = createHash('sha256');
  const files = [
    ...folders.flatMap((folder) => filesBelow(join(root, folder))),
    join(root, 'package-lock.json'),
    join(root, 'tsconfig.json'),
    import.meta.filename,
  ];
  for (const file of files)
    hash
      .update(`${relative(root, file)}\0`)
      .update(readFileSync(file))
      .update('\0');
  return hash.digest('hex');
}

function compile() {
  rmSync(fresh, { recursive: true, force: true });
  const tsc = join(root, 'node_modules', 'typescript', 'bin', 'tsc');
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [tsc, '--noCheck', '--incremental', 'false', '--outDir', fresh],
    { cwd: root, encoding: 'utf8' },
  );
  if (status !== 0) {
    process.stderr.write(`${stdout}${stderr}`);
    process.exit(1);
  }
  // Data that code imports or reads beside itself.
  for (const file of SOURCES.flatMap((folder) => filesBelow(join(root, folder))).filter((name) =>
    name.endsWith('.json'),
  )) {
    const target = join(fresh, relative(root, file));
    mkdirSync(dirname(target), { recursive: true });
    cpSync(file, target);
  }
}

/** Validators as code: every start of `exp validate` would make them again. */
async function compileSchemas() {
  const { schemaCode } = await import(join(fresh, 'plan', 'schema-compiler.js'));
  writeFileSync(join(fresh, 'compiled-schemas.cjs'), schemaCode());
}

/** The workflows as one file, so that a worker does not bundle at its start. Unchanged workflows keep their bundle. */
async function bundle(before) {
  if (!existsSync(join(fresh, 'workflows', 'index.js'))) return null;
  const workflows = digest(WORKFLOW_SOURCES);
  const kept = join(dist, 'workflow-bundle.js');
  if (before?.workflows === workflows && existsSync(kept)) {
    cpSync(kept, join(fresh, 'workflow-bundle.js'));
    return workflows;
  }
  const { bundleWorkflowCode } = createRequire(join(root, 'package.json'))('@temporalio/worker');
  const quiet = {
    trace() {},
    debug() {},
    info() {},
    warn: (text) => process.stderr.write(`${text}\n`),
    error: (text) => process.stderr.write(`${text}\n`),
    log() {},
  };
  const { code } = await bundleWorkflowCode({ workflowsPath: join(fresh, 'workflows', 'index.js'), logger: quiet });
  writeFileSync(join(fresh, 'workflow-bundle.js'), code);
  return workflows;
}

/** The browser's part of `exp report` as one script, which each report carries with it. */
async function bundleReportPage() {
  const page = join(root, 'cli', 'report', 'page');
  if (!existsSync(page)) return;
  const { rolldown } = await import('rolldown');
  const build = await rolldown({ input: join(page, 'main.ts'), platform: 'browser', tsconfig: false });
  const { output } = await build.generate({ format: 'iife', minify: true });
  // Within a page nothing may look like the end of the script.
  writeFileSync(join(fresh, 'report-page.js'), output[0].code.replaceAll('</script', '<\\/script'));
  cpSync(join(page, 'page.css'), join(fresh, 'report-page.css'));
}

function readBuild() {
  try {
    return JSON.parse(readFileSync(join(dist, 'build.json'), 'utf8'));
  } catch {
    return undefined;
  }
}

const before = readBuild();
const sources = digest(SOURCES);
if (before?.sources === sources && !process.argv.includes('--force')) {
  const now = new Date();
  utimesSync(join(dist, 'build.json'), now, now); // touched but not changed: the next call need not look again
} else {
  const startedAt = new Date();
  compile();
  await compileSchemas();
  const workflows = await bundle(before);
  await bundleReportPage();
  const build = join(fresh, 'build.json');
  writeFileSync(build, `${JSON.stringify({ sources, worker: digest(WORKER_SOURCES), workflows })}\n`);
  utimesSync(build, startedAt, startedAt); // a source saved while this ran is newer
  const old = join(root, 'dist.old');
  rmSync(old, { recursive: true, force: true });
  if (existsSync(dist)) renameSync(dist, old);
  renameSync(fresh, dist);
  rmSync(old, { recursive: true, force: true });
}
