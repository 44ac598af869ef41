import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Ajv2020 } from 'ajv/dist/2020.js';
import { describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { jsonSchema, referenceFiles, SCHEMA_NAMES } from '../../cli/reference-files.ts';
import { type SchemaView, viewOf } from '../../plan/schema-walk.ts';
import { Experiment } from '../../schemas/experiment.ts';
import { Plan } from '../../schemas/plan.ts';
import { multihop, planFile, quickstart, ROOT } from './plan-fixture.ts';

const ANNOTATIONS = ['key', 'unit'];

function* parts(schema: SchemaView, path = ''): Generator<[string, SchemaView]> {
  yield [path, schema];
  for (const [name, part] of Object.entries(schema.properties ?? {})) yield* parts(part, `${path}.${name}`);
  for (const shape of [...(schema.oneOf ?? []), ...(schema.anyOf ?? [])])
    for (const [inner, part] of parts(shape, path)) if (inner !== path) yield [inner, part];
  if (schema.additionalProperties) yield* parts(schema.additionalProperties, `${path}.NAME`);
}

describe('the schema of experiments', () => {
  test('describes every field', () => {
    const silent = [...parts(viewOf(Experiment))].filter(
      ([path, part]) => part.description === undefined && !/\.(env|file)$/.test(path),
    );
    expect(silent.map(([path]) => path)).toEqual([]);
  });

  test('refuses unknown keys in every map of fields', () => {
    const open = [...parts(viewOf(Experiment))].filter(
      ([, part]) => part.properties !== undefined && part.additionalProperties !== false,
    );
    // The names of benchmarks stand beside its fields; that they exist is checked later.
    expect(open.map(([path]) => path)).toEqual(['.references.NAME']);
  });

  test('is a valid JSON Schema, strictly, as is every other', () => {
    for (const name of SCHEMA_NAMES) {
      const ajv = new Ajv2020({ strict: true, strictTypes: false, strictRequired: false });
      ajv.addVocabulary(ANNOTATIONS);
      expect(() => ajv.compile(jsonSchema(name)), name).not.toThrow();
    }
  });

  test.each([
    ['quickstart', quickstart],
    ['multihop', multihop],
    ['an overlay with references and `like`', 'curriculum: { b: { like: a, until: { steps: "${vars.n}" } } }'],
  ])('lets an editor accept %s', (_, source) => {
    const ajv = new Ajv2020({ strict: false });
    const text = source.endsWith('.yaml') ? readFileSync(source, 'utf8') : source;
    const validate = ajv.compile(jsonSchema('experiment'));
    expect(validate(parse(text)), JSON.stringify(validate.errors)).toBe(true);
  });

  test('lets an editor see a misspelt field', () => {
    const validate = new Ajv2020({ strict: false }).compile(jsonSchema('experiment'));
    expect(validate(parse('agent: { max_trns: 3 }'))).toBe(false);
  });
});

test('the generated files are current', () => {
  for (const [path, content] of referenceFiles())
    expect(readFileSync(join(ROOT, path), 'utf8') === content, `${path}: run exp schema --write`).toBe(true);
});

test('a plan is what its schema says', async () => {
  const { plan } = await planFile(quickstart);
  const validate = new Ajv2020({ strict: false }).compile(Plan);
  expect(validate(plan), JSON.stringify(validate.errors)).toBe(true);
});
