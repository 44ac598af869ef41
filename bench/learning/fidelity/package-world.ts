/** A small real world: a page for each npm package installed in this checkout. Search counts words that are shared. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { World } from '../../../environments/environment.ts';
import type { Task } from '../../../schemas/task.ts';
import { repoRoot } from '../../../services/home.ts';

interface Page {
  url: string;
  text: string;
  licence: string;
}

const words = (text: string): Set<string> => new Set(text.toLowerCase().match(/[a-z0-9]+/g) ?? []);

export function readPackages(): Page[] {
  const folder = join(repoRoot(), 'node_modules');
  return readdirSync(folder)
    .filter((name) => /^[a-z0-9]/.test(name))
    .sort()
    .flatMap((name) => {
      const { description, license, version } = JSON.parse(
        readFileSync(join(folder, name, 'package.json'), 'utf8'),
      ) as {
        description?: string;
        license?: unknown;
        version?: string;
      };
      if (typeof license !== 'string' || !description) return [];
      const text = `${description}\nVersion: ${version}\nLicence: ${license}\nInstall it with npm install ${name}.`;
      return [{ url: name, text, licence: license }];
    });
}

export function worldOf(pages: readonly Page[]): World {
  const byUrl = new Map(pages.map((page) => [page.url, page]));
  const vocabulary = pages.map((page) => ({ page, words: words(`${page.url} ${page.text}`) }));
  const ranked = (query: string, limit: number) => {
    const asked = words(query);
    const score = (known: ReadonlySet<string>) =>
      [...asked].filter((word) => known.has(word)).length / (1 + asked.size);
    return vocabulary
      .map(({ page, words: known }) => ({ url: page.url, title: page.url, snippet: page.text, score: score(known) }))
      .sort((a, b) => b.score - a.score || (a.url < b.url ? -1 : 1))
      .slice(0, limit);
  };
  return {
    search: async (queries, { limit }) => ({
      results: queries.flatMap((query) => ranked(query, limit)).slice(0, limit),
      denied: 0,
    }),
    visit: async (urls) =>
      urls.map((url) => {
        const page = byUrl.get(url);
        return page === undefined
          ? { url, status: 'not_found', message: 'There is no such page.' }
          : { url, status: 'ok', title: url, text: page.text, truncated: false };
      }),
    close: async () => undefined,
  };
}

export function tasksOf(pages: readonly Page[]): Task[] {
  return pages.map(({ url, licence }) => ({
    task_id: `licence-${url}`,
    question: `Which licence has the package ${url}?`,
    answer: licence,
    aliases: [],
    capability: 'direct_retrieval',
    split: 'train',
    source: 'packages',
    evidence: [url],
    deny_urls: [],
  }));
}
