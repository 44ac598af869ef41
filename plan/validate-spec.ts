/** Ajv's complaints about a resolved spec, in the words of a person and at their place. */
import type { ErrorObject } from 'ajv';
import { compiledSchemas } from './compiled-schemas.ts';
import { keyPlaceAt, type Located, nodeAt, type Path, placeAt } from './located.ts';
import { didYouMean, type Problem, problem, quoted } from './problem.ts';
import { schemaErrors } from './schema-errors.ts';
import { chooseShape, kindsOf, partOf, type SchemaView } from './schema-walk.ts';

const SECRET_NAME = /^(api_?key|token|secret|password|passwd|credential)s?$/i;

export function validateSpec(root: Located): Problem[] {
  const all = schemaErrors(compiledSchemas.experiment, root);
  // A value of the right type that is out of bounds in its alternative is out of bounds, not of the wrong type.
  const outOfBounds = all.filter((error) => BOUNDS.has(error.keyword) && isInsideAlternative(error));
  const bounded = new Set(outOfBounds.map(({ instancePath }) => instancePath));
  const summaries = all.filter(
    (error) => !isInsideAlternative(error) && !(error.keyword === 'anyOf' && bounded.has(error.instancePath)),
  );
  const errors = [...outOfBounds, ...summaries];
  const described = errors.flatMap((error) => describe(error, root));
  return withoutConsequences(described);
}

interface Described {
  found: Problem;
  /** A field that is missing, or the field that a misspelt one was meant to be. */
  field?: string;
  parent: string;
}

/** A misspelt field is one mistake, not also a missing one. */
function withoutConsequences(described: readonly Described[]): Problem[] {
  const meant = new Set(
    described.filter(({ found }) => found.code === 'UNKNOWN_FIELD').map(({ parent, field }) => `${parent}/${field}`),
  );
  return described
    .filter(({ found, parent, field }) => found.code !== 'REQUIRED' || !meant.has(`${parent}/${field}`))
    .map(({ found }) => found);
}

const BOUNDS = new Set(['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum']);

/** Of `anyOf`, the summary is reported; what each alternative misses is not. */
const isInsideAlternative = ({ schemaPath, keyword }: ErrorObject): boolean =>
  /\/anyOf\/\d+\//.test(schemaPath) && keyword !== 'anyOf' && !/\/anyOf\/\d+\/(properties|items)\//.test(schemaPath);

function pathOf(error: ErrorObject): string[] {
  return error.instancePath
    .split('/')
    .slice(1)
    .map((step) => step.replaceAll('~1', '/').replaceAll('~0', '~'));
}

const dotted = (path: Path): string => path.join('.') || 'the spec';

function describe(error: ErrorObject, root: Located): Described[] {
  const path = pathOf(error);
  const parent = error.instancePath;
  const params = error.params as Record<string, never>;
  switch (error.keyword) {
    case 'additionalProperties':
      return [unknownField(error, [...path, String(params['additionalProperty'])], root)];
    case 'required': {
      const field = String(params['missingProperty']);
      if ((error.parentSchema as SchemaView).oneOf && field === 'kind') return []; // said by `discriminator`, with the choices
      return [
        {
          found: problem('REQUIRED', keyPlaceAt(root, path), `\`${dotted([...path, field])}\` is missing`),
          field,
          parent,
        },
      ];
    }
    case 'propertyNames': {
      const name = String(params['propertyName']);
      return [{ found: badName(name, keyPlaceAt(root, [...path, name])), parent }];
    }
    case 'discriminator':
      return [{ found: badKind(error, path, root), parent }];
    case 'pattern':
    case 'enum':
    case 'not':
      // The names of maps are reported once, by `propertyNames`.
      if (error.propertyName !== undefined) return [];
      return [{ found: badValue(error, path, root), parent }];
    case 'oneOf':
      return [];
    default:
      return [{ found: badValue(error, path, root), parent }];
  }
}

function unknownField(error: ErrorObject, path: string[], root: Located): Described {
  const name = path.at(-1) as string;
  const at = keyPlaceAt(root, path);
  const parent = error.instancePath;
  if (SECRET_NAME.test(name)) {
    return {
      found: problem(
        'SECRET_LITERAL',
        at,
        `\`${dotted(path)}\` is no field, and a secret is never written in a spec; profiles name secrets`,
      ),
      parent,
    };
  }
  const schema = error.parentSchema as SchemaView;
  const names = Object.keys(schema.properties ?? {});
  const hint = didYouMean(name, names);
  const known =
    hint === undefined && names.length > 0 && names.length <= 12 ? `there are ${names.join(', ')}` : undefined;
  const field = hint?.match(/`(.+)`/)?.[1];
  return {
    found: problem('UNKNOWN_FIELD', at, `\`${dotted(path)}\` is not a field`, hint ?? known),
    parent,
    ...(field !== undefined && { field }),
  };
}

function badName(name: string, at: ReturnType<typeof keyPlaceAt>): Problem {
  return problem(
    'NAME',
    at,
    `${quoted(name)} cannot be a name`,
    'names are a-z, 0-9 and _, begin with a letter, have at most 63 characters and are not reserved',
  );
}

function badKind(error: ErrorObject, path: string[], root: Located): Problem {
  const { error: reason, tagValue } = error.params as { error: string; tagValue: unknown };
  const shapes = (error.parentSchema as SchemaView).oneOf ?? [];
  const kinds = shapes.flatMap((shape) => kindsOf(shape)).map(String);
  if (tagValue === undefined) {
    return problem(
      'REQUIRED',
      keyPlaceAt(root, path),
      `\`${dotted([...path, 'kind'])}\` is missing`,
      `one of ${kinds.join(', ')}`,
    );
  }
  const at = placeAt(root, [...path, 'kind']);
  if (reason === 'tag' && typeof tagValue !== 'string')
    return problem('TYPE', at, `\`${dotted([...path, 'kind'])}\` is a word`);
  return problem(
    'VALUE',
    at,
    `there is no kind ${quoted(tagValue)}`,
    didYouMean(String(tagValue), kinds) ?? `one of ${kinds.join(', ')}`,
  );
}

function badValue(error: ErrorObject, path: string[], root: Located): Problem {
  const at = placeAt(root, path);
  const schema = schemaAt(root, path) ?? (error.parentSchema as SchemaView);
  const parent = error.parentSchema as SchemaView;
  const field = `\`${dotted(path)}\``;
  if (isSecret(root, path))
    return problem(
      'SECRET_LITERAL',
      at,
      `${field} names a secret and never holds it`,
      '{ env: NAME } or { file: PATH }',
    );
  const node = nodeAt(root, path);
  const value = node?.kind === 'scalar' ? node.value : undefined;
  switch (error.keyword) {
    case 'type':
    case 'anyOf':
      if (value === null) return problem('EMPTY', at, `${field} is empty`, 'write a value, or leave the key out');
      if (schema.type === 'integer' && typeof value === 'number')
        return problem('RANGE', at, `${field} must be a whole number, not ${quoted(value)}`);
      return problem(
        'TYPE',
        at,
        `${field} must be ${typeWords(schema)}, not ${nodeWords(node)}`,
        typeHint(schema, value),
      );
    case 'enum':
    case 'const': {
      const allowed = (parent.enum ?? [parent.const]).map(String);
      return problem(
        'VALUE',
        at,
        `${field} cannot be ${quoted(value)}`,
        didYouMean(String(value), allowed) ?? `one of ${allowed.join(', ')}`,
      );
    }
    case 'pattern':
      return problem(parent.code ?? 'VALUE', at, patternMessage(parent.code, field, value), patternHint(parent.code));
    case 'minProperties':
      return problem('EMPTY', at, `${field} is empty`, 'write something below it, or leave the key out');
    case 'uniqueItems':
      return problem('RANGE', at, `${field} has an item twice`);
    default:
      return problem('RANGE', at, `${field} ${boundWords(error)}`);
  }
}

function patternMessage(code: string | undefined, field: string, value: unknown): string {
  if (code === 'REF') return `${field} must refer to weights, not ${quoted(value)}`;
  if (code === 'ARG')
    return `${field} cannot be ${quoted(value)}: a model's name begins with a letter or digit and holds no spaces`;
  return `${field} cannot be ${quoted(value)}`;
}

function patternHint(code: string | undefined): string | undefined {
  if (code === 'REF') return 'write ${policy.base} or ${stages.NAME.checkpoint}';
  return code === 'NAME' ? 'a-z, 0-9, _ and -, beginning with a letter, at most 63 characters' : undefined;
}

function schemaAt(root: Located, path: Path): SchemaView | undefined {
  let schema: SchemaView | undefined = compiledSchemas.experiment.schema;
  for (const [index, step] of path.entries()) {
    const above = nodeAt(root, path.slice(0, index));
    schema = partOf(schema && chooseShape(schema, above), above?.kind === 'list' ? Number(step) : step);
  }
  return schema;
}

function isSecret(root: Located, path: Path): boolean {
  return path.some((_, index) => schemaAt(root, path.slice(0, index + 1))?.holds === 'secret');
}

function typeWords(schema: SchemaView): string {
  if (schema.anyOf) return schema.anyOf.map(typeWords).join(' or ');
  switch (schema.type) {
    case 'integer':
      return 'a whole number';
    case 'number':
      return schema.const === undefined ? 'a number' : String(schema.const);
    case 'boolean':
      return 'true or false';
    case 'array':
      return 'a list';
    case 'object':
      return 'a map';
    default:
      return 'text';
  }
}

function nodeWords(node: Located | undefined): string {
  if (node?.kind !== 'scalar') return node?.kind === 'list' ? 'a list' : 'a map';
  return typeof node.value === 'string' ? `the text ${quoted(node.value)}` : quoted(node.value);
}

/** How the value would be written with the right type. */
function typeHint(schema: SchemaView, value: unknown): string | undefined {
  const wantsNumber = schema.type === 'integer' || schema.type === 'number';
  if (wantsNumber && typeof value === 'string') {
    const plain = value.replaceAll(/[_ ,]/g, '');
    if (plain !== '' && Number.isFinite(Number(plain))) return `write ${plain} without quotes or separators`;
  }
  if (schema.type === 'boolean' && typeof value === 'string' && /^(yes|no|on|off)$/i.test(value)) {
    return `write ${/^(yes|on)$/i.test(value)}`;
  }
  if (schema.type === 'string' && typeof value !== 'string' && value !== undefined)
    return `write "${String(value)}" in quotes`;
  if (schema.type === 'array' && value !== undefined) return `write [${String(value)}]`;
  return undefined;
}

function boundWords({ keyword, params, parentSchema }: ErrorObject): string {
  const { limit } = params as { limit?: number };
  const unit = (parentSchema as SchemaView).unit;
  const amount = `${limit}${unit && unit !== 'share' && (limit ?? 0) > 1 ? ` ${unit}` : ''}`;
  switch (keyword) {
    case 'minimum':
      return `must be at least ${amount}`;
    case 'maximum':
      return `must be at most ${amount}`;
    case 'exclusiveMinimum':
      return `must be more than ${amount}`;
    case 'exclusiveMaximum':
      return `must be less than ${amount}`;
    case 'minItems':
      return `must have at least ${limit} items`;
    case 'maxItems':
      return `must have at most ${limit} items`;
    case 'minLength':
      return 'must not be empty text';
    case 'maxLength':
      return `must have at most ${limit} characters`;
    case 'maxProperties':
      return `must have only ${limit} of its keys`;
    default:
      return `is not allowed here (${keyword})`;
  }
}
