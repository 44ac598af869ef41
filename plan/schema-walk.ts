/** Finds the definition of every part of a document, so that defaults, references and marks come from the schema. */
import type { TSchema } from 'typebox';
import { child, type Located, type Path } from './located.ts';

/** The keywords this project uses, as JSON Schema and our annotations spell them. */
export interface SchemaView {
  type?: string;
  properties?: Record<string, SchemaView>;
  additionalProperties?: SchemaView | false;
  items?: SchemaView;
  oneOf?: SchemaView[];
  anyOf?: SchemaView[];
  enum?: readonly unknown[];
  const?: unknown;
  required?: string[];
  default?: unknown;
  description?: string;
  unit?: string;
  key?: false;
  code?: string;
  holds?: 'path' | 'checkpoint' | 'secret';
  composed?: true;
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
  minItems?: number;
  pattern?: string;
}

export const viewOf = (schema: TSchema): SchemaView => schema as unknown as SchemaView;

/** The words a discriminating `kind` may be. */
export function kindsOf({ properties }: SchemaView): readonly unknown[] {
  const kind = properties?.['kind'];
  return kind?.enum ?? (kind?.const === undefined ? [] : [kind.const]);
}

/** Of alternatives, the one that a document means: by `kind`, or by its shape. */
export function chooseShape(schema: SchemaView, node: Located | undefined): SchemaView | undefined {
  if (schema.oneOf) {
    const kind = child(node, 'kind');
    return schema.oneOf.find((shape) => kind?.kind === 'scalar' && kindsOf(shape).includes(kind.value));
  }
  if (schema.anyOf) return schema.anyOf.find(({ type }) => node !== undefined && matchesType(type, node));
  return schema;
}

function matchesType(type: string | undefined, node: Located): boolean {
  if (node.kind === 'map') return type === 'object';
  if (node.kind === 'list') return type === 'array';
  if (node.kind === 'unset') return false;
  if (typeof node.value === 'number') return type === 'number' || type === 'integer';
  return type === typeof node.value;
}

/** The definition of one named part. */
export function partOf(schema: SchemaView | undefined, name: string | number): SchemaView | undefined {
  if (schema === undefined) return undefined;
  if (typeof name === 'number') return schema.items;
  return schema.properties?.[name] ?? (schema.additionalProperties || undefined);
}

/** Every node of a document, with its definition where it has one. */
export function* walk(
  schema: SchemaView | undefined,
  node: Located,
  path: Path = [],
): Generator<{ schema: SchemaView | undefined; node: Located; path: Path }> {
  yield { schema, node, path };
  const shape = schema && chooseShape(schema, node);
  if (node.kind === 'map') {
    for (const [name, { value }] of node.entries) yield* walk(partOf(shape, name), value, [...path, name]);
  } else if (node.kind === 'list') {
    for (const [index, item] of node.items.entries()) yield* walk(partOf(shape, index), item, [...path, index]);
  }
}
