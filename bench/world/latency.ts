/**
 * Milliseconds per search and per visit of a named world, one at a time and sixteen at once:
 *
 *     npm run bench -- world NAME QUESTIONS.jsonl [profile]
 *
 * Searches are what an agent sends (fused, five results); visits read the first result with the question as goal.
 * Nothing is cached between calls. CPU time of this process stands beside wall time, which is noisy on a shared machine.
 */
import { join } from 'node:path';
import { findWorld, openNamedWorld } from '../../cli/named-worlds.ts';
import { withStack } from '../../cli/open-stack.ts';
import { readJudgedQueries } from '../../environments/world/evaluate.ts';

const CONCURRENCIES = [1, 16];
const CALLS = 200;
const WARM_UP = 10;

const [name, questionsPath, profile] = process.argv.slice(2);
if (name === undefined || questionsPath === undefined)
  throw new Error('usage: latency.js NAME QUESTIONS.jsonl [profile]');

const queries = (await readJudgedQueries(join(questionsPath), null)).slice(0, CALLS);
await withStack(profile, async ({ pool, connections }) => {
  const { world, countTokens, close } = await openNamedWorld(pool, connections, await findWorld(pool, name));
  try {
    const urls = new Map<string, string>();
    const search = async (question: string): Promise<void> => {
      const { results } = await world.search([question], { limit: 5 });
      urls.set(question, results[0]?.url ?? '');
    };
    const visit = async (question: string): Promise<void> => {
      await world.visit([urls.get(question) ?? ''], question, { maxTokens: 256, countTokens });
    };
    for (const { text } of queries.slice(0, WARM_UP)) await search(text);
    for (const [what, call] of [
      ['search', search],
      ['visit', visit],
    ] as const) {
      for (const concurrency of CONCURRENCIES) {
        const figures = await measure(
          queries.map(({ text }) => text),
          concurrency,
          call,
        );
        console.log(JSON.stringify({ world: name, what, concurrency, ...figures }));
      }
    }
  } finally {
    await close();
  }
});

async function measure(questions: readonly string[], concurrency: number, call: (question: string) => Promise<void>) {
  const taken: number[] = [];
  const waiting = [...questions];
  const before = process.cpuUsage();
  const startedAt = performance.now();
  await Promise.all(
    Array.from({ length: concurrency }, async () => {
      for (let question = waiting.pop(); question !== undefined; question = waiting.pop()) {
        const callStartedAt = performance.now();
        await call(question);
        taken.push(performance.now() - callStartedAt);
      }
    }),
  );
  const wallMs = performance.now() - startedAt;
  const { user, system } = process.cpuUsage(before);
  taken.sort((a, b) => a - b);
  const at = (share: number): number =>
    round(taken[Math.min(taken.length - 1, Math.floor(share * taken.length))] as number);
  return {
    calls: taken.length,
    mean_ms: round(taken.reduce((sum, ms) => sum + ms, 0) / taken.length),
    p50_ms: at(0.5),
    p99_ms: at(0.99),
    per_second: round((taken.length / wallMs) * 1000),
    cpu_ms_per_call: round((user + system) / 1000 / taken.length),
  };
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}
