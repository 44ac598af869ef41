import type { ErrorObject, ValidateFunction } from 'ajv';
import type { CompiledSchema } from './compiled-schemas.ts';
import { child, type Located, remembered, toPlain } from './located.ts';

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
