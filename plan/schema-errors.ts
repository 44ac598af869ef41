import type { ErrorObject, ValidateFunction } from 'ajv';
import type { CompiledSchema } from './compiled-schemas.ts';
import { child, type Located, remembered, toPlain } from './located.ts';

/** What Ajv says of a document. A section, or a named entry of one, that documents have in common is validated once. */
export function schemaErrors({ outline, sections, entries }: CompiledSchema, root: Located): ErrorObject[] {
  const errors = errorsOf(outline, root, '');
  for (const [name, validate] of Object.entries(sections)) {
    const section = child(root, name);
    if (section === undefined) continue;
    errors.push(...partErrors(validate, section, `/${name}`));
    const ofEntry = entries[name];
    if (ofEntry === undefined || section.kind !== 'map') continue;
    for (const [entry, { value }] of section.entries)
      errors.push(...partErrors(ofEntry, value, `/${name}/${entry.replaceAll('~', '~0').replaceAll('/', '~1')}`));
  }
  return errors;
}

type ErrorsOfPart = ReturnType<typeof remembered<ErrorObject[]>>;

/** By validator and path: the same part may stand under two names. */
const known = new Map<ValidateFunction, Map<string, ErrorsOfPart>>();

function partErrors(validate: ValidateFunction, part: Located, instancePath: string): ErrorObject[] {
  if (part.kind !== 'map' && part.kind !== 'list') return errorsOf(validate, part, instancePath);
  const byPath = known.get(validate) ?? new Map<string, ErrorsOfPart>();
  known.set(validate, byPath);
  const errors = byPath.get(instancePath) ?? remembered((node) => errorsOf(validate, node, instancePath));
  byPath.set(instancePath, errors);
  return errors(part);
}

function errorsOf(validate: ValidateFunction, part: Located, instancePath: string): ErrorObject[] {
  const data = toPlain(part);
  const place = { instancePath, parentData: {}, parentDataProperty: '', rootData: {}, dynamicAnchors: {} };
  return validate(data, place) ? [] : (validate.errors ?? []);
}
