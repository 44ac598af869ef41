/** What the policy's text and the tools' text mean, for display. Pure; text that fits no form is shown as it is. */

export interface ReadAction {
  thought: string | null;
  call: { name: string; queries: string[]; urls: string[]; goal: string | null } | null;
  answer: string | null;
  /** What stands in no tag of ours. */
  rest: string;
}

export interface SearchResult {
  title: string;
  url: string;
  snippet: string;
}

export function readAction(text: string): ReadAction {
  let rest = text;
  const take = (tag: string): string | null => {
    const match = new RegExp(`<${tag}>([\\s\\S]*?)</${tag}>`).exec(rest);
    if (match === null) return null;
    rest = rest.slice(0, match.index) + rest.slice(match.index + match[0].length);
    return (match[1] as string).trim();
  };
  // A thinking model's template opens the tag, so only its end is sampled.
  const opened = !text.includes('<think>') && text.includes('</think>');
  if (opened) rest = `<think>${text}`;
  const thought = take('think');
  const call = readCall(take('tool_call'));
  const answer = take('answer');
  return call === 'unreadable'
    ? { thought, call: null, answer, rest: text }
    : { thought, call, answer, rest: rest.trim() };
}

function readCall(json: string | null): ReadAction['call'] | 'unreadable' {
  if (json === null) return null;
  try {
    const { name, arguments: given } = JSON.parse(json) as { name?: unknown; arguments?: Record<string, unknown> };
    if (typeof name !== 'string') return 'unreadable';
    const goal = given?.['goal'];
    return {
      name,
      queries: texts(given?.['query']),
      urls: texts(given?.['url']),
      goal: typeof goal === 'string' ? goal : null,
    };
  } catch {
    return 'unreadable';
  }
}

const texts = (value: unknown): string[] =>
  (Array.isArray(value) ? value : [value]).filter((item) => typeof item === 'string');

/** `1. title`, its URL, its snippet; null where the text is no such list. */
export function readResults(text: string): SearchResult[] | null {
  const results: SearchResult[] = [];
  const lines = text.split('\n');
  for (let at = 0; at < lines.length; at += 1) {
    const line = lines[at] as string;
    const head = `${results.length + 1}. `;
    if (line.startsWith(head)) {
      at += 1;
      results.push({ title: line.slice(head.length), url: lines[at] ?? '', snippet: '' });
      continue;
    }
    const current = results.at(-1);
    if (current === undefined) return null;
    current.snippet += `${current.snippet === '' ? '' : '\n'}${line}`;
  }
  return results.length === 0 ? null : results;
}
