import { expect, test } from 'vitest';
import { canonicalJson, contentKey } from '../../schemas/canonical.ts';

test('key order, white space and absent values do not change a key', () => {
  expect(canonicalJson({ b: [1, 2.5], a: { d: null, c: 'x' }, e: undefined })).toBe(
    '{"a":{"c":"x","d":null},"b":[1,2.5]}',
  );
  expect(contentKey({ a: 1, b: 2 })).toBe(contentKey({ b: 2, a: 1 }));
});

test('a key is SHA-256 of the canonical bytes', () => {
  // printf '{}' | sha256sum
  expect(contentKey({})).toBe('44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a');
});

test('what JSON cannot hold is refused, not turned into null', () => {
  for (const value of [Number.NaN, Number.POSITIVE_INFINITY, [undefined], { f: () => 1 }]) {
    expect(() => canonicalJson(value)).toThrow(TypeError);
  }
});
