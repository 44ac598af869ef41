import { ExpError } from '../../../schemas/errors.ts';
import type { CorpusSource } from '../../../schemas/node-parameters.ts';
import type { SourcePage } from '../../environment.ts';
import { cleanText, cleanTitle } from './clean-text.ts';
import type { RowReport } from './row-report.ts';

/**
 * The pages of one source, streamed, in an order that is the same on every machine.
 * `path` is a file, a folder or a glob; for `installed_packages` the checkout. Formats load when asked for.
 */
export async function* openSource(
  name: string,
  spec: CorpusSource,
  path: string,
  report: RowReport,
): AsyncGenerator<SourcePage> {
  switch (spec.kind) {
    case 'jsonl': {
      const { jsonlPages } = await import('./jsonl.ts');
      yield* jsonlPages(path, spec.fields, report);
      return;
    }
    case 'parquet': {
      const { parquetPages } = await import('./parquet.ts');
      yield* parquetPages(path, spec.fields, report);
      return;
    }
    case 'html': {
      const { htmlFolderPages } = await import('./html-folder.ts');
      yield* htmlFolderPages(path, report);
      return;
    }
    case 'markdown': {
      const { markdownFolderPages } = await import('./markdown-folder.ts');
      yield* markdownFolderPages(path, report);
      return;
    }
    case 'installed_packages': {
      const { installedPackages } = await import('./installed-packages.ts');
      for await (const page of installedPackages({ ecosystems: spec.ecosystems, root: path })) {
        report.accept();
        yield cleanPage(page);
      }
      return;
    }
    case 'wet':
      throw new ExpError('UNSUPPORTED', `corpus.sources.${name}`, 'WET files are not read yet; convert them to JSONL');
  }
}

/** PostgreSQL holds no NUL, in text or in JSON. */
function cleanPage({ url, title, text, facts }: SourcePage): SourcePage {
  const cleanFact = (fact: string | string[]): string | string[] =>
    Array.isArray(fact) ? fact.map(cleanTitle) : cleanTitle(fact);
  return {
    url,
    title: cleanTitle(title),
    text: cleanText(text),
    ...(facts && { facts: Object.fromEntries(Object.entries(facts).map(([name, fact]) => [name, cleanFact(fact)])) }),
  };
}
