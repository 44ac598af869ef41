/** The schemas of specs and profiles with their validators, from the build where it has made them. */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import type { ErrorObject, ValidateFunction } from 'ajv';
import { child, type Located, remembered, toPlain } from './located.ts';

export interface CompiledSchema {
  schema: object;
  /** Of the document with anything in its sections. */
  outline: ValidateFunction;
  /** Of what stands below each key of the document. */
  sections: Record<string, ValidateFunction>;
}

export interface CompiledSchemas {
  experiment: CompiledSchema;
  profile: CompiledSchema;
}

/** Beside the compiled folders, so of the same build as this file. */
const ahead = join(import.meta.dirname, '../compiled-schemas.cjs');

export const compiledSchemas: CompiledSchemas = existsSync(ahead)
  ? (createRequire(import.meta.url)(ahead) as CompiledSchemas)
  : (await import('./schema-compiler.ts')).compileSchemas();

/** What Ajv says of a document. A section that documents have in common is validated once. */
export function schemaErrors({ outline, sections }: CompiledSchema, root: Located): ErrorObject[] {
  return [
    ...errorsOf(outline, root, ''),
    ...Object.entries(sections).flatMap(([name, validate]) => {
      const section = child(root, name);
      return section === undefined ? [] : sectionErrors(validate, section, `/${name}`);
    }),
  ];
}

const known = new WeakMap<ValidateFunction, ReturnType<typeof remembered<ErrorObject[]>>>();

function sectionErrors(validate: ValidateFunction, section: Located, instancePath: string): ErrorObject[] {
  if (section.kind !== 'map' && section.kind !== 'list') return errorsOf(validate, section, instancePath);
  const errors = known.get(validate) ?? remembered((part) => errorsOf(validate, part, instancePath));
  known.set(validate, errors);
  return errors(section);
}

function errorsOf(validate: ValidateFunction, part: Located, instancePath: string): ErrorObject[] {
  const data = toPlain(part);
  const place = { instancePath, parentData: {}, parentDataProperty: '', rootData: {}, dynamicAnchors: {} };
  return validate(data, place) ? [] : (validate.errors ?? []);
}
