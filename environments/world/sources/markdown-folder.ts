import { readFile } from 'node:fs/promises';
import type { SourcePage } from '../../environment.ts';
import { cleanText, cleanTitle } from './clean-text.ts';
import { listFiles } from './files.ts';
import type { RowReport } from './row-report.ts';

/** Pages from a folder of Markdown or plain text files; URLs are `doc:` and the path below the folder. */
export async function* markdownFolderPages(path: string, report: RowReport): AsyncGenerator<SourcePage> {
  for (const file of await listFiles(path, ['.md', '.markdown', '.txt', '.rst'])) {
    let decoded: string;
    try {
      decoded = new TextDecoder('utf-8', { fatal: true }).decode(await readFile(file.path));
    } catch {
      report.reject(file.name, 'not UTF-8');
      continue;
    }
    const { title, text } = parseMarkdown(decoded);
    if (text === '') {
      report.reject(file.name, 'no text');
      continue;
    }
    report.accept();
    yield { url: `doc:${file.name}`, title: title || file.name, text };
  }
}

/** Title from the front matter, else the first heading; the front matter itself is not text. */
export function parseMarkdown(source: string): { title: string; text: string } {
  const frontMatter = /^\ufeff?---\r?\n([\s\S]*?)\r?\n---\r?\n/.exec(source);
  const text = cleanText(frontMatter ? source.slice(frontMatter[0].length) : source);
  const declared = /^title:\s*(.+)$/m
    .exec(frontMatter?.[1] ?? '')?.[1]
    ?.trim()
    .replace(/^(["'])(.*)\1$/, '$2');
  const heading = /^#{1,3}\s+(.+?)\s*#*$/m.exec(text)?.[1] ?? /^(\S.*)\n(?:=+|-{3,})$/m.exec(text)?.[1];
  return { title: cleanTitle(declared ?? heading ?? ''), text };
}
