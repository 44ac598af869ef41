import { parseArgs } from 'node:util';
import { setup } from '../../services/setup.ts';
import type { Command } from '../command.ts';

export const command: Command = {
  name: 'setup',
  summary: 'Make what the first call makes: packages, build, Python environment, models.',
  usage: 'setup [--quiet]',
  help: '  --quiet  say nothing when everything is there already',
  async run(argv, io) {
    const { values } = parseArgs({ args: [...argv], options: { quiet: { type: 'boolean', default: false } } });
    // Packages and build were made by the shell script before this file could run.
    const made = await setup({ report: { write: (text) => void process.stderr.write(text) }, signal: io.signal });
    if (!values.quiet) io.out(made ? 'set up' : 'everything is set up');
    return 0;
  },
};
