import { join } from 'node:path';
import { expect, test } from 'vitest';
import { demonstrate } from '../../environments/deep-research/expert.ts';
import { parseAction } from '../../environments/deep-research/parse.ts';
import { loadTokenizer } from '../../environments/deep-research/prompt.ts';
import type { World } from '../../environments/environment.ts';
import { cutToGoal } from '../../environments/world/passages.ts';
import { modelsDir } from '../../services/home.ts';

const tokenizer = await loadTokenizer(join(modelsDir(), 'smollm2-135m-instruct'));
const agent = {
  tools: ['search', 'visit'],
  max_turns: 4,
  max_turn_tokens: 160,
  observation_tokens: 256,
  search_results: 5,
};
const options = { tokenizer, agent, context_length: 1536 };

const PAGES: Record<string, string> = {
  'pkg:npm/alpha': '# alpha (npm)\n\nVersion: 1.2.3\n\nLicense: MIT\n\nDependencies (1): [beta](pkg:npm/beta)',
  'pkg:npm/beta': '# beta (npm)\n\nVersion: 4.5.6\n\nLicense: ISC\n\nDependencies (0): none',
  'pkg:npm/gamma': '# gamma (npm)\n\nVersion: 7.8.9\n\nDependencies (2): alpha, beta',
};

/** Pages that a query finds by their names; what is visited is cut as the real world cuts it. */
function worldOf(pages: Record<string, string>, found?: (query: string) => string[]): World {
  const byName = (query: string) =>
    Object.keys(pages).filter((url) => query.split(' ').includes(url.slice('pkg:npm/'.length)));
  return {
    async search(queries, { limit }) {
      const urls = [...new Set(queries.flatMap(found ?? byName))].slice(0, limit);
      return {
        results: urls.map((url) => ({ url, title: url.slice(8), snippet: pages[url] ?? '', score: 1 })),
        denied: 0,
      };
    },
    async visit(urls, goal, { maxTokens, countTokens }) {
      return urls.map((url) => {
        const text = pages[url];
        if (text === undefined) return { url, status: 'not_found', message: 'no page of the corpus has this URL' };
        return {
          url,
          status: 'ok',
          title: url.slice(8),
          ...cutToGoal(text, goal, Math.floor(maxTokens / urls.length), countTokens),
        };
      });
    },
    async close() {},
  };
}

const task = (question: string, answer: string) => ({ question, answer, aliases: [], deny_urls: [] });
const version = task('Which version of the npm package alpha is documented?', '1.2.3');

test('a demonstration is search, visit, answer, each well formed, and says what was read', async () => {
  const result = await demonstrate(worldOf(PAGES), version, options);
  if (result.status !== 'ok') throw new Error(result.reason);
  expect(result.turns.map(({ tool }) => tool)).toEqual(['search', 'visit', 'answer']);
  for (const { action } of result.turns) expect(parseAction(action, agent.tools).kind).not.toBe('malformed');
  expect(result.turns[2]?.action).toBe('<think>alpha: version 1.2.3.</think>\n<answer>1.2.3</answer>');
  expect(result.rendered.mask.length).toBe(result.rendered.token_ids.length);
});

test('several pages are read in one visit, and the sum is explained', async () => {
  const result = await demonstrate(
    worldOf(PAGES),
    task('How many dependencies do the npm packages alpha and gamma have in total?', '3'),
    options,
  );
  expect(result).toMatchObject({
    status: 'ok',
    answer: '3',
    turns: [{ tool: 'search' }, { tool: 'visit' }, { tool: 'answer' }],
  });
});

test('a bridge is crossed by the link that stands on the first page', async () => {
  const question = task(
    'The npm package alpha has a single dependency. Which version of that dependency is documented?',
    '4.5.6',
  );
  const result = await demonstrate(worldOf(PAGES), question, options);
  expect(result).toMatchObject({
    status: 'ok',
    turns: [{ tool: 'search' }, { tool: 'visit' }, { tool: 'visit' }, { tool: 'answer' }],
  });
  const unlinked = {
    ...PAGES,
    'pkg:npm/alpha': (PAGES['pkg:npm/alpha'] as string).replace('[beta](pkg:npm/beta)', 'beta'),
  };
  expect(await demonstrate(worldOf(unlinked), question, options)).toEqual({
    status: 'failed',
    reason: 'link_not_found',
  });
});

test('it knows nothing that the tools did not say: a page not found, a value not stated, a wrong value', async () => {
  expect(
    await demonstrate(
      worldOf(PAGES, () => ['pkg:npm/beta']),
      version,
      options,
    ),
  ).toEqual({ status: 'failed', reason: 'page_not_found' });
  expect(await demonstrate(worldOf({ 'pkg:npm/alpha': '# alpha (npm)\n\nLicense: MIT' }), version, options)).toEqual({
    status: 'failed',
    reason: 'value_not_found',
  });
  expect(await demonstrate(worldOf({ 'pkg:npm/alpha': '# alpha (npm)\n\nVersion: 9.9.9' }), version, options)).toEqual({
    status: 'failed',
    reason: 'wrong_answer',
  });
  expect(await demonstrate(worldOf(PAGES), task('Who are you?', 'me'), options)).toEqual({
    status: 'failed',
    reason: 'question_not_understood',
  });
});

test('it searches again in other words before it gives up', async () => {
  const result = await demonstrate(
    worldOf(PAGES, (query) => (query.includes('license') ? ['pkg:npm/alpha'] : ['pkg:npm/gamma'])),
    version,
    options,
  );
  expect(result).toMatchObject({
    status: 'ok',
    turns: [{ tool: 'search' }, { tool: 'search' }, { tool: 'visit' }, { tool: 'answer' }],
  });
});

test('the limits of the agent are its own', async () => {
  const within = (limits: object, context_length = 1536) =>
    demonstrate(worldOf(PAGES), version, { ...options, agent: { ...agent, ...limits }, context_length });
  expect(await within({ max_turns: 2 })).toEqual({ status: 'failed', reason: 'too_many_turns' });
  expect(await within({ max_turn_tokens: 20 })).toEqual({ status: 'failed', reason: 'turn_too_long' });
  expect(await within({}, 600)).toEqual({ status: 'failed', reason: 'context_too_long' });
});

test('an outage of the world is thrown, not counted as a page not found', async () => {
  const world = { ...worldOf(PAGES), search: () => Promise.reject(new Error('Milvus is down')) };
  await expect(demonstrate(world, version, options)).rejects.toThrow('Milvus is down');
});
