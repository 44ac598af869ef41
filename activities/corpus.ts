import { Context } from '@temporalio/activity';
import type { Pool } from 'pg';
import { type CountTokens, chunkPage } from '../environments/world/chunker.ts';
import { loadCorpus } from '../environments/world/load-corpus.ts';
import { verifyPages } from '../environments/world/pages.ts';
import type { CorpusBody, Metric } from '../schemas/artifact.ts';
import { ExpError } from '../schemas/errors.ts';
import { nodeOf } from '../schemas/node-parameters.ts';
import type { ArtifactStore } from './adapters/artifact-store.ts';
import type { CpuActivities } from './index.ts';
import type { PlanReader } from './plan-reader.ts';
import { withPulse } from './pulse.ts';
import { throttled } from './throttled-progress.ts';

export interface CorpusDeps {
  plans: PlanReader;
  store: ArtifactStore;
  pool: Pool;
  embedders: { tokenCounter(model: string): Promise<CountTokens> };
  progress(key: string, done: number, total: number, detail: string): Promise<void>;
}

export const createCorpusActivities = ({
  plans,
  store,
  pool,
  embedders,
  progress,
}: CorpusDeps): Pick<CpuActivities, 'corpus'> => ({
  /**
   * Bring the pages of all sources into PostgreSQL and publish what is there. Runs again after a crash: pages already
   * stored are skipped. What the manifest promises is read back before it is published.
   */
  corpus: (ref) =>
    withPulse(async (moved) => {
      const signal = Context.current().cancellationSignal;
      const node = nodeOf('corpus', await plans.node(ref));
      const { sources, limit, near_duplicates, chunk } = node.parameters;
      const countTokens = chunk && (await embedders.tokenCounter(chunk.tokenizer.model));
      const report = throttled((done, detail) => progress(ref.key, done, limit.pages ?? 0, detail));
      const body = await loadCorpus({
        pool,
        corpusKey: ref.key,
        sources,
        limit,
        nearDuplicates: near_duplicates,
        paths: node.unkeyed.paths ?? {},
        expectRecords: node.unkeyed.expect,
        countChunks: countTokens && ((text) => chunkPage(text, chunk, countTokens).length),
        signal,
        onProgress(pages, detail) {
          if (signal.aborted) return; // the work itself stops at its next step
          moved();
          report(pages, detail);
        },
      });
      if (!(await verifyPages(pool, body))) {
        throw new ExpError('UNAVAILABLE', ref.id, 'pages changed while they were being loaded');
      }
      await report.last();
      await progress(ref.key, body.pages, body.pages, `${body.pages} pages from ${body.sources.length} sources`);
      return store.publish({
        key: ref.key,
        kind: 'corpus',
        inputs: await plans.lineage(ref),
        files: {},
        body,
        metrics: corpusMetrics(body),
      });
    }),
});

function corpusMetrics({ pages, bytes, dropped }: CorpusBody): Metric[] {
  const values = {
    'corpus/pages': pages,
    'corpus/bytes': bytes,
    ...Object.fromEntries(Object.entries(dropped).map(([name, count]) => [`corpus/dropped/${name}`, count])),
  };
  const timestamp_ms = Date.now();
  return Object.entries(values).map(([name, value]) => ({ name, step: 0, value, timestamp_ms }));
}
