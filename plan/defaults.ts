/** Makes every default of the schema explicit, so that nothing further down has defaults of its own. */
import { fromPlain, type Located } from './located.ts';
import { chooseShape, type SchemaView } from './schema-walk.ts';

export function fillDefaults(schema: SchemaView | undefined, node: Located): Located {
  if (schema === undefined) return node;
  if (node.kind === 'map') {
    const shape = chooseShape(schema, node);
    const entries = new Map(node.entries);
    for (const [name, { key, value }] of entries) {
      const part = shape?.properties?.[name] ?? (shape?.additionalProperties || undefined);
      entries.set(name, { key, value: fillDefaults(part, value) });
    }
    for (const [name, part] of Object.entries(shape?.properties ?? {})) {
      if (entries.has(name) || part.default === undefined) continue;
      entries.set(name, { key: node.at, value: fillDefaults(part, fromPlain(part.default, node.at)) });
    }
    return { ...node, entries };
  }
  if (node.kind === 'list') return { ...node, items: node.items.map((item) => fillDefaults(schema.items, item)) };
  return node;
}
