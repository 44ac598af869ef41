/**
 * Schemas to validators. The build writes them as plain code, because loading TypeBox and compiling a schema takes ten
 * times longer than validating a spec; tests, which run from sources, compile them when asked.
 */
import { Ajv, type Options } from 'ajv';
import standalone from 'ajv/dist/standalone/index.js';
import type { TSchema } from 'typebox';
import { Experiment } from '../schemas/experiment.ts';
import { Profile } from '../schemas/profile.ts';
import type { CompiledSchema, CompiledSchemas } from './compiled-schemas.ts';

const ANNOTATIONS = ['key', 'unit', 'code', 'holds', 'composed'];
/** The schemas are ours, and a test checks them: checking and optimising them takes longer than using them. */
const QUICK: Options = { allErrors: true, strict: false, validateSchema: false, code: { optimize: false } };

const SOURCES: Record<keyof CompiledSchemas, { schema: TSchema; options: Options }> = {
  experiment: { schema: Experiment, options: { ...QUICK, verbose: true, discriminator: true } },
  profile: { schema: Profile, options: QUICK },
};
const NAMES = Object.keys(SOURCES) as (keyof CompiledSchemas)[];

export function compileSchemas(): CompiledSchemas {
  return { experiment: compileLate('experiment'), profile: compileLate('profile') };
}

function compileLate(name: keyof CompiledSchemas): CompiledSchema {
  const { schema, options } = SOURCES[name];
  let validate: CompiledSchema['validate'] | undefined;
  return {
    schema,
    get validate() {
      validate ??= ajvWith(options).compile(schema);
      return validate;
    },
  };
}

/** The same as a CommonJS module: what `compiled-schemas.ts` loads where the build has put it. */
export function schemaCode(): string {
  const parts = NAMES.map((name) => {
    const { schema, options } = SOURCES[name];
    const ajv = ajvWith({ ...options, code: { source: true } });
    const code = standalone.default(ajv, ajv.compile(schema));
    const scope = `(() => { const module = { exports: {} };\n${code}\nreturn module.exports; })()`;
    return `exports.${name} = { schema: ${JSON.stringify(schema)}, validate: ${scope} };\n`;
  });
  return parts.join('\n');
}

function ajvWith(options: Options): Ajv {
  const ajv = new Ajv(options);
  ajv.addVocabulary(ANNOTATIONS);
  return ajv;
}
