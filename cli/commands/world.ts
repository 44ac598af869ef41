import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { contentKey } from '../../schemas/canonical.ts';
import { ExitCode, ExpError } from '../../schemas/errors.ts';
import type { CorpusParameters, CorpusSource, IndexParameters } from '../../schemas/node-parameters.ts';
import { modelsDir, repoRoot } from '../../services/home.ts';
import type { Command, CommandIo } from '../command.ts';
import { whileNobodyCollects } from '../garbage/lock.ts';
import { findWorld, type OpenedWorld, openNamedWorld, saveWorld, sha256OfFile } from '../named-worlds.ts';
import { type Stack, withStack } from '../open-stack.ts';
import { detectTerminal, oneLine, renderTable } from '../terminal.ts';

type Verb = (argv: string[], io: CommandIo) => Promise<number>;

export const command: Command = {
  name: 'world',
  summary: 'Build, search, visit, serve and evaluate a world of pages.',
  usage: 'world build | search | visit | serve | eval  [options]',
  help: [
    'world build --source KIND:PATH [--source …] --name N [--precision fp32|int8] [--embedder NAME]',
    '            [--chunk-tokens 200] [--chunk-overlap 40] [--limit-pages N] [--limit-chunks N]',
    '            [--near-duplicates 0.9] [--licence TEXT] [--provenance TEXT] [--json]',
    '            KIND is jsonl, parquet, html, markdown or installed_packages; PATH a file, a folder or a glob',
    'world search N "query" ["query" …] [--limit 10] [--mode fused|dense|bm25] [--json]',
    'world visit N URL [URL …] [--goal TEXT] [--tokens 1000] [--json]',
    'world serve N [--host 127.0.0.1] [--port 8080] [--json]',
    '            POST /search {query: [..]} and POST /visit {url: [..], goal}, until Ctrl-C; nobody is asked who he is',
    'world eval N --queries FILE [--qrels FILE] [--json]',
    '            queries and qrels as in BEIR; or questions with gold_doc_ids, which need no qrels',
    'all: [--profile P]',
  ].join('\n'),
  async run(argv, io) {
    const verbs: Record<string, Verb> = { build, search, visit, serve, eval: evaluate };
    const [name, ...rest] = argv;
    const verb = name === undefined ? undefined : verbs[name];
    if (!verb) throw new ExpError('USAGE', 'exp world', `say one of: ${Object.keys(verbs).join(', ')}`);
    return verb(rest, io);
  },
};

async function build(argv: string[], io: CommandIo): Promise<number> {
  const { values } = parseArgs({
    args: argv,
    options: {
      source: { type: 'string', multiple: true, default: [] },
      name: { type: 'string' },
      embedder: { type: 'string', default: 'all-minilm-l6-v2' },
      precision: { type: 'string', default: 'fp32' },
      'chunk-tokens': { type: 'string', default: '200' },
      'chunk-overlap': { type: 'string', default: '40' },
      'limit-pages': { type: 'string' },
      'limit-chunks': { type: 'string' },
      'near-duplicates': { type: 'string' },
      licence: { type: 'string', default: 'not stated' },
      provenance: { type: 'string', default: 'not stated' },
      profile: { type: 'string' },
      json: { type: 'boolean', default: false },
    },
  });
  const name = values.name;
  if (name === undefined || !/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(name)) {
    throw new ExpError('USAGE', 'exp world build', 'needs --name N, of letters, digits, dots and dashes');
  }
  const { sources, paths } = parseSources(values.source, values.licence, values.provenance);
  const chunk = {
    tokens: integer('--chunk-tokens', values['chunk-tokens'], 8, 8192),
    overlap: integer('--chunk-overlap', values['chunk-overlap'], 0, 4096),
  };
  if (chunk.overlap >= chunk.tokens) throw new ExpError('USAGE', '--chunk-overlap', 'must be less than --chunk-tokens');
  const corpusParameters = {
    sources,
    limit: {
      pages: values['limit-pages'] === undefined ? null : integer('--limit-pages', values['limit-pages'], 1, 1e9),
      chunks: values['limit-chunks'] === undefined ? null : integer('--limit-chunks', values['limit-chunks'], 1, 1e9),
    },
    near_duplicates:
      values['near-duplicates'] === undefined
        ? null
        : { threshold: share('--near-duplicates', values['near-duplicates']) },
  };
  const precision = oneOf('--precision', values.precision, ['fp32', 'int8', 'fp16'] as const);
  return withStack(values.profile, async ({ connections }) => {
    const [{ default: pg }, { connectMilvus }] = await Promise.all([
      import('pg'),
      import('../../environments/world/milvus.ts'),
    ]);
    const { openEmbedder } = await import('../../environments/world/embedder.ts');
    const embedder = await openEmbedder({
      folder: join(modelsDir(), values.embedder),
      model: values.embedder,
      precision,
    });
    const milvus = connectMilvus(connections.milvus);
    const pool = new pg.Pool({
      connectionString: connections.postgres.url,
      max: 5,
      application_name: 'exp world build',
    });
    try {
      const tools = { pool, milvus, embedder, io };
      return await whileNobodyCollects(pool, () =>
        buildWorld(tools, name, corpusParameters, paths, chunk, values.json),
      );
    } catch (error) {
      if (!io.signal.aborted) throw error;
      io.err('stopped; the same command goes on where it stopped');
      return ExitCode.runFailed;
    } finally {
      await Promise.allSettled([embedder.close(), milvus.closeConnection(), pool.end()]);
    }
  });
}

interface BuildTools {
  pool: import('pg').Pool;
  milvus: import('@zilliz/milvus2-sdk-node').MilvusClient;
  embedder: import('../../environments/world/embedder.ts').Embedder;
  io: CommandIo;
}

/** The same functions as the nodes `corpus` and `index` of a run, in this process. */
async function buildWorld(
  { pool, milvus, embedder, io }: BuildTools,
  name: string,
  corpusParameters: Omit<CorpusParameters, 'chunk'>,
  paths: Record<string, string>,
  chunk: IndexParameters['chunk'],
  json: boolean,
): Promise<number> {
  const [{ loadCorpus }, { buildIndex }, { chunkPage }, { tokenCounter }] = await Promise.all([
    import('../../environments/world/load-corpus.ts'),
    import('../../environments/world/build-index.ts'),
    import('../../environments/world/chunker.ts'),
    import('../../environments/world/embedder-model.ts'),
  ]);
  const countTokens = await tokenCounter(join(modelsDir(), embedder.model.name));
  const { model, sha256 } = { model: embedder.model.name, sha256: embedder.model.sha256 };
  const parameters: IndexParameters = {
    embedder: { model, sha256, precision: embedder.model.precision, dimension: embedder.dimension },
    chunk,
    dense: { type: 'hnsw', metric: 'cosine' },
    sparse: 'bm25',
    fusion: { kind: 'rrf', k: 60 },
  };
  const countedBy = corpusParameters.limit.chunks === null ? null : { ...chunk, tokenizer: { model, sha256 } };
  const corpusKey = contentKey({
    kind: 'corpus',
    ...corpusParameters,
    chunk: countedBy,
    files: await digests(corpusParameters.sources, paths),
  });
  const report = progress(io, json);

  const startedAt = performance.now();
  const corpus = await loadCorpus({
    pool,
    corpusKey,
    sources: corpusParameters.sources,
    limit: corpusParameters.limit,
    nearDuplicates: corpusParameters.near_duplicates,
    paths,
    countChunks: countedBy ? (text) => chunkPage(text, chunk, countTokens).length : null,
    signal: io.signal,
    onProgress: (pages, detail) => report(`${pages} ${detail}`),
  });
  const corpusMs = performance.now() - startedAt;
  const index = await buildIndex({
    pool,
    milvus,
    embedder,
    countTokens,
    indexKey: contentKey({ kind: 'index', corpus: corpus.fingerprint, corpusKey, ...parameters, fusion: null }),
    corpus,
    parameters,
    signal: io.signal,
    onProgress: (done, total) => report(`${done} of about ${total} chunks indexed`),
  });
  await saveWorld(pool, { name, corpus, index, parameters });

  const seconds = (performance.now() - startedAt) / 1000;
  if (json) {
    io.out(JSON.stringify({ name, corpus, index, seconds: round(seconds), corpus_seconds: round(corpusMs / 1000) }));
    return 0;
  }
  const { exact_duplicates, near_duplicates, repeated_urls, over_limit, bad_rows } = corpus.dropped;
  io.out(`world ${name}: ${corpus.pages} pages, ${index.chunks} chunks, in ${seconds.toFixed(1)} s`);
  io.out(
    `dropped: ${exact_duplicates} exact and ${near_duplicates} near duplicates, ${repeated_urls} repeated URLs, ` +
      `${bad_rows} bad rows, ${over_limit} over the limit`,
  );
  io.out(`next: exp world search ${name} "…"`);
  return 0;
}

async function search(argv: string[], io: CommandIo): Promise<number> {
  const { values, positionals } = parseArgs({
    args: argv,
    allowPositionals: true,
    options: {
      limit: { type: 'string', default: '10' },
      mode: { type: 'string', default: 'fused' },
      profile: { type: 'string' },
      json: { type: 'boolean', default: false },
    },
  });
  const [name, ...queries] = positionals;
  if (name === undefined || queries.length === 0)
    throw new ExpError('USAGE', 'exp world search', 'needs a world and a query');
  const limit = integer('--limit', values.limit, 1, 1000);
  const mode = oneOf('--mode', values.mode, ['fused', 'dense', 'bm25'] as const);
  return withWorld(values.profile, name, async ({ world }) => {
    const response = await world.search(queries, { limit, mode });
    if (values.json) io.out(JSON.stringify(response));
    else if (response.results.length === 0) io.out('nothing found');
    response.results.forEach(({ title, url, snippet, score }, i) => {
      if (values.json) return;
      io.out(`${i + 1}. ${oneLine(title)}  (${score.toFixed(4)})`);
      io.out(`   ${oneLine(url)}`);
      io.out(`   ${oneLine(snippet)}`);
    });
    return 0;
  });
}

async function visit(argv: string[], io: CommandIo): Promise<number> {
  const { values, positionals } = parseArgs({
    args: argv,
    allowPositionals: true,
    options: {
      goal: { type: 'string', default: '' },
      tokens: { type: 'string', default: '1000' },
      profile: { type: 'string' },
      json: { type: 'boolean', default: false },
    },
  });
  const [name, ...urls] = positionals;
  if (name === undefined || urls.length === 0)
    throw new ExpError('USAGE', 'exp world visit', 'needs a world and a URL');
  const maxTokens = integer('--tokens', values.tokens, 1, 1_000_000);
  return withWorld(values.profile, name, async ({ world, countTokens }) => {
    const pages = await world.visit(urls, values.goal, { maxTokens, countTokens });
    if (values.json) io.out(JSON.stringify(pages));
    for (const page of values.json ? [] : pages) {
      if (page.status === 'ok')
        io.out(
          `${oneLine(page.title)}\n${oneLine(page.url)}${page.truncated ? '  (cut)' : ''}\n\n${printable(page.text)}\n`,
        );
      else io.err(`${oneLine(page.url)}: ${page.status}: ${page.message}`);
    }
    return pages.every(({ status }) => status === 'ok') ? 0 : 1;
  });
}

/** The world for trainers and clients of other systems, as they ask for it, until the command is ended. */
async function serve(argv: string[], io: CommandIo): Promise<number> {
  const { values, positionals } = parseArgs({
    args: argv,
    allowPositionals: true,
    options: {
      host: { type: 'string', default: '127.0.0.1' },
      port: { type: 'string', default: '8080' },
      profile: { type: 'string' },
      json: { type: 'boolean', default: false },
    },
  });
  const [name, ...others] = positionals;
  if (name === undefined || others.length > 0) throw new ExpError('USAGE', 'exp world serve', 'needs one world');
  const port = integer('--port', values.port, 0, 65_535);
  const [{ serveJson }, { worldRoutes }] = await Promise.all([
    import('../../environments/world/json-server.ts'),
    import('../../environments/world/serve-world.ts'),
  ]);
  return withWorld(values.profile, name, async ({ world, countTokens }) => {
    const routes = worldRoutes({ world, countTokens, searchResults: 10, visitTokens: 1000 });
    const server = await serveJson(routes, { host: values.host, port });
    const url = `http://${values.host}:${server.port}`;
    io.out(values.json ? JSON.stringify({ world: name, url }) : `${name} at ${url}: POST /search, POST /visit`);
    await new Promise((resolve) => io.signal.addEventListener('abort', resolve, { once: true }));
    await server.close();
    return ExitCode.done;
  });
}

async function evaluate(argv: string[], io: CommandIo): Promise<number> {
  const { values, positionals } = parseArgs({
    args: argv,
    allowPositionals: true,
    options: {
      queries: { type: 'string' },
      qrels: { type: 'string' },
      profile: { type: 'string' },
      json: { type: 'boolean', default: false },
    },
  });
  const [name, ...rest] = positionals;
  if (name === undefined || rest.length > 0 || values.queries === undefined) {
    throw new ExpError('USAGE', 'exp world eval', 'needs a world and --queries FILE');
  }
  const { evaluateWorld, readJudgedQueries } = await import('../../environments/world/evaluate.ts');
  const queries = await readJudgedQueries(values.queries, values.qrels ?? null);
  return withWorld(values.profile, name, async ({ world }) => {
    const modes = await evaluateWorld(
      world,
      queries,
      (mode) => !values.json && io.err(`${queries.length} queries, ${mode} …`),
    );
    if (values.json) {
      io.out(
        JSON.stringify({
          world: name,
          queries: queries.length,
          modes: Object.fromEntries(modes.map(({ mode, ...result }) => [mode, result])),
        }),
      );
      return 0;
    }
    const columns = ['', 'nDCG@10', 'recall@5', 'recall@10', 'recall@100', 'ms/query'].map((title) => ({
      title,
      align: 'right' as const,
    }));
    const rows = modes.map((result) => [
      result.mode,
      result.ndcg_at_10.toFixed(4),
      result.recall_at_5.toFixed(4),
      result.recall_at_10.toFixed(4),
      result.recall_at_100.toFixed(4),
      result.ms_per_query.toFixed(1),
    ]);
    for (const line of renderTable(detectTerminal(io), columns, rows)) io.out(line);
    return 0;
  });
}

function withWorld(
  profile: string | undefined,
  name: string,
  work: (opened: OpenedWorld, stack: Stack) => Promise<number>,
): Promise<number> {
  return withStack(profile, async (stack) => {
    const opened = await openNamedWorld(stack.pool, stack.connections, await findWorld(stack.pool, name));
    try {
      return await work(opened, stack);
    } finally {
      await opened.close();
    }
  });
}

/** `KIND:PATH` → a source named after its kind and place in the list. */
function parseSources(texts: readonly string[], licence: string, provenance: string) {
  if (texts.length === 0) throw new ExpError('USAGE', 'exp world build', 'needs --source KIND:PATH');
  const sources: Record<string, CorpusSource> = {};
  const paths: Record<string, string> = {};
  texts.forEach((text, index) => {
    const [kind, path] = text.includes(':')
      ? [text.slice(0, text.indexOf(':')), text.slice(text.indexOf(':') + 1)]
      : [text, ''];
    const known = oneOf('--source', kind, ['jsonl', 'parquet', 'html', 'markdown', 'installed_packages'] as const);
    const name = `${known}_${index + 1}`;
    const origin = { licence, provenance };
    if (known === 'installed_packages') {
      sources[name] = { kind: known, ecosystems: ['npm', 'python'], ...origin };
    } else if (known === 'jsonl' || known === 'parquet') {
      const fields = { url: 'url', id: 'id', title: 'title', text: 'text' };
      sources[name] = { kind: known, fields, limit: null, ...origin };
    } else sources[name] = { kind: known, limit: null, ...origin };
    if (path === '' && known !== 'installed_packages')
      throw new ExpError('USAGE', '--source', `${known} needs a path: ${known}:PATH`);
    paths[name] = path === '' ? repoRoot() : resolve(path);
  });
  return { sources, paths };
}

/** What the pages follow from: each file by its content; installed packages by the lockfiles. */
async function digests(
  sources: Record<string, CorpusSource>,
  paths: Record<string, string>,
): Promise<Record<string, string>[]> {
  const { listFiles } = await import('../../environments/world/sources/files.ts');
  const found: Record<string, string>[] = [];
  for (const [name, { kind }] of Object.entries(sources)) {
    const path = paths[name] as string;
    const files =
      kind === 'installed_packages'
        ? [{ name: 'package-lock.json', path: join(path, 'package-lock.json') }]
        : await listFiles(
            path,
            kind === 'html'
              ? ['.html', '.htm', '.xhtml']
              : kind === 'markdown'
                ? ['.md', '.markdown', '.txt', '.rst']
                : [''],
          );
    for (const file of files) found.push({ source: name, name: file.name, sha256: await sha256OfFile(file.path) });
  }
  return found;
}

/** Progress on stderr, every two seconds at most. */
function progress(io: CommandIo, silent: boolean): (line: string) => void {
  let saidAt = performance.now();
  return (line) => {
    if (silent || performance.now() - saidAt < 2000) return;
    saidAt = performance.now();
    io.err(line);
  };
}

function integer(option: string, text: string, least: number, most: number): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= least && value <= most) return value;
  throw new ExpError('USAGE', option, `must be a whole number from ${least} to ${most}`);
}

function share(option: string, text: string): number {
  const value = Number(text);
  if (value > 0 && value <= 1) return value;
  throw new ExpError('USAGE', option, 'must be more than 0 and at most 1');
}

function oneOf<const T extends string>(option: string, text: string, known: readonly T[]): T {
  const found = known.find((candidate) => candidate === text);
  if (found === undefined) throw new ExpError('USAGE', option, `must be one of: ${known.join(', ')}`);
  return found;
}

/** Page text for a terminal: escape sequences in it are text, not commands. */
function printable(text: string): string {
  return text.split('\n').map(oneLine).join('\n');
}

const round = (value: number): number => Math.round(value * 100) / 100;
