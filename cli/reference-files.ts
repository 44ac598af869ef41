/** What is generated from the schemas: JSON Schema for editors and other programs, and docs/spec.md. */

import { Manifest } from '../schemas/artifact.ts';
import { Experiment } from '../schemas/experiment.ts';
import { Plan } from '../schemas/plan.ts';
import { Profile } from '../schemas/profile.ts';
import { Task } from '../schemas/task.ts';
import { Trajectory } from '../schemas/trajectory.ts';
import { specReference } from './spec-reference.ts';

type JsonSchema = Record<string, unknown>;

const DOCUMENTS = { profile: Profile, plan: Plan, manifest: Manifest, task: Task, trajectory: Trajectory };

export const SCHEMA_NAMES = ['experiment', ...Object.keys(DOCUMENTS)];

/** JSON Schema of a document. That of experiments also knows what exists only before composition. */
export function jsonSchema(name: string): JsonSchema {
  const schema =
    name === 'experiment' ? forEditors(plain(Experiment)) : plain(DOCUMENTS[name as keyof typeof DOCUMENTS]);
  return { $schema: 'https://json-schema.org/draft/2020-12/schema', title: name, ...schema };
}

/** Path in the checkout → content. */
export function referenceFiles(): Map<string, string> {
  const files = SCHEMA_NAMES.map(
    (name) => [`schemas/json/${name}.schema.json`, `${JSON.stringify(jsonSchema(name), null, 2)}\n`] as const,
  );
  return new Map([...files, ['docs/spec.md', specReference()]]);
}

const plain = (schema: unknown): JsonSchema => JSON.parse(JSON.stringify(schema)) as JsonSchema;

const REFERENCE = { type: 'string', pattern: '\\$\\{[^}]+\\}' };
const OUR_WORDS = ['code', 'holds', 'composed', 'discriminator'];

/**
 * A file is only a part: `extends`, `like` and defaults supply the rest, so nothing but `kind` is required; and where a
 * number or truth value belongs, a reference may stand.
 */
function forEditors(schema: JsonSchema): JsonSchema {
  const copy: JsonSchema = {};
  for (const [keyword, value] of Object.entries(schema)) {
    if (OUR_WORDS.includes(keyword)) continue;
    if (keyword === 'required') continue;
    copy[keyword] = forEditorsWithin(keyword, value);
  }
  if (Array.isArray(copy['oneOf'])) {
    // Without `kind`, a part of any shape: an overlay, or a stage that says `like`.
    copy['anyOf'] = copy['oneOf'];
    delete copy['oneOf'];
  }
  const isScalar = ['integer', 'number', 'boolean'].includes(String(copy['type']));
  if (!isScalar) return copy;
  const { description, default: fallback, ...rest } = copy;
  return {
    ...(description !== undefined && { description }),
    ...(fallback !== undefined && { default: fallback }),
    anyOf: [rest, REFERENCE],
  };
}

function forEditorsWithin(keyword: string, value: unknown): unknown {
  if (keyword === 'properties') {
    return Object.fromEntries(
      Object.entries(value as JsonSchema).map(([name, part]) => [name, forEditors(part as JsonSchema)]),
    );
  }
  if (keyword === 'oneOf' || keyword === 'anyOf') return (value as JsonSchema[]).map(forEditors);
  const isSchema =
    ['items', 'additionalProperties', 'propertyNames', 'not'].includes(keyword) && typeof value === 'object';
  return isSchema && keyword !== 'not' ? forEditors(value as JsonSchema) : value;
}
