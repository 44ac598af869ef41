import { parseArgs } from 'node:util';
import { home } from '../../services/home.ts';
import { down } from '../../services/stop-stack.ts';
import type { Command } from '../command.ts';
import { embeddedProfile } from '../service-profile.ts';

export const command: Command = {
  name: 'down',
  summary: 'Stop all services of this machine, and verify that nothing is left.',
  usage: 'down [--profile P]',
  help: '  Runs that are active go on where they stopped at the next `exp up`.',
  async run(argv, io) {
    const { values } = parseArgs({
      args: [...argv],
      options: { profile: { type: 'string', default: io.env.EXP_PROFILE || 'local' } },
    });
    await down({ home: home(), profile: embeddedProfile(values.profile), report: io.out });
    return 0;
  },
};
