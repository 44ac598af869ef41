/** The schemas of specs and profiles with their validators, from the build where it has made them. */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import type { ValidateFunction } from 'ajv';

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
