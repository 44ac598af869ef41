/**
 * Schemas to validators. The build writes them as plain code, because loading TypeBox and compiling a schema takes ten
 * times longer than validating a spec; tests, which run from sources, compile them when asked.
 */
import { Ajv, type Options } from 'ajv';
import standalone from 'ajv/dist/standalone/index.js';
import type { TObject, TSchema } from 'typebox';
import { Experiment } from '../schemas/experiment.ts';
import { Profile } from '../schemas/profile.ts';
import type { CompiledSchema, CompiledSchemas } from './compiled-schemas.ts';

const ANNOTATIONS = ['key', 'unit', 'code', 'holds', 'composed'];
/** The schemas are ours, and a test checks them: checking and optimising them takes longer than using them. */
const QUICK: Options = { allErrors: true, strict: false, validateSchema: false, code: { optimize: false } };

const SOURCES: Record<keyof CompiledSchemas, { schema: TObject; options: Options }> = {
  experiment: { schema: Experiment, options: { ...QUICK, verbose: true, discriminator: true } },
  profile: { schema: Profile, options: QUICK },
};
const NAMES = Object.keys(SOURCES) as (keyof CompiledSchemas)[];

export function compileSchemas(): CompiledSchemas {
  return { experiment: compileLate('experiment'), profile: compileLate('profile') };
}

function compileLate(name: keyof CompiledSchemas): CompiledSchema {
  const { schema, options } = SOURCES[name];
  const ajv = ajvWith(options);
  const compiled: Partial<CompiledSchema> = {};
  const compileAll = (schemas: Record<string, object>) =>
    Object.fromEntries(Object.entries(schemas).map(([name, part]) => [name, ajv.compile(part)]));
  return {
    schema,
    get outline() {
      compiled.outline ??= ajv.compile(outlineOf(schema));
      return compiled.outline;
    },
    get sections() {
      compiled.sections ??= compileAll(sectionsOf(schema));
      return compiled.sections;
    },
    get entries() {
      compiled.entries ??= compileAll(entriesOf(schema));
      return compiled.entries;
    },
  };
}

/** The same as a CommonJS module: what `compiled-schemas.ts` loads where the build has put it. */
export function schemaCode(): string {
  const parts = NAMES.map((name) => {
    const { schema, options } = SOURCES[name];
    const ajvOf = () => ajvWith({ ...options, code: { source: true } });
    const codeOf = (schemas: Record<string, object>): string => {
      const ajv = ajvOf();
      for (const [part, schemaOfPart] of Object.entries(schemas)) ajv.addSchema(schemaOfPart, part);
      return scoped(standalone.default(ajv, Object.fromEntries(Object.keys(schemas).map((part) => [part, part]))));
    };
    const ajv = ajvOf();
    const outline = scoped(standalone.default(ajv, ajv.compile(outlineOf(schema))));
    const [sections, entries] = [codeOf(sectionsOf(schema)), codeOf(entriesOf(schema))];
    return `exports.${name} = { schema: ${JSON.stringify(schema)}, outline: ${outline}, sections: ${sections}, entries: ${entries} };\n`;
  });
  return parts.join('\n');
}

const scoped = (code: string): string =>
  `(() => { const exports = {}, module = { exports };\n${code}\nreturn module.exports; })()`;

function outlineOf(schema: TObject): object {
  return { ...schema, properties: Object.fromEntries(Object.keys(schema.properties).map((section) => [section, {}])) };
}

const isByNames = (section: TSchema): boolean =>
  !('properties' in section) && 'additionalProperties' in section && typeof section.additionalProperties === 'object';

const sectionsOf = ({ properties }: TObject): Record<string, object> =>
  Object.fromEntries(
    Object.entries(properties).map(([name, section]) => [
      name,
      isByNames(section) ? { ...section, additionalProperties: {} } : section,
    ]),
  );

const entriesOf = ({ properties }: TObject): Record<string, object> =>
  Object.fromEntries(
    Object.entries(properties)
      .filter(([, section]) => isByNames(section))
      .map(([name, section]) => [name, (section as { additionalProperties?: object }).additionalProperties as object]),
  );

function ajvWith(options: Options): Ajv {
  const ajv = new Ajv(options);
  ajv.addVocabulary(ANNOTATIONS);
  return ajv;
}
