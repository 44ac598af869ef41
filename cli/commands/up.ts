import { parseArgs } from 'node:util';
import { ExpError } from '../../schemas/errors.ts';
import { home } from '../../services/home.ts';
import { SERVICES, type ServiceName, WORKERS } from '../../services/programs.ts';
import { up } from '../../services/stack.ts';
import type { Command } from '../command.ts';
import { embeddedProfile } from '../service-profile.ts';

export const command: Command = {
  name: 'up',
  summary: 'Start the services of this machine, and restart what runs older code.',
  usage: 'up [--only NAME,…] [--profile P] [--json]',
  help: [
    `  --only NAME,…  some of them: ${SERVICES.join(', ')}; "workers" is all three workers`,
    '  --no-wait      return while the policy engine still loads its model',
    '  --profile P    an embedded profile, by name or path (local)',
    '  --json         print {services: {…}} with their addresses',
    '',
    'Everything listens on 127.0.0.1; data and logs lie under EXP_HOME (.exp in the checkout).',
  ].join('\n'),
  async run(argv, io) {
    const { values } = parseArgs({
      args: [...argv],
      options: {
        only: { type: 'string' },
        'no-wait': { type: 'boolean', default: false },
        profile: { type: 'string', default: io.env.EXP_PROFILE || 'local' },
        json: { type: 'boolean', default: false },
      },
    });
    const connections = await up({
      home: home(),
      profile: embeddedProfile(values.profile),
      profileRef: values.profile,
      ...(values.only !== undefined && { only: parseNames(values.only) }),
      waitForEngine: !values['no-wait'],
      report: (line) => (values.json ? io.err(line) : io.out(line)),
      signal: io.signal,
    });
    const { temporal, mlflow, milvus, engines } = connections;
    if (values.json) {
      const services = {
        temporal: temporal.address,
        temporal_ui: temporal.ui,
        mlflow: mlflow.url,
        milvus: milvus.address,
        engine: engines[0]?.url,
      };
      io.out(JSON.stringify({ services, home: home() }));
    } else {
      io.out(`up: MLflow ${mlflow.url}   Temporal ${temporal.ui}   data ${home()}`);
    }
    return 0;
  },
};

function parseNames(text: string): ServiceName[] {
  return text.split(',').flatMap((name): ServiceName[] => {
    if (name === 'workers') return [...WORKERS];
    const known = SERVICES.find((service) => service === name.trim());
    if (known === undefined)
      throw new ExpError(
        'USAGE',
        'exp up --only',
        `there is no service ${JSON.stringify(name)}; there are ${SERVICES.join(', ')}, workers`,
      );
    return [known];
  });
}
