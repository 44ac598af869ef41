/**
 * The two tools over HTTP, for clients and trainers of other systems, in the shapes they speak (Tongyi DeepResearch's
 * arguments, Search-R1's results):
 *
 *   POST /search {query: [..], topk?, deny_urls?}       → {result: [[{document: {title, url, contents}, score}]]}
 *   POST /visit  {url: [..], goal, max_tokens?, deny_urls?} → {result: [{url, status, title?, text?, truncated?, message?}]}
 *
 * One list of results a query. Nothing that is not in the corpus is ever fetched.
 */
import type { World } from '../environment.ts';
import { BadRequest, type Route } from './json-server.ts';

export interface WorldServerOptions {
  world: World;
  countTokens(text: string): number;
  /** Where a request does not say. */
  searchResults: number;
  visitTokens: number;
}

export function worldRoutes({ world, countTokens, searchResults, visitTokens }: WorldServerOptions): {
  search: Route;
  visit: Route;
} {
  return {
    search: async (body) => {
      const queries = strings(body, 'query');
      const options = { limit: count(body, 'topk', searchResults), denyUrls: strings(body, 'deny_urls', []) };
      const found = await Promise.all(queries.map((query) => world.search([query], options)));
      return {
        result: found.map(({ results }) =>
          results.map(({ url, title, snippet, score }) => ({
            document: { title, url, contents: `${title}\n${snippet}` },
            score,
          })),
        ),
      };
    },
    visit: async (body) => {
      const urls = strings(body, 'url');
      const { goal = '' } = body;
      if (typeof goal !== 'string') throw new BadRequest(400, '`goal` must be text');
      const maxTokens = count(body, 'max_tokens', visitTokens);
      return {
        result: await world.visit(urls, goal, { maxTokens, countTokens, denyUrls: strings(body, 'deny_urls', []) }),
      };
    },
  };
}

/** A list of texts; one text is a list of one. */
function strings(body: Record<string, unknown>, name: string, fallback?: string[]): string[] {
  const value = body[name] ?? fallback;
  const list = typeof value === 'string' ? [value] : value;
  if (!Array.isArray(list) || !list.every((item) => typeof item === 'string'))
    throw new BadRequest(400, `\`${name}\` must be a list of texts`);
  return list as string[];
}

const MOST = 100_000;

function count(body: Record<string, unknown>, name: string, fallback: number): number {
  const value = body[name] ?? fallback;
  if (!Number.isInteger(value) || (value as number) < 1 || (value as number) > MOST)
    throw new BadRequest(400, `\`${name}\` must be a whole number from 1 to ${MOST}`);
  return value as number;
}
