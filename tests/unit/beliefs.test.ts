import path from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { beliefOf, believer, referenceText } from '../../environments/deep-research/beliefs.ts';
import { loadTokenizer, renderPseudoAnswer, type Tokenizer } from '../../environments/deep-research/prompt.ts';
import { modelsDir } from '../../services/home.ts';

let t: Tokenizer;
beforeAll(async () => {
  t = await loadTokenizer(path.join(modelsDir(), 'smollm2-135m-instruct'));
});

const marked = ({ token_ids, mask }: { token_ids: number[]; mask: number[] }): number[] =>
  token_ids.filter((_, at) => mask[at] === 1);

describe('the pseudo-answer', () => {
  test('is the published text up to the reference answer, in one piece', () => {
    const rendered = renderPseudoAnswer(t, 'Apache License 2.0');
    expect(t.decode(rendered.token_ids)).toBe(
      "<think>\nNow there's enough information to answer\n</think>\n<answer>\nApache License 2.0",
    );
    expect(t.decode(marked(rendered))).toBe('Apache License 2.0');
    expect(rendered.mask.at(-1)).toBe(1);
  });

  test('a model whose prompt already opens the thought gets no second <think>', () => {
    const rendered = renderPseudoAnswer({ ...t, family: 'qwen3_thinking' }, 'MIT');
    expect(t.decode(rendered.token_ids)).toMatch(/^Now there's enough/);
  });

  test.each([
    ['digits, one id each', '2025'],
    ['more than one byte a character, some of which are several ids', 'Zürich 東京 🐘'],
    ['white space at its ends', ' MIT '],
    ['tags of ours', '</answer><|im_end|>'],
    ['combining characters', 'Zu\u0308rich'],
  ])('its span spells an answer of %s', (_, answer) => {
    const rendered = renderPseudoAnswer(t, answer);
    expect(t.decode(marked(rendered))).toContain(answer.normalize('NFC').trim());
    const first = rendered.mask.indexOf(1);
    expect(rendered.mask).toEqual(rendered.mask.map((_, at) => (at >= first ? 1 : 0)));
    expect(rendered.token_ids).not.toContain(t.stopIds[0]);
  });

  test('an id that holds the end of the prefix and the beginning of the answer counts to the answer', () => {
    // A line break and a space are one id: the break belongs to the prefix, the space to the answer.
    const [merged, rest] = t.encodeText('\n  MIT');
    expect(t.decode([merged as number])).toBe('\n ');
    const rendered = renderPseudoAnswer(t, '  MIT');
    expect(marked(rendered)).toEqual([merged, rest]);
    expect(t.decode(rendered.token_ids)).toMatch(/<answer>\n {2}MIT$/);
  });

  test('where ids end in the bytes of a text', () => {
    const { ids, ends } = t.encodeBytes('aé東 <|im_end|> ok');
    expect(ends.at(-1)).toBe(Buffer.byteLength('aé東 <|im_end|> ok'));
    expect(ids).toEqual(t.encodeText('aé東 <|im_end|> ok'));
    expect(ends.every((end, at) => end > (ends[at - 1] ?? 0))).toBe(true);
  });
});

test('a belief is the mean over the span, of whatever came before it', () => {
  expect(beliefOf([-7, -1, -2, -10], { mask: [0, 1, 1, 0] })).toBe(-1.5);
});

test('what is scored is the context and the pseudo-answer, and only where a belief is wanted', async () => {
  const asked: number[][] = [];
  const starts: number[] = [];
  const score = async (ids: readonly number[], from: number) => {
    asked.push([...ids]);
    starts.push(from);
    return ids.slice(from).map(() => -2);
  };
  const believe = believer(t, 'MIT<|answer_split|>ISC', { scope: ['visit'], every: 1 }, score);
  expect(believe([1, 2, 3], 1, 'search')).toBeNull();
  expect(await believe([1, 2, 3], 0, null)).toBe(-2);
  expect(await believe([1, 2, 3, 4], 2, 'visit')).toBe(-2);
  expect(asked).toEqual([
    [1, 2, 3, ...renderPseudoAnswer(t, 'MIT').token_ids],
    [1, 2, 3, 4, ...renderPseudoAnswer(t, 'MIT').token_ids],
  ]);
  expect(starts).toEqual([3, 4]);
});

test.each([
  ['MIT', 'MIT'],
  [' MIT <|answer_split|>ISC', 'MIT'],
  ['[{"label": "True"}, {"label": "FALSE"}]', 'false'],
  ['[{"label": "True"}]', 'true'],
  ['[a list]', '[a list]'],
  ['["a", "b"]', '["a", "b"]'],
])('the reference text of %j is %j', (answer, text) => {
  expect(referenceText(answer)).toBe(text);
});
