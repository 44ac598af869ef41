import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { Browser, Page } from 'playwright-core';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { ShownTrajectory } from '../../cli/report/document.ts';
import { writePage } from '../../cli/report/write-page.ts';
import { openChromium } from '../report/headless-chromium.ts';
import { HOSTILE, type MadeReport, madeReport } from '../report/made-report.ts';

const SIZE = 250;

let folder: string;
let browser: Browser;
let made: MadeReport;
let all: ShownTrajectory[];
let address: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'exp-report-'));
  made = madeReport(SIZE);
  all = [];
  for await (const trajectory of made.trajectories()) all.push(trajectory);
  const path = join(folder, 'made.html');
  await writePage(path, made.report, made.trajectories());
  address = pathToFileURL(path).href;
  browser = await openChromium();
});

afterAll(async () => {
  await browser?.close();
  await rm(folder, { recursive: true, force: true });
});

/** Scripts that run within the page are texts: the checkout's code has no DOM. */
const COUNT_INFLATED = `
  globalThis.inflated = 0;
  globalThis.DecompressionStream = class extends DecompressionStream {
    constructor(format) {
      super(format);
      globalThis.inflated += 1;
    }
  };`;
const tryToGetOut = (url: string): string => `(async () => {
  const script = document.createElement('script');
  script.textContent = 'document.title = "taken"';
  const image = document.createElement('img');
  const loading = new Promise((resolve) => {
    image.onload = () => resolve(true);
    image.onerror = () => resolve(false);
  });
  image.src = '${url}';
  document.body.append(script, image);
  const fetched = await fetch('${url}').then(() => true, () => false);
  return { title: document.title, loaded: await loading, fetched };
})()`;
const COLOURS = `(() => {
  const style = getComputedStyle(document.documentElement);
  const names = [...document.styleSheets[0].cssRules[0].style].filter((name) => name.startsWith('--'));
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(name).trim()]));
})()`;

interface Opened {
  page: Page;
  /** What went wrong in the page, and every address it asked for. */
  problems: string[];
  asked: string[];
}

async function open(hash = '', colorScheme: 'light' | 'dark' = 'light'): Promise<Opened> {
  const page = await browser.newPage({ colorScheme });
  const problems: string[] = [];
  const asked: string[] = [];
  page.on('pageerror', ({ message }) => void problems.push(message));
  page.on('console', (message) => void (message.type() === 'error' && problems.push(message.text())));
  page.on('request', (request) => void asked.push(request.url()));
  // Counts what is inflated, before any script of the page runs.
  await page.addInitScript(COUNT_INFLATED);
  await page.goto(address + hash);
  return { page, problems, asked };
}

const inflated = (page: Page): Promise<number> => page.evaluate('globalThis.inflated');
const filter = (page: Page, label: string) => page.getByRole('search').getByLabel(label);
const list = (page: Page) => page.getByRole('region', { name: 'List of trajectories' }).getByRole('button');
const opened = (page: Page) => page.getByRole('article', { name: 'Trajectory' });

test('the reader filters at once, and inflates a chunk only when one of its trajectories is opened', async () => {
  const { page, problems, asked } = await open();
  const wanted = all.filter(({ outcome, failure_class }) => outcome === 'broken' && failure_class === 'engine');
  await filter(page, 'Outcome').selectOption({ label: 'broken' });
  await filter(page, 'Failure').selectOption({ label: 'engine' });
  expect(await page.getByRole('status').textContent()).toContain(`${wanted.length} of ${SIZE} trajectories`);
  expect(await list(page).allTextContents()).toEqual(wanted.slice(0, 25).map(({ id }) => id));
  expect(await inflated(page)).toBe(0);

  await list(page).first().click();
  await opened(page).getByRole('list').first().waitFor();
  expect(await inflated(page)).toBe(1);
  expect(await opened(page).getByRole('heading', { level: 3 }).textContent()).toBe(wanted[0]?.id);

  await filter(page, 'Outcome').selectOption({ label: 'all' });
  await filter(page, 'Failure').selectOption({ label: 'all' });
  await filter(page, 'Task or question').fill(all[7]?.question.slice(6, 30) as string);
  expect(await list(page).first().textContent()).toBe(all[7]?.id);
  expect({ problems, asked }).toEqual({ problems: [], asked: [address] });
  await page.close();
});

test('a trajectory is shown turn by turn, with its queries, results, pages, rewards and advantages', async () => {
  const { page } = await open();
  const wanted = all.find(
    ({ turns, outcome }) => turns.length >= 4 && turns[0]?.advantage !== null && outcome === 'right',
  );
  if (wanted === undefined) throw new Error('the made report has no such trajectory');
  await filter(page, 'Task or question').fill(wanted.id);
  await list(page).first().click();
  const turns = opened(page).locator('.turns > li');
  await turns.first().waitFor();
  expect(await turns.count()).toBe(wanted.turns.length);
  for (const [at, turn] of wanted.turns.entries()) {
    const text = (await turns.nth(at).textContent()) ?? '';
    expect(text).toContain(`Turn ${at + 1}: ${turn.tool}`);
    expect(text).toContain(`${turn.action_tokens} tokens sampled`);
    expect(text).toContain(`advantage ${turn.advantage}`);
    if (turn.reward !== null) expect(text).toContain(`reward ${turn.reward}`);
    if (turn.observation !== null)
      expect(text).toContain(`Observation: ${turn.observation.tokens.toLocaleString('en')} tokens`);
  }
  expect(await turns.nth(0).textContent()).toMatch(/search.*query: /s);
  expect(await turns.nth(0).locator('.results > li').count()).toBe(5);
  expect(await turns.nth(1).textContent()).toMatch(/visit for: .*page: https:\/\/example\.org\//s);
  expect(await turns.last().textContent()).toContain(`Answer: ${wanted.answer}`);
  await page.close();
});

test('the reader is worked by keyboard alone, and an address leads back to a trajectory', async () => {
  const { page } = await open();
  await list(page).first().focus();
  await page.keyboard.press('Enter');
  const title = opened(page).getByRole('heading', { level: 3 });
  expect(await page.evaluate('document.activeElement.textContent')).toBe(all[0]?.id);
  await page.keyboard.press('Tab');
  await page.keyboard.press('Enter');
  expect(await title.textContent()).toBe(all[1]?.id);
  const hash = new URL(page.url()).hash;
  await page.close();

  const again = await open(hash);
  expect(await opened(again.page).getByRole('heading', { level: 3 }).textContent()).toBe(all[1]?.id);
  await again.page.close();
});

test('what a corpus or a model wrote stays text', async () => {
  const { page, problems } = await open();
  await list(page).first().click();
  await opened(page).locator('.turns').waitFor();
  expect(await opened(page).textContent()).toContain(HOSTILE);
  expect(await page.title()).toBe('made');
  expect(await page.locator('img, main b, iframe').count()).toBe(0);
  expect(problems).toEqual([]);
  await page.close();
});

test('no script can be run and nothing can be loaded, whatever gets into the page', async () => {
  let hits = 0;
  const server = createServer((_, response) => {
    hits += 1;
    response.setHeader('access-control-allow-origin', '*').end('x');
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const outside = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
  const { page } = await open();
  expect(await page.evaluate(tryToGetOut(outside))).toEqual({ title: 'made', loaded: false, fetched: false });
  expect(hits).toBe(0);
  await page.close();
  server.close();
});

test('both themes have the contrast of WCAG AA, for text and for what pictures draw', async () => {
  for (const scheme of ['light', 'dark'] as const) {
    const { page } = await open('', scheme);
    const themed = await contrasts(page);
    await page.getByRole('button', { name: scheme === 'light' ? 'Dark theme' : 'Light theme' }).click();
    const other = await contrasts(page);
    expect(other).not.toEqual(themed);
    for (const { name, ratio, needed } of [...themed, ...other])
      expect({ name, ratio }).toEqual({ name, ratio: expect.toSatisfy((found: number) => found >= needed) });
    await page.close();
  }
});

/** Contrast of every colour we name against what it stands on. */
async function contrasts(page: Page): Promise<{ name: string; ratio: number; needed: number }[]> {
  const colours = await page.evaluate<Record<string, string>>(COLOURS);
  const ratio = (one: string, other: string): number => {
    const [light = 0, dark = 0] = [one, other].map((name) => luminance(colours[name] ?? '')).sort((a, b) => b - a);
    return (light + 0.05) / (dark + 0.05);
  };
  const texts = ['--text', '--quiet', '--accent'];
  const drawn = Object.keys(colours).filter((name) => /^--(series-\d|right|wrong|unfinished|broken)$/.test(name));
  expect(drawn).toHaveLength(12);
  return [
    ...texts.flatMap((name) =>
      ['--surface', '--raised'].map((on) => ({ name: `${name} on ${on}`, ratio: ratio(name, on), needed: 4.5 })),
    ),
    ...drawn.map((name) => ({ name, ratio: ratio(name, '--surface'), needed: 3 })),
  ];
}

/** Relative luminance of #rrggbb (WCAG 2.2). */
function luminance(colour: string): number {
  const channels = [1, 3, 5].map((at) => Number.parseInt(colour.slice(at, at + 2), 16) / 255);
  const [red = 0, green = 0, blue = 0] = channels.map((value) =>
    value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4,
  );
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

test('every picture has a name in words, and its numbers as a table', async () => {
  const { page } = await open();
  const pictures = page.locator('figure.picture');
  expect(await pictures.count()).toBeGreaterThanOrEqual(6);
  for (let at = 0; at < (await pictures.count()); at += 1) {
    const picture = pictures.nth(at);
    expect(await picture.locator('svg[role=img]').getAttribute('aria-label')).toMatch(/\w+\. \w+/);
    await picture.locator('summary').click();
    await picture.getByRole('row').nth(1).waitFor();
  }
  const forest = page.locator('figure', { hasText: 'Arms beside control' });
  expect(await forest.getByRole('row', { name: /no_filter/ }).textContent()).toContain('+2.0 [-6.0, +10.0]');
  await page.close();
});
