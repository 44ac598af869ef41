import { ExpError } from '../../../schemas/errors.ts';
import type { CorpusSource } from '../../../schemas/node-parameters.ts';
import type { SourcePage } from '../../environment.ts';
import type { RowReport } from './row-report.ts';

/** What a source needs of the machine it is read on; none of it decides what the pages say. */
export interface SourcePlace {
  /** A file, a folder or a glob; `installed_packages` needs none. */
  path?: string | undefined;
  /** The checkout whose packages `installed_packages` reads. */
  repoRoot: string;
}

/** The pages of one source, streamed, in an order that is the same on every machine. Formats load when asked for. */
export async function* openSource(
  name: string,
  spec: CorpusSource,
  place: SourcePlace,
  report: RowReport,
): AsyncGenerator<SourcePage> {
  const requirePath = (): string => {
    if (place.path !== undefined) return place.path;
    throw new ExpError('REF', `corpus.sources.${name}`, `a source of kind ${spec.kind} needs a path`);
  };
  switch (spec.kind) {
    case 'jsonl': {
      const { jsonlPages } = await import('./jsonl.ts');
      yield* jsonlPages(requirePath(), spec.fields, report);
      return;
    }
    case 'parquet': {
      const { parquetPages } = await import('./parquet.ts');
      yield* parquetPages(requirePath(), spec.fields, report);
      return;
    }
    case 'html': {
      const { htmlFolderPages } = await import('./html-folder.ts');
      yield* htmlFolderPages(requirePath(), report);
      return;
    }
    case 'markdown': {
      const { markdownFolderPages } = await import('./markdown-folder.ts');
      yield* markdownFolderPages(requirePath(), report);
      return;
    }
    case 'installed_packages': {
      const { installedPackages } = await import('./installed-packages.ts');
      for await (const page of installedPackages({ ecosystems: spec.ecosystems, repoRoot: place.repoRoot })) {
        report.accept();
        yield page;
      }
      return;
    }
    case 'wet':
      throw new ExpError('UNSUPPORTED', `corpus.sources.${name}`, 'WET files are not read yet; convert them to JSONL');
  }
}
