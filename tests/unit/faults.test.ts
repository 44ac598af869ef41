import path from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { drawFault } from '../../environments/deep-research/faults.ts';
import { loadTokenizer, type Tokenizer } from '../../environments/deep-research/prompt.ts';
import { runTool, type ToolOptions } from '../../environments/deep-research/tools.ts';
import type { World } from '../../environments/environment.ts';
import { modelsDir } from '../../services/home.ts';

let tokenizer: Tokenizer;
beforeAll(async () => {
  tokenizer = await loadTokenizer(path.join(modelsDir(), 'smollm2-135m-instruct'));
});

const shares = { search: { empty: 0.1, error: 0.05 }, visit: { truncated: 0.25 } };
const draws = (tool: string, count = 20_000) =>
  Array.from({ length: count }, (_, seed) => drawFault(shares, { tool, seed, turn: seed % 7 }));
const shareOf = (drawn: (string | null)[], fault: string) => drawn.filter((one) => one === fault).length / drawn.length;

describe('faults are drawn', () => {
  test('in the declared shares', () => {
    const drawn = draws('search');
    // Three standard errors of a share of 0.1 over 20,000 calls are 0.0064.
    expect(Math.abs(shareOf(drawn, 'empty') - 0.1)).toBeLessThan(0.0064);
    expect(Math.abs(shareOf(drawn, 'error') - 0.05)).toBeLessThan(0.0064);
    expect(Math.abs(shareOf(draws('visit'), 'truncated') - 0.25)).toBeLessThan(0.0092);
  });
  test('alike at every attempt, and not together in all samples or turns', () => {
    expect(draws('visit', 500)).toEqual(draws('visit', 500));
    const turns = Array.from({ length: 200 }, (_, turn) => drawFault(shares, { tool: 'visit', seed: 3, turn }));
    expect(new Set(turns)).toEqual(new Set([null, 'truncated']));
  });
  test('never where none are declared', () => {
    expect(drawFault(null, { tool: 'search', seed: 1, turn: 1 })).toBeNull();
    expect(drawFault({ search: { empty: 1 } }, { tool: 'visit', seed: 1, turn: 1 })).toBeNull();
    expect(drawFault({ search: { empty: 1 } }, { tool: 'search', seed: 1, turn: 1 })).toBe('empty');
  });
});

describe('a faulty tool', () => {
  const page = { url: 'npm:zod', title: 'zod', text: 'abcdefgh'.repeat(4) };
  const world: World = {
    search: async () => ({ results: [{ ...page, snippet: page.text, score: 1 }], denied: 0 }),
    visit: async (urls) => urls.map((url) => ({ ...page, url, status: 'ok', truncated: false })),
    close: async () => undefined,
  };
  const options = (fault: ToolOptions['fault']): ToolOptions => ({
    tokenizer,
    observationTokens: 128,
    searchResults: 3,
    fault: fault ?? null,
  });
  const search = (fault: ToolOptions['fault']) =>
    runTool(world, { tool: 'search', args: { query: ['zod'] } }, options(fault));
  const visit = (fault: ToolOptions['fault']) =>
    runTool(world, { tool: 'visit', args: { url: ['npm:zod'], goal: 'x' } }, options(fault));

  test('finds nothing, says an error, or gives half a page, and its span says which', async () => {
    expect(await search('empty')).toMatchObject({ text: 'No results.', status: 'fault_empty', urls: [] });
    expect(await search('error')).toMatchObject({ text: 'Error: the service did not answer.', status: 'fault_error' });
    expect(await visit('error')).toMatchObject({ status: 'fault_error', urls: [] });
    expect(await visit('truncated')).toMatchObject({
      text: `zod\nnpm:zod\n${'abcdefgh'.repeat(2)}`,
      status: 'fault_truncated',
    });
    expect((await visit('empty')).text.trim()).toBe('zod\nnpm:zod');
    expect((await visit('empty')).status).toBe('fault_empty');
  });
  test('says of a wrong call that it is wrong', async () => {
    const wrong = await runTool(world, { tool: 'search', args: {} }, options('empty'));
    expect(wrong.status).toBe('tool_error');
  });
});
