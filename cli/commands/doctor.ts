import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { loadProfile } from '../../plan/profile.ts';
import { ExitCode } from '../../schemas/errors.ts';
import { examine, type Finding } from '../../services/doctor.ts';
import { home, repoRoot } from '../../services/home.ts';
import type { Command } from '../command.ts';
import { detectTerminal, paint, type Terminal } from '../terminal.ts';

export const command: Command = {
  name: 'doctor',
  summary: 'Say what is wrong with set-up and services, and what to do.',
  usage: 'doctor [--profile P] [--json]',
  help: '  Exit code 0 when all is well, 1 when there is a problem.',
  async run(argv, io) {
    const { values } = parseArgs({
      args: [...argv],
      options: {
        profile: { type: 'string', default: io.env.EXP_PROFILE || 'local' },
        json: { type: 'boolean', default: false },
      },
    });
    const findings = await examine(home(), loadProfile(values.profile, join(repoRoot(), 'profiles')));
    const problems = findings.filter(({ level }) => level === 'problem');
    if (values.json) {
      io.out(JSON.stringify({ ok: problems.length === 0, problems, findings }));
    } else {
      const terminal = detectTerminal(io);
      for (const finding of findings) io.out(render(finding, terminal));
      io.out(problems.length === 0 ? 'all is well' : `${problems.length} problem${problems.length === 1 ? '' : 's'}`);
    }
    return problems.length === 0 ? ExitCode.done : ExitCode.runFailed;
  },
};

const COLOURS = { ok: 'green', note: 'yellow', problem: 'red' } as const;

function render({ level, code, at, message, remedy }: Finding, terminal: Terminal): string {
  const label = paint(terminal, COLOURS[level], level.padEnd(8));
  const line = level === 'ok' ? `${label}${at}: ${message}` : `${label}${at}: ${code}: ${message}`;
  return remedy === undefined ? line : `${line}\n${' '.repeat(8)}${terminal.unicode ? '→' : '->'} ${remedy}`;
}
