import { parseArgs } from 'node:util';
import { isOverride } from '../../plan/overrides.ts';
import { ExitCode, ExpError } from '../../schemas/errors.ts';
import type { Command, CommandIo } from '../command.ts';
import { planSpec } from '../plan-spec.ts';
import { problemsToJson, showProblems } from '../show-problems.ts';

export const command: Command = {
  name: 'validate',
  summary: 'Check a spec; every problem at file:line:col.',
  usage: 'validate SPEC [KEY=VALUE …] [-f OVERLAY] [--profile P] [--json]',
  help: `  KEY=VALUE, +KEY=VALUE, ~KEY   change, add or remove a value by its dotted path
  -f, --overlay FILE            lay a file over the spec; may be repeated
  --profile P                   name or path of a profile (default: local)
  --json                        {problems, warnings, unknown}

Exit code 0 when the spec is valid; models or data that are not here yet are listed and are no problem.`,

  async run(argv, io) {
    const { values, positionals } = parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: {
        overlay: { type: 'string', short: 'f', multiple: true, default: [] },
        profile: { type: 'string' },
        json: { type: 'boolean', default: false },
      },
    });
    const { spec, overrides } = splitPositionals(positionals, 'exp validate');
    const { problems, warnings, unknown, texts } = await planSpec({
      spec,
      overrides,
      overlays: values.overlay,
      profile: values.profile,
      env: io.env,
      checkOnly: true,
    });
    if (values.json) {
      io.out(JSON.stringify({ problems: problemsToJson(problems), warnings: problemsToJson(warnings), unknown }));
    } else {
      showProblems(problems, texts, io);
      showRest(warnings, unknown, io);
      if (problems.length === 0) io.out(`${spec}: valid`);
    }
    return problems.length === 0 ? ExitCode.done : ExitCode.invalidInput;
  },
};

/** The spec, and after it the overrides. */
export function splitPositionals(positionals: readonly string[], at: string): { spec: string; overrides: string[] } {
  const [spec, ...overrides] = positionals;
  if (spec === undefined || isOverride(spec)) throw new ExpError('USAGE', at, 'missing SPEC, the path of a spec');
  const stray = overrides.find((argument) => !isOverride(argument));
  if (stray !== undefined)
    throw new ExpError(
      'USAGE',
      at,
      `${JSON.stringify(stray.slice(0, 80))} is no override; write key=value, +key=value or ~key`,
    );
  return { spec, overrides };
}

/** What does not make a spec invalid, but should be known. */
export function showRest(
  warnings: Awaited<ReturnType<typeof planSpec>>['warnings'],
  unknown: readonly string[],
  io: CommandIo,
): void {
  for (const { file, line, column, code, message } of warnings)
    io.err(`${file}:${line}:${column}: warning: ${code}: ${message}`);
  for (const lack of unknown) io.err(`missing: ${lack}`);
}
