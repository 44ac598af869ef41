/** What a policy must beat: answers given without reading, or by reading one page with a fixed rule. No model. */
import type { Task } from '../../../schemas/task.ts';
import type { World } from '../../environment.ts';
import { normalizedTokens } from '../answer.ts';

type Answered = Pick<Task, 'answer' | 'capability'>;

/** The most frequent answer of the training tasks of a capability; of all of them where it has none. */
export function mostFrequentAnswers(training: readonly Answered[]): (task: Pick<Task, 'capability'>) => string {
  const overall = mostFrequent(training);
  const byCapability = new Map<string, string>();
  for (const capability of new Set(training.map((task) => task.capability))) {
    byCapability.set(capability, mostFrequent(training.filter((task) => task.capability === capability)));
  }
  return ({ capability }) => byCapability.get(capability) ?? overall;
}

function mostFrequent(tasks: readonly Answered[]): string {
  const counts = new Map<string, { answer: string; times: number }>();
  for (const { answer } of tasks) {
    const key = normalizedTokens(answer).join(' ');
    const entry = counts.get(key) ?? { answer, times: 0 };
    counts.set(key, { ...entry, times: entry.times + 1 });
  }
  return [...counts.values()].sort((a, b) => b.times - a.times || (a.answer < b.answer ? -1 : 1))[0]?.answer ?? '';
}

const READ_CHARACTERS = 4_000;

/** Search for the question as it stands, open the first result, and guess from that page. */
export async function answerFromFirstResult(world: World, task: Pick<Task, 'question' | 'deny_urls'>): Promise<string> {
  const { results } = await world.search([task.question], { limit: 1, denyUrls: task.deny_urls });
  const [first] = results;
  if (!first) return '';
  const [page] = await world.visit([first.url], task.question, {
    maxTokens: READ_CHARACTERS / 4,
    countTokens: (text) => Math.ceil(text.length / 4),
    denyUrls: task.deny_urls,
  });
  return page?.status === 'ok' ? guessFromPage(task.question, page.title, page.text) : '';
}

/**
 * The value of the `Label: value` line whose label shares most words with the question (of a counted list, its
 * length if the question asks how many); the page's title where no label fits.
 */
export function guessFromPage(question: string, title: string, text: string): string {
  const asked = new Set(normalizedTokens(question).map(stem));
  let best = { fit: 0, answer: title };
  for (const line of text.split('\n')) {
    const match = /^([\p{L}][\p{L} ]{1,40}?)(?: \((\d+)\))?: (.{1,200})$/u.exec(line.trim());
    if (!match) continue;
    const words = normalizedTokens(match[1] as string);
    const fit = words.filter((word) => asked.has(stem(word))).length / words.length;
    if (fit > best.fit)
      best = { fit, answer: (/\bhow many\b/i.test(question) ? match[2] : undefined) ?? (match[3] as string) };
  }
  return best.answer;
}

/** Enough to let `licenses` meet `license`. */
function stem(word: string): string {
  return word.length > 3 ? word.replace(/(?:ies|es|s|d)$/, '') : word;
}
