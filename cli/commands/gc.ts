import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { ExitCode, ExpError } from '../../schemas/errors.ts';
import { home } from '../../services/home.ts';
import type { Command, CommandIo } from '../command.ts';
import { type Collected, collectGarbage } from '../garbage/collect.ts';
import { withStack } from '../open-stack.ts';
import { count, detectTerminal, renderTable } from '../terminal.ts';

/** What was written so lately may belong to work that is only beginning. */
const GRACE_MS = 60 * 60_000;
const DAY_MS = 24 * 60 * 60_000;

export const command: Command = {
  name: 'gc',
  summary: 'Remove what no kept run needs; without --apply, only say what that would be.',
  usage: 'gc [--keep-runs N | --keep-days N] [--apply] [--profile P] [--json]',
  help: `  --keep-runs N   keep the N newest runs, and drop the others
  --keep-days N   keep the runs of the last N days, and drop the others
  --apply         remove it; without, nothing is changed
  --json          {applied, runs, amounts: {NAME: {count, bytes}}, left}

Without a rule every run is kept, and only what none of them refers to goes. Always kept: active runs and all they need,
runs that ended within the last hour, worlds built by name, what MLflow was not sent yet. Weights merged for serving go when
no engine serves them and nobody asked for them within the last hour, whatever run they are of: they are made again. A run that is dropped can
neither be resumed nor compared any more; what MLflow has of it stays there.`,

  async run(argv, io) {
    const { values } = parseArgs({
      args: [...argv],
      options: {
        'keep-runs': { type: 'string' },
        'keep-days': { type: 'string' },
        apply: { type: 'boolean', default: false },
        profile: { type: 'string' },
        json: { type: 'boolean', default: false },
      },
    });
    const { apply, json, 'keep-runs': keepRuns, 'keep-days': keepDays } = values;
    if (keepRuns !== undefined && keepDays !== undefined)
      throw new ExpError('USAGE', 'exp gc', 'takes --keep-runs or --keep-days, not both');
    const now = Date.now();
    const days = wholeNumber('--keep-days', keepDays);
    const policy = {
      runs: wholeNumber('--keep-runs', keepRuns),
      since: days === null ? null : new Date(now - days * DAY_MS),
      grace: new Date(now - GRACE_MS),
    };
    return withStack(values.profile, async ({ store, connections }) => {
      const [{ default: pg }, { connectMilvus }] = await Promise.all([
        import('pg'),
        import('../../environments/world/milvus.ts'),
      ]);
      // Of its own: removing a corpus takes longer than the answers that other verbs wait for.
      const pool = new pg.Pool({ connectionString: connections.postgres.url, max: 4, application_name: 'exp gc' });
      const milvus = connectMilvus(connections.milvus);
      try {
        const collected = await collectGarbage(
          { pool, store, milvus, merged: join(home(), 'cache', 'merged') },
          policy,
          apply,
        );
        if (json) io.out(JSON.stringify({ applied: apply, ...collected }));
        else show(collected, apply, io);
        return ExitCode.done;
      } finally {
        await Promise.allSettled([pool.end(), milvus.closeConnection()]);
      }
    });
  },
};

function wholeNumber(flag: string, text: string | undefined): number | null {
  if (text === undefined) return null;
  const value = Number(text);
  if (text === '' || !Number.isSafeInteger(value) || value < 0) throw new ExpError('USAGE', flag, 'wants a number');
  return value;
}

/** Names of tables are for `--json`; people get words. */
const WORDS: Record<string, string> = {
  runs: 'runs',
  artifacts: 'artifacts',
  retired_artifacts: 'retired generations',
  node_progress: 'node diaries',
  node_metrics: 'points of curves',
  steps: 'optimizer steps in the ledger',
  stage_pools: 'training pools chosen within stages',
  judge_replies: 'replies of judges',
  index_shards: 'shards of indexes',
  page_bands: 'bands of near duplicates',
  corpus_pages: 'pages of corpora',
  pages: 'pages that no corpus has then',
  collections: 'Milvus collections',
  turns: 'journaled turns',
  rollout_shards: 'shards of rollouts',
  merged_weights: 'merged weights on this machine',
  blobs: 'blobs',
};

function show({ runs, amounts, left }: Collected, applied: boolean, io: CommandIo): void {
  const rows = Object.entries(amounts)
    .filter(([, amount]) => amount.count > 0)
    .map(([name, { count: found, bytes }]) => [WORDS[name] ?? name, count(found), bytes === null ? '' : count(bytes)]);
  if (rows.length === 0) io.out('there is nothing to remove');
  else {
    const columns = [{ title: applied ? 'removed' : 'would go' }, right('count'), right('bytes')];
    for (const line of renderTable(detectTerminal(io), columns, rows)) io.out(line);
  }
  for (const run of runs) io.out(`${applied ? 'dropped' : 'would drop'} ${run}`);
  for (const line of left) io.out(`left alone: ${line}`);
  if (!applied && rows.length > 0) io.out('nothing was changed; to remove it: the same with --apply');
}

const right = (title: string) => ({ title, align: 'right' as const });
