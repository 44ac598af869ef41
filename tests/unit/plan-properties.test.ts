import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { stringify } from 'yaml';
import { type Fields, isFields, Random, randomSpec, type Value } from '../random-specs.ts';
import { temporaryFolder } from '../temporary-folder.ts';
import { keysOf, nodesOf } from './plan-fixture.ts';

/**
 * Random valid specs, each written in several ways. The order of stages and benchmarks is shuffled too: what is
 * measured after is named, so no result hangs on it.
 */
const SPECS = Number(process.env['EXP_PROPERTY_CASES'] ?? 40);
const FIRST_SEED = Number(process.env['EXP_PROPERTY_SEED'] ?? 20261121);

/** The same maps in another order; lists keep theirs. */
function shuffled(value: Value, random: Random): Value {
  if (!isFields(value)) return value;
  return Object.fromEntries(
    random.shuffled(Object.entries(value)).map(([name, item]) => [name, shuffled(item, random)]),
  );
}

/** Every leaf into one of two maps, which together are the whole. */
function split(value: Fields, random: Random): [Fields, Fields] {
  const [lower, upper]: [Fields, Fields] = [{}, {}];
  for (const [name, item] of Object.entries(value)) {
    // A `kind` decides the shape of its map, so shapes stay whole in one file or the other.
    if (isFields(item) && !('kind' in item) && random.below(3) > 0) {
      const [below, above] = split(item, random);
      if (Object.keys(below).length > 0) lower[name] = below;
      if (Object.keys(above).length > 0) upper[name] = above;
    } else (random.below(2) === 0 ? lower : upper)[name] = item;
  }
  return [lower, upper];
}

/** Before each section, and after each flow list: elsewhere a comment might stand inside a text. */
const withComments = (text: string): string =>
  text.replace(/^(?=[a-z_]+:)/gm, '\n  # a comment\n').replace(/\]$/gm, '] # another');

test(`${SPECS} random specs from seed ${FIRST_SEED}: comments, layout, order of keys and files change no key`, async () => {
  const distinct = new Set<string>();
  for (let seed = FIRST_SEED; seed < FIRST_SEED + SPECS; seed++) {
    const random = new Random(seed);
    const spec = randomSpec(random);
    const folder = temporaryFolder('exp-property-');
    const keys = async (text: string): Promise<Record<string, string>> => {
      const path = join(folder, 'spec.yaml');
      writeFileSync(path, text);
      return sortedKeys(keysOf(await nodesOf(path)));
    };
    const usual = await keys(stringify(spec));
    const [lower, upper] = split(spec, random);
    writeFileSync(join(folder, 'lower.yaml'), stringify(lower));
    const ways: Record<string, string> = {
      comments: withComments(stringify(spec)),
      'one line': JSON.stringify(spec),
      order: stringify(shuffled(spec, random)),
      files: stringify({ extends: ['lower.yaml'], ...upper }),
    };
    for (const [way, text] of Object.entries(ways))
      expect({ seed, way, keys: await keys(text) }).toEqual({ seed, way, keys: usual });
    distinct.add(JSON.stringify(usual));
  }
  expect(distinct.size).toBeGreaterThan(SPECS / 2); // the specs do differ in what they say
}, 120_000);

const sortedKeys = (keys: Record<string, string>): Record<string, string> =>
  Object.fromEntries(Object.entries(keys).sort(([a], [b]) => (a < b ? -1 : 1)));
