import { expect, test } from 'vitest';
import { parseAction } from '../../environments/deep-research/parse.ts';

const call = (body: string) => `<think>a</think>\n<tool_call>${body}</tool_call>`;
const search = '{"name": "search", "arguments": {"query": ["x"]}}';

test('a thought and a tool call are a tool call', () => {
  expect(parseAction(call(search))).toEqual({ kind: 'tool_call', tool: 'search', args: { query: ['x'] } });
});

test('a thought and an answer are an answer, trimmed', () => {
  expect(parseAction(' <think>a</think>\n<answer>\n MIT \n</answer>\n')).toEqual({ kind: 'answer', answer: 'MIT' });
});

test('JSON5 is read: single quotes, bare keys, a trailing comma', () => {
  expect(parseAction(call("{name: 'search', arguments: {query: ['x',],},}"))).toMatchObject({
    kind: 'tool_call',
    args: { query: ['x'] },
  });
});

test('more than one thought in sequence is allowed', () => {
  expect(parseAction(`<think>a</think> <think>b</think><answer>x</answer>`).kind).toBe('answer');
});

const corpus: [name: string, text: string][] = [
  ['empty', ''],
  ['no tags', 'The answer is MIT.'],
  ['no thought', `<tool_call>${search}</tool_call>`],
  ['text before the thought', `Sure! ${call(search)}`],
  ['thought not closed', `<think>a <tool_call>${search}</tool_call>`],
  ['nested thoughts', `<think><think>a</think></think><answer>x</answer>`],
  ['thoughts closed before opened', `</think><think><answer>x</answer>`],
  ['call inside the thought', `<think><tool_call>${search}</tool_call></think>`],
  ['two calls', `${call(search)}<tool_call>${search}</tool_call>`],
  ['nested calls', call(`<tool_call>${search}</tool_call>`)],
  ['call not closed', `<think>a</think><tool_call>${search}`],
  ['a call and an answer', `${call(search)}<answer>x</answer>`],
  ['two answers', '<think>a</think><answer>x</answer><answer>y</answer>'],
  ['empty answer', '<think>a</think><answer> \n</answer>'],
  ['text after the call', `${call(search)} and then`],
  ['text between', `<think>a</think> so <answer>x</answer>`],
  ['arguments not JSON', call('search(x)')],
  ['arguments missing', call('{"name": "search"}')],
  ['arguments a list', call('{"name": "search", "arguments": ["x"]}')],
  ['arguments a string', call('{"name": "search", "arguments": "{}"}')],
  ['name missing', call('{"arguments": {}}')],
  ['name a number', call('{"name": 5, "arguments": {}}')],
  ['a list', call('[1, 2]')],
  ['null', call('null')],
  ['unknown tool', call('{"name": "python", "arguments": {}}')],
  ['empty call', call('  ')],
  ['endless repetition', '<think>'.repeat(20_000)],
  ['endless answers', `<think>a</think>${'<answer>x</answer>'.repeat(20_000)}`],
  ['deep nesting', call(`{"name": "search", "arguments": ${'['.repeat(200_000)}`)],
  ['deep nesting in JSON5 reach', call(`{name: "search", arguments: ${'['.repeat(9_000)}`)],
  ['open brackets', '<'.repeat(1_000_000)],
];

test.each(corpus)('malformed: %s', (_, text) => {
  const started = performance.now();
  expect(parseAction(text, ['search', 'visit'])).toMatchObject({ kind: 'malformed', reason: expect.any(String) });
  expect(performance.now() - started).toBeLessThan(500);
});

test('a 1 MB argument is read, at once', () => {
  const long = 'a'.repeat(1_000_000);
  const started = performance.now();
  expect(parseAction(call(JSON.stringify({ name: 'search', arguments: { query: [long] } })))).toMatchObject({
    args: { query: [long] },
  });
  expect(performance.now() - started).toBeLessThan(500);
});

test('__proto__ in the arguments stays an own key and changes no prototype', () => {
  const action = parseAction(call('{"name": "search", "arguments": {"__proto__": {"polluted": 1}, "query": ["x"]}}'));
  expect(action).toMatchObject({ kind: 'tool_call' });
  expect(({} as Record<string, unknown>).polluted).toBeUndefined();
});
