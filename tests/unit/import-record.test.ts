/** What becomes of one foreign record: its shape, DR-Venus's rules, ids and mask. Conversations are made by hand. */
import path from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { type Limits, runTrajectory } from '../../environments/deep-research/agent-loop.ts';
import { loadTokenizer, renderAction, type Tokenizer } from '../../environments/deep-research/prompt.ts';
import type { CleaningRules } from '../../environments/deep-research/trajectories/clean-conversation.ts';
import {
  type ImportedRecord,
  type ImportOptions,
  importRecord,
} from '../../environments/deep-research/trajectories/import-record.ts';
import {
  conversationOf,
  formatOf,
  type TrajectoryFormat,
} from '../../environments/deep-research/trajectories/read-record.ts';
import type { World } from '../../environments/environment.ts';
import { modelsDir } from '../../services/home.ts';

let tokenizer: Tokenizer;
beforeAll(async () => {
  tokenizer = await loadTokenizer(path.join(modelsDir(), 'smollm2-135m-instruct'));
});

const rules: CleaningRules & { verdict: string | null } = {
  tools: ['search', 'visit'],
  drop_repeated_calls: true,
  require_valid_format: true,
  require_correct: true,
  verdict: null,
};

function imported(row: object, format: TrajectoryFormat, options: Partial<ImportOptions> = {}): ImportedRecord {
  return importRecord(row, format, {
    clean: rules,
    tools: ['search', 'visit'],
    context_length: 4096,
    tokenizer,
    ...options,
  });
}

function kept(record: ImportedRecord): Extract<ImportedRecord, { status: 'kept' }> {
  if (record.status !== 'kept') throw new Error(JSON.stringify(record));
  return record;
}

const search = (...query: string[]) => call('search', { query });
const visit = (url: string, goal = 'licence') => call('visit', { url: [url], goal });
const call = (name: string, args: unknown) =>
  `<think>\nI look.\n</think>\n<tool_call>\n${JSON.stringify({ name, arguments: args })}\n</tool_call>`;
const answer = (text: string) => `<think>\nI know.\n</think>\n<answer>\n${text}\n</answer>`;

/** REDSearcher's clean shape: system, question, then action and response in turn. */
function row(...said: string[]) {
  const messages = said.flatMap((content, index) => [
    { role: 'assistant', content },
    ...(index < said.length - 1
      ? [{ role: 'user', content: `<tool_response>\nfound ${index}\n</tool_response>` }]
      : []),
  ]);
  return {
    question: 'What licence has zod?',
    gt: 'MIT',
    messages: [{ role: 'system', content: 'Theirs.' }, { role: 'user', content: 'What licence has zod?' }, ...messages],
  };
}
const actionsOf = (record: ImportedRecord) => kept(record).written.turns.map(({ action }) => action);

describe('each shape is one conversation', () => {
  const calls = [{ tool: 'search', args: { query: ['zod'] } }];

  test('messages with tool_calls as the chat APIs have them', () => {
    const record = {
      answer: 'MIT',
      messages: [
        { role: 'user', content: 'What licence has zod?' },
        {
          role: 'assistant',
          content: null,
          reasoning_content: 'I look.',
          tool_calls: [{ type: 'function', function: { name: 'search', arguments: '{"query": "zod"}' } }],
        },
        { role: 'tool', content: 'zod: MIT' },
        { role: 'assistant', content: 'MIT', reasoning_content: 'I know.' },
      ],
    };
    expect(formatOf(record)).toBe('messages');
    expect(conversationOf(record, 'messages')).toMatchObject({
      question: 'What licence has zod?',
      reference: { answer: 'MIT', aliases: [] },
      disorder: null,
      turns: [
        { thought: 'I look.', calls, answer: null, observations: ['zod: MIT'], isRewritten: true },
        { thought: 'I know.', calls: [], answer: 'MIT', observations: [] },
      ],
    });
    expect(actionsOf(imported(record, 'messages'))).toEqual([
      '<think>I look.</think>\n<tool_call>{"name":"search","arguments":{"query":["zod"]}}</tool_call>',
      '<think>I know.</think>\n<answer>MIT</answer>',
    ]);
  });

  test('ShareGPT, with calls in tags or in a turn of their own', () => {
    const record = {
      answer: 'MIT',
      conversations: [
        { from: 'human', value: 'What licence has zod?' },
        { from: 'function_call', value: '<think>I look.</think>{"name": "search", "arguments": {"query": ["zod"]}}' },
        { from: 'observation', value: 'zod: MIT' },
        { from: 'gpt', value: answer('MIT') },
      ],
    };
    expect(formatOf(record)).toBe('sharegpt');
    expect(conversationOf(record, 'sharegpt')).toMatchObject({
      turns: [{ thought: 'I look.', calls, observations: ['zod: MIT'] }, { answer: 'MIT' }],
    });
  });

  test('WebDancer: the question ends a message that explains the form, tags and all', () => {
    const preamble = 'A conversation between User and Assistant. …\n<tool_response>\nlike this\n</tool_response>';
    const record = {
      type: 'chatml',
      answer: [['MIT', 'the MIT licence']],
      messages: [
        { role: 'system', content: 'x' },
        { role: 'user', content: `${preamble}\n\nUser: What licence has zod?` },
        { role: 'assistant', content: search('zod') },
        { role: 'user', content: '<tool_response>\nzod: MIT\n</tool_response>' },
        { role: 'assistant', content: answer('MIT') },
      ],
    };
    expect(formatOf(record)).toBe('webdancer');
    expect(conversationOf(record, 'webdancer')).toMatchObject({
      question: 'What licence has zod?',
      reference: { answer: 'MIT', aliases: ['the MIT licence'] },
      disorder: null,
      turns: [{ calls, observations: ['zod: MIT'], isRewritten: false }, { answer: 'MIT' }],
    });
  });

  test('REDSearcher, raw: question and answer in meta, responses without tags, turns that are noise', () => {
    const record = {
      meta: { question: 'What licence has zod?', answer: 'MIT' },
      system_prompt: 'x',
      messages: [
        { role: 'user', content: 'What licence has zod? Use the tools.' },
        { role: 'assistant', content: 'hm' },
        { role: 'user', content: 'No call was found.' },
        { role: 'assistant', content: call('search', { queries: ['zod'] }) },
        { role: 'user', content: 'zod: MIT' },
        { role: 'assistant', content: `${answer('no')}\n<answer>MIT</answer>` },
      ],
    };
    expect(formatOf(record)).toBe('redsearcher');
    const { written, removed } = kept(imported(record, 'redsearcher'));
    expect(written.turns).toEqual([
      {
        action: '<think>I look.</think>\n<tool_call>{"name":"search","arguments":{"query":["zod"]}}</tool_call>',
        tool: 'search',
        observation: 'zod: MIT',
      },
      { action: '<think>I know.</think>\n<answer>MIT</answer>', tool: 'answer', observation: null },
    ]);
    expect(removed.unreadable).toBe(1);
  });

  test('REDSearcher, clean', () => {
    expect(formatOf(row(answer('MIT')))).toBe('redsearcher');
    expect(conversationOf(row(answer('MIT')), 'redsearcher')).toMatchObject({ reference: { answer: 'MIT' } });
  });

  test('LiteResearcher: steps with think, tool_calls and answer as columns', () => {
    const record = {
      question: 'What licence has zod?',
      reference_answer: 'MIT',
      steps: [
        { type: 'question', content: 'Question: What licence has zod?' },
        { type: 'assistant', think: 'I look.', tool_calls: [{ name: 'visit', urls: ['u'], goal: 'g' }], answer: null },
        { type: 'tool_response', content: '<tool_response>\nzod: MIT\n</tool_response>' },
        { type: 'assistant', think: 'I know.', tool_calls: [], answer: 'MIT' },
      ],
    };
    expect(formatOf(record)).toBe('literesearcher');
    expect(conversationOf(record, 'literesearcher')).toMatchObject({
      turns: [
        { calls: [{ tool: 'visit', args: { url: ['u'], goal: 'g' } }], observations: ['zod: MIT'] },
        { answer: 'MIT' },
      ],
    });
  });

  test.each([
    ['not an object', 7, 'not a JSON object'],
    ['no messages', { question: 'x' }, 'no messages'],
    ['a message without text', { messages: [{ role: 'user' }] }, 'messages[0] has no role and text'],
    ['a role nobody knows', { messages: [{ role: 'critic', content: 'x' }] }, 'messages[0] has no role and text'],
    ['nobody asks', { messages: [{ role: 'assistant', content: 'x' }] }, 'no question in messages'],
  ])('a record that is none says why: %s', (_, record, reason) => {
    expect(conversationOf(record, 'messages')).toBe(reason);
  });
});

describe("an action is trained as it was written where the agent's parser reads it", () => {
  const one = (action: string) => actionsOf(imported(row(action, answer('MIT')), 'redsearcher'))[0];

  test.each([
    ['spaces and line ends', search('zod')],
    [
      'the order of arguments',
      '<think>a</think><tool_call>{"name": "visit", "arguments": {"goal": "g", "url": ["u"]}}</tool_call>',
    ],
    ['JSON5', `<think>a</think><tool_call>{name: 'search', arguments: {query: ['zod']}}</tool_call>`],
  ])('%s', (_, action) => expect(one(action)).toBe(action));

  const ours = '<think>I look.</think>\n<tool_call>{"name":"search","arguments":{"query":["zod"]}}</tool_call>';
  test.each([
    ['other names of arguments', call('search', { queries: ['zod'] })],
    ['a text in the place of a list', call('search', { query: 'zod' })],
    ['text around the tags', `Well. ${search('zod')} So.`],
    ['tags in the thought', search('zod').replace('I look.', 'I look.<answer></answer>')],
  ])('and in our form where it does not: %s', (_, action) => expect(one(action)).toBe(ours));

  test('a thinking model does not write the tag that its prompt ends with', () => {
    const bare = search('zod').replace('<think>\n', '');
    expect(one(bare)).toBe(search('zod'));
  });
});

describe('cleaning, rule by rule', () => {
  const reasonOf = (record: ImportedRecord) => (record.status === 'dropped' ? record.reason : record.status);
  const dropped = (...said: string[]) => reasonOf(imported(row(...said), 'redsearcher'));

  test('turns of other tools go, with what they got back', () => {
    const python =
      '<think>a</think><tool_call>{"name": "PythonInterpreter", "arguments": {}}<code>1</code></tool_call>';
    const record = imported(row(search('zod'), python, answer('MIT')), 'redsearcher');
    expect(kept(record).written.turns.map(({ tool, observation }) => [tool, observation])).toEqual([
      ['search', 'found 0'],
      ['answer', null],
    ]);
    expect(record).toMatchObject({ turnsBefore: 3, removed: { other_tools: { PythonInterpreter: 1 } } });
  });

  test('the same queries in another order are a repeated call, and so is the same page for another goal', () => {
    const record = imported(
      row(search('a', 'b'), search('b', 'a', 'a'), visit('u', 'x'), visit('u', 'y'), search('a'), answer('MIT')),
      'redsearcher',
    );
    expect(kept(record).written.turns.map(({ observation }) => observation)).toEqual([
      'found 0',
      'found 2',
      'found 4',
      null,
    ]);
    expect(record).toMatchObject({ removed: { repeated_calls: 2 } });
  });

  test('repeated calls stay when the rule is off', () => {
    const clean = { ...rules, drop_repeated_calls: false };
    const record = imported(row(search('a'), search('a'), answer('MIT')), 'redsearcher', { clean });
    expect(kept(record).written.turns).toHaveLength(3);
  });

  test.each([
    ['no_think', [search('a').replace(/<think>[\s\S]*<\/think>/, ''), answer('MIT')]],
    ['no_think', [search('a'), '<answer>MIT</answer>']],
    ['no_tool_call', ['<think>a</think>', answer('MIT')]],
    ['unreadable_call', ['<think>a</think><tool_call>search zod</tool_call>', answer('MIT')]],
    [
      'several_calls',
      [`${search('a')}\n<tool_call>{"name":"search","arguments":{"query":["b"]}}</tool_call>`, answer('MIT')],
    ],
    ['answer_before_end', [`${search('a')}<answer>MIT</answer>`, answer('MIT')]],
    ['bad_arguments', [search('a', 'b', 'c', 'd', 'e', 'f'), answer('MIT')]],
    ['bad_arguments', [call('visit', { url: ['u'] }), answer('MIT')]],
    ['no_answer', [search('a')]],
    ['no_answer', [search('a'), '<think>I know.</think>MIT']],
    [
      'call_in_answer',
      [search('a'), `${answer('MIT')}<tool_call>{"name":"search","arguments":{"query":["b"]}}</tool_call>`],
    ],
    ['wrong_answer', [search('a'), answer('Apache-2.0')]],
  ])('%s', (reason, said) => expect(dropped(...said)).toBe(reason));

  test('messages that an agent does not see drop the conversation, whatever the rules are', () => {
    const { messages, ...rest } = row(search('a'), answer('MIT'));
    const chat = { ...rest, messages: messages.toSpliced(3, 0, { role: 'user', content: 'Go on.' }) };
    const silent = { ...rest, messages: messages.toSpliced(3, 1) };
    const nobody = { ...rest, messages: messages.slice(0, 2) };
    for (const clean of [rules, null]) {
      expect(reasonOf(imported(chat, 'redsearcher', { clean }))).toBe('bad_roles');
      expect(reasonOf(imported(silent, 'redsearcher', { clean }))).toBe('bad_roles');
      expect(reasonOf(imported(nobody, 'redsearcher', { clean }))).toBe('no_turns');
    }
  });

  test('without rules everything else stays as it was written', () => {
    const said = [search('a'), 'no tags at all', search('a'), answer('Apache-2.0')];
    const { written } = kept(imported(row(...said), 'redsearcher', { clean: null }));
    expect(written.turns.map(({ action }) => action)).toEqual(said);
    expect(written.turns.map(({ tool }) => tool)).toEqual(['search', null, 'search', 'answer']);
    expect(written.isCorrect).toBe(false);
  });

  test('a verdict decides where the row has one, else the reference', () => {
    const clean = { ...rules, verdict: 'judge' };
    const long = row(answer('It is the MIT licence, I think.'));
    const judged = (judge: unknown) => reasonOf(imported({ ...long, judge }, 'redsearcher', { clean }));
    expect(['CORRECT', true, 1, 'yes'].map(judged)).toEqual(['kept', 'kept', 'kept', 'kept']);
    expect(['incorrect', false, 0, null].map(judged)).toEqual(Array(4).fill('wrong_answer'));
    const unknown = { ...long, gt: null };
    expect(reasonOf(imported({ ...unknown, judge: null }, 'redsearcher', { clean }))).toBe('correctness_unknown');
    expect(reasonOf(imported({ ...unknown, judge: true }, 'redsearcher', { clean }))).toBe('kept');
  });

  test('what is longer than the context is dropped whole, and one token more keeps it', () => {
    const record = row(search('a'), answer('MIT'));
    const length = kept(imported(record, 'redsearcher')).written.rendered.token_ids.length;
    expect(imported(record, 'redsearcher', { context_length: length }).status).toBe('kept');
    expect(reasonOf(imported(record, 'redsearcher', { context_length: length - 1 }))).toBe('context_too_long');
  });
});

test('what the assistant wrote is trained, its stop token too; prompt and observations are not', () => {
  const { written } = kept(imported(row(search('a'), answer('MIT')), 'redsearcher'));
  const { token_ids, mask, spans } = written.rendered;
  const trained = spans.filter(({ kind }) => kind === 'action');
  expect(trained.map(({ start, end }) => tokenizer.decode(token_ids.slice(start, end)))).toEqual([
    `${search('a')}<|im_end|>`,
    `${answer('MIT')}<|im_end|>`,
  ]);
  const inside = (index: number) => trained.some(({ start, end }) => index >= start && index < end);
  expect(mask).toEqual(token_ids.map((_, index) => (inside(index) ? 1 : 0)));
  const text = tokenizer.decode(token_ids);
  expect(text).toContain('finds pages; gives title, url, snippet'); // our prompt
  expect(text).not.toContain('Theirs.');
  expect(text.endsWith('<|im_end|>')).toBe(true);
});

describe('a recorded trajectory of the agent loop, given as messages', () => {
  const limits: Limits = {
    maxTurns: 4,
    maxTurnTokens: 80,
    observationTokens: 96,
    searchResults: 3,
    contextLength: 1200,
  };
  const world: World = {
    search: async () => ({
      results: [{ url: 'npm:zod', title: 'zod </tool_response>', snippet: 'a\u0301 <|im_end|> 🙂', score: 1 }],
      denied: 0,
    }),
    visit: async (urls) =>
      urls.map((url) => ({ url, status: 'ok' as const, title: 'zod', text: 'Licence: MIT\n', truncated: false })),
    async close() {},
  };

  async function recorded(t: Tokenizer, actions: (string | number[])[]) {
    let turn = 0;
    const [trajectory] = await runTrajectory({
      trajectory_id: 'tr',
      group_id: 'g',
      sample_index: 0,
      checkpoint: 'weights',
      task: {
        task_id: 'zod',
        question: 'What licence has zod?',
        answer: 'MIT',
        aliases: [],
        capability: 'direct_retrieval',
        split: 'train',
        source: 'made',
        evidence: [],
        deny_urls: [],
      },
      world,
      sample: async (_, { maxTokens }) => {
        const action = actions[turn++] ?? '';
        const ids = typeof action === 'string' ? renderAction(t, action) : action;
        return {
          token_ids: ids.slice(0, maxTokens),
          logprobs: ids.slice(0, maxTokens).map(() => -1),
          weight_version: 'w',
        };
      },
      tokenizer: t,
      tools: ['search', 'visit'],
      limits,
      contextManagement: 'none',
      faults: null,
      sampling: { temperature: 1, top_p: 1, seed: 0 },
      reward: { outcome: 'exact_match', format_penalty: 0 },
    });
    return { trajectory, again: imported(trajectory, 'messages', { tokenizer: t, clean: null }) };
  }

  const written = (text: string) => text.replaceAll('\n', '');
  const actions = [search('zod'), written(visit('npm:zod')), answer('MIT')];

  test.each(['chatml', 'qwen3_thinking'] as const)('renders for SFT to its own ids and mask (%s)', async (family) => {
    const { trajectory, again } = await recorded({ ...tokenizer, family }, actions);
    expect(trajectory.termination).toBe('answer');
    const { rendered } = kept(again).written;
    expect(rendered.token_ids).toEqual(trajectory.token_ids);
    expect(rendered.mask).toEqual(trajectory.mask);
  });

  test('and so does one with a malformed turn, unless its parts can still be made out: then those are trained', async () => {
    const lost = await recorded(tokenizer, ['no tags at all', ...actions]);
    expect(kept(lost.again).written.rendered.token_ids).toEqual(lost.trajectory.token_ids);
    const legible = await recorded(tokenizer, [`Well. ${search('zod')}`, ...actions]);
    expect(kept(legible.again).rewritten).toBe(1);
    expect(kept(legible.again).written.rendered.token_ids).not.toEqual(legible.trajectory.token_ids);
  });

  test('what messages do not hold differs: sampled pieces that nobody would write, a cut turn, a forced answer', async () => {
    // "MIT" in three tokens, as a policy may well sample it
    const pieces = ['<think>I know.</think><answer>', 'M', 'I', 'T', '</answer>'].flatMap((part) =>
      tokenizer.encode(part),
    );
    const odd = await recorded(tokenizer, [[...pieces, ...tokenizer.encode('<|im_end|>')]]);
    expect(kept(odd.again).written.rendered.token_ids).not.toEqual(odd.trajectory.token_ids);

    const cut = await recorded(tokenizer, [tokenizer.encode(search('zod')), ...actions]); // no stop token
    const length = cut.trajectory.mask.filter((bit) => bit === 1).length;
    expect(kept(cut.again).written.rendered.mask.filter((bit) => bit === 1)).toHaveLength(length + 1);

    const forced = await recorded(tokenizer, [search('a'), search('b'), search('c'), search('d'), answer('MIT')]);
    expect(forced.trajectory.termination).toBe('max_turns');
    expect(kept(forced.again).written.rendered.token_ids).not.toEqual(forced.trajectory.token_ids);
  });
});
