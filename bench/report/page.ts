/**
 * How large a report of many trajectories is, and how soon a browser shows it: `npm run bench -- report [N]`.
 * The trajectories are made (4,500 tokens each on average); the browser is the headless Chromium that npm carries.
 */
import { mkdtemp, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { writePage } from '../../cli/report/write-page.ts';
import { openChromium } from '../../tests/report/headless-chromium.ts';
import { madeReport } from '../../tests/report/made-report.ts';

const size = Number(process.argv[2] ?? 10_000);
const REPEATS = 5;

const folder = await mkdtemp(join(tmpdir(), 'exp-bench-report-'));
const browser = await openChromium();
try {
  const path = join(folder, 'report.html');
  const { report, trajectories } = madeReport(size);
  const { columns } = report.trajectories;
  const tokens = columns.tokens.reduce((sum, count) => sum + count, 0);
  await writePage(path, report, trajectories());
  const { size: bytes } = await stat(path);
  const times: Record<string, number[]> = {
    'first section shown': [],
    'all read': [],
    'one opened': [],
    'one filtered': [],
  };
  for (let repeat = 0; repeat < REPEATS; repeat += 1) {
    const page = await browser.newPage();
    const measure = async (name: string, work: () => Promise<unknown>, since = performance.now()): Promise<void> => {
      await work();
      times[name]?.push(performance.now() - since);
    };
    const began = performance.now();
    await page.goto(pathToFileURL(path).href, { waitUntil: 'commit' });
    await measure('first section shown', () => page.locator('#run').waitFor(), began);
    await measure('all read', () => page.waitForLoadState('load'), began);
    const names = page.getByRole('region', { name: 'List of trajectories' }).getByRole('button');
    await measure('one opened', async () => {
      await names.first().click();
      await page.locator('.turns').waitFor();
    });
    await measure('one filtered', async () => {
      const wanted = columns.id[size >> 1] as string;
      await page.getByRole('search').getByLabel('Task or question').fill(wanted);
      await page.getByRole('button', { name: wanted, exact: true }).waitFor();
    });
    await page.close();
  }
  const megabytes = Number((bytes / 1e6).toFixed(1));
  console.log(JSON.stringify({ trajectories: size, tokens, megabytes, bytes_each: Math.round(bytes / size) }));
  for (const [what, all] of Object.entries(times)) {
    const [median = 0] = all.toSorted((a, b) => a - b).slice(REPEATS >> 1);
    console.log(JSON.stringify({ what, median_ms: Math.round(median), repeats: REPEATS }));
  }
} finally {
  await browser.close();
  await rm(folder, { recursive: true, force: true });
}
