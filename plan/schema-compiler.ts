/**
 * Schemas to validators. The build writes them as plain code, because loading TypeBox and compiling a schema takes ten
 * times longer than validating a spec; tests, which run from sources, compile them when asked.
 */
import { Ajv, type Options } from 'ajv';
import standalone from 'ajv/dist/standalone/index.js';
import type { TObject } from 'typebox';
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
  let outline: CompiledSchema['outline'] | undefined;
  let sections: CompiledSchema['sections'] | undefined;
  return {
    schema,
    get outline() {
      outline ??= ajv.compile(outlineOf(schema));
      return outline;
    },
    get sections() {
      sections ??= Object.fromEntries(
        Object.entries(schema.properties).map(([section, part]) => [section, ajv.compile(part)]),
      );
      return sections;
    },
  };
}

/** The same as a CommonJS module: what `compiled-schemas.ts` loads where the build has put it. */
export function schemaCode(): string {
  const parts = NAMES.map((name) => {
    const { schema, options } = SOURCES[name];
    const ajv = ajvWith({ ...options, code: { source: true } });
    for (const [section, part] of Object.entries(schema.properties)) ajv.addSchema(part, section);
    const names = Object.keys(schema.properties).map((section) => [section, section]);
    const outline = scoped(standalone.default(ajv, ajv.compile(outlineOf(schema))));
    const sections = scoped(standalone.default(ajv, Object.fromEntries(names)));
    return `exports.${name} = { schema: ${JSON.stringify(schema)}, outline: ${outline}, sections: ${sections} };\n`;
  });
  return parts.join('\n');
}

const scoped = (code: string): string =>
  `(() => { const exports = {}, module = { exports };\n${code}\nreturn module.exports; })()`;

function outlineOf(schema: TObject): object {
  return { ...schema, properties: Object.fromEntries(Object.keys(schema.properties).map((section) => [section, {}])) };
}

function ajvWith(options: Options): Ajv {
  const ajv = new Ajv(options);
  ajv.addVocabulary(ANNOTATIONS);
  return ajv;
}
