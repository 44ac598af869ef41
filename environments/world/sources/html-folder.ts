import { readFile } from 'node:fs/promises';
import type { SourcePage } from '../../environment.ts';
import { listFiles } from './files.ts';
import { htmlToMarkdown } from './html-to-markdown.ts';
import type { RowReport } from './row-report.ts';

/** Pages from a folder of HTML files; URLs are `doc:` and the path below the folder. */
export async function* htmlFolderPages(path: string, report: RowReport): AsyncGenerator<SourcePage> {
  for (const file of await listFiles(path, ['.html', '.htm', '.xhtml'])) {
    const page = htmlToMarkdown(await readFile(file.path));
    if (typeof page === 'string') {
      report.reject(file.name, page);
      continue;
    }
    report.accept();
    yield { url: `doc:${file.name}`, title: page.title || file.name, text: page.text };
  }
}
