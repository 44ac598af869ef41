import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { didYouMean } from '../../plan/problem.ts';
import { ExitCode, ExpError } from '../../schemas/errors.ts';
import { repoRoot } from '../../services/home.ts';
import type { Command, CommandIo } from '../command.ts';
import { jsonSchema, referenceFiles, SCHEMA_NAMES } from '../reference-files.ts';

export const command: Command = {
  name: 'schema',
  summary: 'Print the JSON Schema of a document.',
  usage: 'schema [NAME] [--check | --write]',
  help: `  NAME      ${SCHEMA_NAMES.join(', ')} (default: experiment)
  --check   say whether schemas/json/ and docs/spec.md are current
  --write   make them anew`,

  async run(argv, io) {
    const { values, positionals } = parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: { check: { type: 'boolean', default: false }, write: { type: 'boolean', default: false } },
    });
    if (values.write) return write(io);
    if (values.check) return check(io);
    const [name = 'experiment'] = positionals;
    if (!SCHEMA_NAMES.includes(name)) {
      throw new ExpError(
        'USAGE',
        'exp schema',
        `there is no schema ${JSON.stringify(name.slice(0, 40))}; ${didYouMean(name, SCHEMA_NAMES) ?? `there are ${SCHEMA_NAMES.join(', ')}`}`,
      );
    }
    io.out(JSON.stringify(jsonSchema(name), null, 2));
    return ExitCode.done;
  },
};

async function write(io: CommandIo): Promise<number> {
  for (const [path, content] of referenceFiles()) {
    const file = join(repoRoot(), path);
    await mkdir(dirname(file), { recursive: true });
    await writeFile(file, content);
    io.out(path);
  }
  return ExitCode.done;
}

async function check(io: CommandIo): Promise<number> {
  const stale: string[] = [];
  for (const [path, content] of referenceFiles()) {
    const current = await readFile(join(repoRoot(), path), 'utf8').catch(() => null);
    if (current !== content) stale.push(path);
  }
  for (const path of stale) io.err(`${path}:1:1: STALE: it differs from the schemas; run: exp schema --write`);
  if (stale.length === 0) io.out('schemas/json/ and docs/spec.md are current');
  return stale.length === 0 ? ExitCode.done : ExitCode.runFailed;
}
