/**
 * The one renderer: turns a conversation into token ids and mask, for SFT, rollouts and hand-over alike.
 *
 * Every segment is tokenised once and on its own, so a turn's ids never depend on what follows it, and what a
 * policy sampled is never tokenised again. Left out on purpose: chat templates of the model directory are not
 * evaluated; both supported families write ChatML.
 */
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { Tokenizer as HfTokenizer } from '@huggingface/tokenizers';
import { ExpError } from '../../schemas/errors.ts';

export interface Tokenizer {
  /** Our own markup: special tokens become single ids. Never give it text that somebody else wrote. */
  encode(text: string): number[];
  /** Anybody's text: the spelling of a special token stays plain text, tags such as `<think>` keep their ids. */
  encodeText(text: string): number[];
  /** `encodeText`, and where in the text's UTF-8 bytes each id ends. Throws TOKENIZER_BYTES for one that is not byte-level. */
  encodeBytes(text: string): { ids: number[]; ends: number[] };
  decode(ids: readonly number[]): string;
  /** A completion ends with one of these, and it stays in the ids. */
  stopIds: number[];
  family: 'chatml' | 'qwen3_thinking';
}

export type ToolName = 'search' | 'visit';

export interface Conversation {
  question: string;
  tools: readonly ToolName[];
}

/** Text, or the ids of a recorded rollout, which stand as they are. */
export interface RenderedTurn {
  action: string | readonly number[];
  observation: string | readonly number[] | null;
}

/** Ids that follow a context, up to the last one of the reference answer; mask 1 where they overlap it. */
export interface PseudoAnswer {
  token_ids: number[];
  mask: number[];
}

export interface RenderedSpan {
  turn: number;
  kind: 'prompt' | 'action' | 'observation';
  start: number;
  end: number;
}

const TURN_END = '<|im_end|>';
const END_OF_TEXT = '<|endoftext|>';
const FORCED_ANSWER = 'Provide your final answer in <answer></answer> tags now.';
/** In the place of an observation that was dropped. */
const DROPPED = 'This result was removed to save space.';
const SUMMARY_REQUEST = [
  'Your context is full and will be cleared. Only the question, your summary and the result of your last call will stay.',
  'Write the summary now, without a tool call: what you found and where (URLs), what is ruled out, what you called last and why, what is left to do.',
].join('\n');

/** As inclusionAI/DR-Venus and GuoqingWang1/IGPO have it: the belief in an answer is read after these very words. */
const PSEUDO_PREFIX = "Now there's enough information to answer\n</think>\n<answer>\n";
const PSEUDO_CLOSING = '\n</answer>';

const ANSWER_FORM = '<think>...</think>\n<answer>only the answer</answer>';

const TOOL_LINES: Record<ToolName, string> = {
  search: 'search, arguments {"query": ["..."]}: finds pages; gives title, url, snippet.',
  visit: 'visit, arguments {"url": ["..."], "goal": "..."}: reads pages that search found.',
};

/** Load `tokenizer.json` and `tokenizer_config.json` of a Hugging Face model directory. */
export async function loadTokenizer(modelDir: string): Promise<Tokenizer> {
  const json = JSON.parse(await readFile(path.join(modelDir, 'tokenizer.json'), 'utf8')) as TokenizerJson;
  const config = JSON.parse(await readFile(path.join(modelDir, 'tokenizer_config.json'), 'utf8')) as TokenizerConfig;
  const template = await chatTemplate(modelDir, config);

  const markup = new HfTokenizer(json, config);
  const text = new HfTokenizer({ ...json, added_tokens: json.added_tokens.filter((token) => !token.special) }, config);
  const stopIds = [TURN_END, END_OF_TEXT].flatMap((token) => {
    const added = json.added_tokens.find(({ content }) => content === token);
    return added === undefined ? [] : [added.id];
  });
  if (markup.encode(`<|im_start|>${TURN_END}`, { add_special_tokens: false }).ids.length !== 2) {
    throw new ExpError(
      'TOKENIZER_FAMILY',
      modelDir,
      'the tokenizer has no <|im_start|> and <|im_end|> tokens; only ChatML models can be a policy',
    );
  }
  return {
    encode: (string) => markup.encode(string, { add_special_tokens: false }).ids,
    encodeText: (string) => pieces(string).flatMap((piece) => text.encode(piece, { add_special_tokens: false }).ids),
    encodeBytes: (string) => {
      const { ids, tokens } = text.encode(string, { add_special_tokens: false });
      const added = text.get_added_tokens_decoder();
      let end = 0;
      const ends: number[] = [];
      for (const [at, token] of tokens.entries()) {
        // A character of a byte-level token stands for one byte; an added token is written as it is.
        end += added.has(ids[at] as number) ? Buffer.byteLength(token) : token.length;
        ends.push(end);
      }
      if (end === Buffer.byteLength(string)) return { ids, ends };
      throw new ExpError(
        'TOKENIZER_BYTES',
        modelDir,
        'the tokens do not spell the bytes of the text: no byte-level BPE',
      );
    },
    decode: (ids) => (ids.length === 0 ? '' : markup.decode([...ids], { clean_up_tokenization_spaces: false })),
    stopIds,
    family: template.includes(`<|im_start|>assistant\\n<think>\\n'`) ? 'qwen3_thinking' : 'chatml',
  };
}

/**
 * Make text safe to stand inside our markup: it can neither close `<tool_response>` nor open a tag of ours.
 * Applying it twice changes nothing.
 */
export function escapeText(text: string): string {
  return text.replace(/<(?=[\s/]*(?:think|tool_call|tool_response|answer)\b|\|)/gi, '&lt;');
}

/** System, user and generation prompt. */
export function renderPrompt(t: Tokenizer, { question, tools }: Conversation): number[] {
  return [
    ...t.encode(`<|im_start|>system\n${systemPrompt(tools)}${TURN_END}\n<|im_start|>user\n`),
    ...t.encodeText(escapeText(question)),
    ...t.encode(`${TURN_END}\n${generationPrompt(t)}`),
  ];
}

/** What follows an action: the observation as a user turn, and the next generation prompt. `cut`: the action ended without a stop token. */
export function renderObservation(t: Tokenizer, text: string, { cut = false } = {}): number[] {
  return [
    ...t.encode(`${closing(cut)}\n<|im_start|>user\n<tool_response>\n`),
    ...t.encodeText(escapeText(text)),
    ...t.encode(`\n</tool_response>${TURN_END}\n${generationPrompt(t)}`),
  ];
}

/** Stands in the place of an observation when a limit is reached. */
export function renderForcedAnswer(t: Tokenizer, { cut = false } = {}): number[] {
  return t.encode(`${closing(cut)}\n<|im_start|>user\n${FORCED_ANSWER}${TURN_END}\n${generationPrompt(t)}`);
}

/**
 * An answer the policy did not give, as if it had decided to: what its belief in that answer is measured on. Tokenised in
 * one piece, and an id counts to the answer as soon as one of its bytes does. Nothing after the answer can change its
 * probability, so the ids end with it. No ids are marked when there is no answer.
 */
export function renderPseudoAnswer(t: Tokenizer, answer: string): PseudoAnswer {
  // The generation prompt opens the thought where the chat template does; elsewhere the policy would.
  const prefix = `${t.family === 'qwen3_thinking' ? '' : '<think>\n'}${PSEUDO_PREFIX}`;
  const reference = answer.normalize('NFC'); // as tokenizers do, so that bytes can be counted
  const { ids, ends } = t.encodeBytes(`${prefix}${reference}${PSEUDO_CLOSING}`);
  const start = Buffer.byteLength(prefix);
  const end = start + Buffer.byteLength(reference);
  const mask = ids.map((_, at) => ((ends[at] as number) > start && (ends[at - 1] ?? 0) < end ? 1 : 0));
  const length = mask.lastIndexOf(1) + 1;
  return { token_ids: ids.slice(0, length), mask: mask.slice(0, length) };
}

/** Takes the place of an observation that is dropped when the context is full. */
export function renderDropped(t: Tokenizer, { cut = false } = {}): number[] {
  return renderObservation(t, DROPPED, { cut });
}

/** Asks for the summary with which the next branch begins, in the place of the observation that was too much. */
export function renderSummaryRequest(t: Tokenizer, { cut = false } = {}): number[] {
  return t.encode(`${closing(cut)}\n<|im_start|>user\n${SUMMARY_REQUEST}${TURN_END}\n${generationPrompt(t)}`);
}

/** Ends a completion that was cut; what is rendered with `cut` begins with it. */
export function renderClosing(t: Tokenizer): number[] {
  return t.encode(closing(true));
}

/** Whether a completion ended without a stop token. */
export function isCut(t: Tokenizer, ids: readonly number[]): boolean {
  return !t.stopIds.includes(ids.at(-1) ?? -1);
}

/** An action somebody wrote down, as the policy would have sampled it: with the stop token at its end. */
export function renderAction(t: Tokenizer, action: string): number[] {
  const body = action.endsWith(TURN_END) ? action.slice(0, -TURN_END.length) : action;
  const sampled = t.family === 'qwen3_thinking' ? body.replace(/^\s*<think>\n?/, '') : body;
  return [...t.encodeText(sampled), ...t.encode(TURN_END)];
}

/** What the generation prompt already wrote of an action; a reader of the action puts it in front. */
export function actionPrefix(t: Tokenizer): string {
  return t.family === 'qwen3_thinking' ? '<think>\n' : '';
}

/** A whole conversation for SFT: the ids and mask a rollout of the same content would have. Mask 1 = trained. */
export function renderTrajectory(
  t: Tokenizer,
  { turns, ...conversation }: Conversation & { turns: readonly RenderedTurn[] },
): { token_ids: number[]; mask: number[]; spans: RenderedSpan[] } {
  const token_ids: number[] = [];
  const mask: number[] = [];
  const spans: RenderedSpan[] = [];
  const append = (turn: number, kind: RenderedSpan['kind'], ids: readonly number[]) => {
    const start = token_ids.length;
    for (const id of ids) {
      token_ids.push(id);
      mask.push(kind === 'action' ? 1 : 0);
    }
    spans.push({ turn, kind, start, end: token_ids.length });
  };

  append(0, 'prompt', renderPrompt(t, conversation));
  for (const [turn, { action, observation }] of turns.entries()) {
    append(turn, 'action', typeof action === 'string' ? renderAction(t, action) : action);
    if (observation === null) continue;
    append(turn, 'observation', typeof observation === 'string' ? renderObservation(t, observation) : observation);
  }
  return { token_ids, mask, spans };
}

/** The turns of a recorded rollout, as ids: rendering them gives the rollout's own ids and mask. */
export function recordedTurns({
  token_ids,
  spans,
}: {
  token_ids: readonly number[];
  spans: readonly RenderedSpan[];
}): RenderedTurn[] {
  const turns: RenderedTurn[] = [];
  for (const { turn, kind, start, end } of spans) {
    if (kind === 'prompt') continue;
    const ids = token_ids.slice(start, end);
    turns[turn] =
      kind === 'action' ? { action: ids, observation: null } : { action: turns[turn]?.action ?? [], observation: ids };
  }
  return turns;
}

/** Short, because every token of it is prefilled for every trajectory. */
function systemPrompt(tools: readonly ToolName[]): string {
  if (tools.length === 0) return `Answer the question. Write:\n${ANSWER_FORM}`; // closed book
  return [
    'Answer the question with facts found by the tools.',
    'Tools:',
    ...tools.map((tool) => TOOL_LINES[tool]),
    'Think, then make one tool call, or answer when you know:',
    `<think>...</think>\n<tool_call>{"name": "...", "arguments": {...}}</tool_call>`,
    ANSWER_FORM,
  ].join('\n');
}

const LONGEST_RUN = 500;

/** Byte-pair merging takes ten seconds for a word of a million letters, so such words are cut; other text is one piece. */
function pieces(text: string): string[] {
  const cuts = [0];
  for (const { index, 0: run } of text.matchAll(/\S+/g)) {
    for (let at = LONGEST_RUN; at < run.length; at += LONGEST_RUN) {
      const splitsPair = run.charCodeAt(at) >= 0xdc00 && run.charCodeAt(at) <= 0xdfff;
      cuts.push(index + at + (splitsPair ? 1 : 0));
    }
  }
  return cuts.map((start, index) => text.slice(start, cuts[index + 1]));
}

function generationPrompt(t: Tokenizer): string {
  return `<|im_start|>assistant\n${actionPrefix(t)}`;
}

/** A completion that was cut has no stop token of its own; ours closes it, untrained. */
function closing(cut: boolean): string {
  return cut ? TURN_END : '';
}

interface TokenizerJson {
  added_tokens: { id: number; content: string; special: boolean }[];
  [key: string]: unknown;
}
interface TokenizerConfig {
  chat_template?: string;
  [key: string]: unknown;
}

/** Newer directories keep the template in a file of its own; a model without one is plain ChatML. */
async function chatTemplate(modelDir: string, config: TokenizerConfig): Promise<string> {
  if (typeof config.chat_template === 'string') return config.chat_template;
  try {
    return await readFile(path.join(modelDir, 'chat_template.jinja'), 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return '';
    throw error;
  }
}
