/**
 * A scripted expert that shows how the tools are used. It reads the question as anybody could, and from then on acts
 * only on what `search` and `visit` returned: a URL must stand in the results, a value in the observation.
 * Whatever it cannot find ends the demonstration with a reason; nothing is filled in from the task's answer.
 */
import type { World } from '../environment.ts';
import {
  type RenderedTurn,
  renderAction,
  renderForcedAnswer,
  renderTrajectory,
  type Tokenizer,
  type ToolName,
} from './prompt.ts';
import { FIELD_WORDS, type Field, type FieldValue, readField } from './tasks/fields.ts';
import { type Ecosystem, type FilledTemplate, parseQuestion } from './tasks/templates.ts';
import { runTool, type ToolCall } from './tools.ts';

export interface ExpertTask {
  question: string;
  answer: string;
  aliases: readonly string[];
  deny_urls: readonly string[];
}

export interface ExpertOptions {
  tokenizer: Tokenizer;
  agent: {
    tools: readonly string[];
    max_turns: number;
    max_turn_tokens: number;
    observation_tokens: number;
    search_results: number;
  };
  context_length: number;
}

export interface DemonstrationTurn {
  action: string;
  tool: string;
  observation: string | null;
  /** Pages the leak guard held back. */
  denied: number;
}

export type Demonstration =
  | { status: 'ok'; turns: DemonstrationTurn[]; answer: string; rendered: ReturnType<typeof renderTrajectory> }
  | { status: 'failed'; reason: string };

/** Ends a demonstration; counted by reason. */
class GivesUp extends Error {
  readonly reason: string;
  constructor(reason: string) {
    super(reason);
    this.reason = reason;
  }
}

/** Act out one task. Throws only when the world itself is out of order. */
export async function demonstrate(world: World, task: ExpertTask, options: ExpertOptions): Promise<Demonstration> {
  const filled = parseQuestion(task.question);
  if (!filled) return { status: 'failed', reason: 'question_not_understood' };
  const session = new Session(world, task, options);
  try {
    const answer = await answerQuestion(session, filled);
    if (answer !== task.answer && !task.aliases.includes(answer)) return { status: 'failed', reason: 'wrong_answer' };
    const rendered = renderTrajectory(options.tokenizer, {
      question: task.question,
      tools: options.agent.tools as ToolName[],
      turns: session.turns as RenderedTurn[],
    });
    if (!fitsContext(rendered, options)) return { status: 'failed', reason: 'context_too_long' };
    return { status: 'ok', turns: session.turns, answer, rendered };
  } catch (error) {
    if (error instanceof GivesUp) return { status: 'failed', reason: error.reason };
    throw error;
  }
}

/** Whether a rollout could have gone the same way: after each observation there must be room for a turn and for a forced answer. */
function fitsContext(
  { spans }: ReturnType<typeof renderTrajectory>,
  { tokenizer, agent, context_length }: ExpertOptions,
): boolean {
  const reserve = 2 * agent.max_turn_tokens + renderForcedAnswer(tokenizer, { cut: true }).length;
  return spans.every(({ kind, end }) => end + (kind === 'observation' ? reserve : 0) <= context_length);
}

async function answerQuestion(session: Session, filled: FilledTemplate): Promise<string> {
  const { template, ecosystem } = filled;
  const urls = await findPages(session, filled);
  const names = [...filled.names];
  const values = await readValues(session, ecosystem, names, urls, template.fields);
  if (template.relation === 'bridge') {
    const [dependency, field] = [values[0]?.items?.[0], template.fields[1] as Field];
    if (dependency === undefined) throw new GivesUp('value_not_found');
    const url = findUrl(session.lastObservation, dependency, ecosystem);
    if (url === undefined) throw new GivesUp('link_not_found');
    names.push(dependency);
    session.note = `${names[0]} depends on ${dependency}.`;
    values.push(...(await readValues(session, ecosystem, [dependency], [url], [field])));
  }
  const answer = template.derivation.answer(values, names);
  if (!answer) throw new GivesUp('no_answer_from_values');
  session.answer(`${factsRead(filled, names, values)} ${template.derivation.explain(answer)}`.trim(), answer.text);
  return answer.text;
}

/** Search until the page of every package named has been among the results; the second time in other words. */
async function findPages(session: Session, { template, ecosystem, names }: FilledTemplate): Promise<string[]> {
  const found = new Map<string, string>();
  const eco = ecosystem === 'npm' ? 'npm' : 'Python';
  const wordings = [
    (name: string) => `${name} ${eco}`,
    (name: string) => `${name} ${eco} package version license dependencies`,
  ];
  for (const [attempt, wording] of wordings.entries()) {
    const missing = names.filter((name) => !found.has(name));
    const thought =
      attempt === 0
        ? `I need ${goalOf(template.fields.slice(0, names.length), ecosystem)} of ${join(names)}.`
        : `I have not found ${join(missing)} yet.`;
    const observation = await session.call(thought, { tool: 'search', args: { query: missing.map(wording) } });
    for (const name of missing) {
      const url = findUrl(observation, name, ecosystem);
      if (url !== undefined) found.set(name, url);
    }
    if (found.size === names.length) return names.map((name) => found.get(name) as string);
  }
  throw new GivesUp('page_not_found');
}

/** Visit pages until every field has been read; pages whose values fell to the token budget are visited again alone. */
async function readValues(
  session: Session,
  ecosystem: Ecosystem,
  names: readonly string[],
  urls: readonly string[],
  fields: readonly Field[],
): Promise<FieldValue[]> {
  const values = new Map<number, FieldValue>();
  for (let attempt = 0; attempt < 2; attempt += 1) {
    const missing = urls.map((_, index) => index).filter((index) => !values.has(index));
    const goal = goalOf(
      missing.map((index) => fields[index] as Field),
      ecosystem,
    );
    if (attempt > 0 && missing.length === urls.length) break; // the same call would say the same
    const known = session.note ?? (attempt === 0 ? '' : 'Something is missing.');
    const observation = await session.call(
      `${known} I read ${join(missing.map((index) => names[index] as string))}.`.trim(),
      {
        tool: 'visit',
        args: { url: missing.map((index) => urls[index]), goal },
      },
    );
    for (const index of missing) {
      const value = readField(sectionOf(observation, urls[index] as string, urls), fields[index] as Field);
      if (value) values.set(index, value);
    }
    if (values.size === urls.length) return urls.map((_, index) => values.get(index) as FieldValue);
  }
  throw new GivesUp('value_not_found');
}

/** What is looked for, as pages word it: `version`, `license and version`, `requires Node`. */
function goalOf(fields: readonly Field[], ecosystem: Ecosystem): string {
  const words = fields.map((field) =>
    field === 'requires' ? `requires ${ecosystem === 'npm' ? 'Node' : 'Python'}` : FIELD_WORDS[field],
  );
  return [...new Set(words)].join(' and ');
}

function join(names: readonly string[]): string {
  return names.length < 2 ? (names[0] ?? '') : `${names.slice(0, -1).join(', ')} and ${names.at(-1)}`;
}

/** `chalk: version 4.1.2. ajv: license MIT.` */
function factsRead({ template }: FilledTemplate, names: readonly string[], values: readonly FieldValue[]): string {
  return values
    .map((value, index) => {
      const shown = template.derivation.reads === 'count' ? value.count : value.text;
      return `${names[index]}: ${FIELD_WORDS[template.fields[index] as Field]} ${shown}.`;
    })
    .join(' ');
}

const PURL_TYPES: Record<Ecosystem, string> = { npm: 'npm', python: 'pypi' };

/** The address of a package's page, if it stands in a text. */
function findUrl(text: string, name: string, ecosystem: Ecosystem): string | undefined {
  const wanted = `pkg:${PURL_TYPES[ecosystem]}/${name}`;
  return [...text.matchAll(/pkg:[^\s()[\]<>"',]+/g)].map(([url]) => url).find((url) => url === wanted);
}

/** What an observation says of one page: from the line with its URL to that of the next page visited. */
function sectionOf(observation: string, url: string, urls: readonly string[]): string {
  const lines = observation.split('\n');
  const start = lines.indexOf(url);
  if (start < 0) return '';
  const end = lines.findIndex((line, index) => index > start && urls.includes(line));
  return lines.slice(start + 1, end < 0 ? undefined : end).join('\n');
}

/** The conversation so far, inside the agent's limits. */
class Session {
  readonly turns: DemonstrationTurn[] = [];
  /** Said before the next visit. */
  note: string | undefined;
  readonly #world: World;
  readonly #task: ExpertTask;
  readonly #options: ExpertOptions;

  constructor(world: World, task: ExpertTask, options: ExpertOptions) {
    this.#world = world;
    this.#task = task;
    this.#options = options;
  }

  get lastObservation(): string {
    return this.turns.at(-1)?.observation ?? '';
  }

  async call(thought: string, call: ToolCall): Promise<string> {
    const { tokenizer, agent } = this.#options;
    // The answer needs a turn of its own.
    const action = this.#action(
      thought,
      `<tool_call>${JSON.stringify({ name: call.tool, arguments: call.args })}</tool_call>`,
      agent.max_turns - 1,
    );
    const result = await runTool(this.#world, call, {
      tokenizer,
      observationTokens: agent.observation_tokens,
      searchResults: agent.search_results,
      denyUrls: this.#task.deny_urls,
    });
    this.turns.push({ action, tool: call.tool, observation: result.text, denied: result.denied });
    return result.text;
  }

  answer(thought: string, answer: string): void {
    const action = this.#action(thought, `<answer>${answer}</answer>`, this.#options.agent.max_turns);
    this.turns.push({ action, tool: 'answer', observation: null, denied: 0 });
  }

  #action(thought: string, body: string, maxTurns: number): string {
    const { tokenizer, agent } = this.#options;
    if (this.turns.length >= maxTurns) throw new GivesUp('too_many_turns');
    const action = `<think>${thought}</think>\n${body}`;
    if (renderAction(tokenizer, action).length > agent.max_turn_tokens) throw new GivesUp('turn_too_long');
    return action;
  }
}
