/** PostgreSQL refuses to run as root. As root, it runs as another user with no more rights than it needs. */
import { readFileSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { ExpError } from '../schemas/errors.ts';

export interface PostgresUser {
  /** Undefined: the caller is not root, and PostgreSQL runs as the caller. */
  ids?: { uid: number; gid: number };
  /** Put before a command so that it runs as that user. */
  prefix: string[];
}

const CAPABILITY_BITS = { dac_read_search: 2, dac_override: 1 } as const;

/**
 * A checkout may lie in a folder that only root may enter (`mktemp -d`). Then PostgreSQL gets the one capability to
 * look past that, and the tree stays closed to everyone else; otherwise it gets none.
 */
export function postgresUser(paths: readonly string[]): PostgresUser {
  if (process.getuid?.() !== 0) return { prefix: [] };
  const ids = chooseUser();
  const switchUser = ['setpriv', `--reuid=${ids.uid}`, `--regid=${ids.gid}`, '--clear-groups', '--no-new-privs'];
  if (paths.every((path) => reachableByAll(path))) return { ids, prefix: [...switchUser, '--inh-caps=-all'] };
  const capability = availableCapability();
  // access(2), which initdb asks about its binaries, heeds capabilities only where a change of user leaves them alone.
  const heeded = '--securebits=+no_setuid_fixup';
  const capabilities = [`--inh-caps=-all,+${capability}`, `--ambient-caps=-all,+${capability}`];
  return { ids, prefix: [...switchUser, heeded, ...capabilities] };
}

/** initdb looks its user up by name, so it must be one that the machine knows. */
function chooseUser(): { uid: number; gid: number } {
  const users = new Map(
    readFileSync('/etc/passwd', 'utf8')
      .split('\n')
      .map((line) => line.split(':'))
      .map(([name = '', , uid, gid]) => [name, { uid: Number(uid), gid: Number(gid) }]),
  );
  const user = users.get('postgres') ?? users.get('nobody');
  if (user === undefined) {
    throw new ExpError(
      'SETUP_FAILED',
      '/etc/passwd',
      'PostgreSQL does not run as root, and there is no user postgres or nobody; add one, or run exp as an ordinary user',
    );
  }
  return user;
}

function reachableByAll(path: string): boolean {
  const EXECUTE_BY_OTHERS = 0o001;
  for (let folder = path; ; folder = dirname(folder)) {
    if ((statSync(folder).mode & EXECUTE_BY_OTHERS) === 0) return false;
    if (folder === dirname(folder)) return true;
  }
}

function availableCapability(): keyof typeof CAPABILITY_BITS {
  const effective = BigInt(
    `0x${/^CapEff:\s*([0-9a-f]+)/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0'}`,
  );
  for (const [name, bit] of Object.entries(CAPABILITY_BITS)) {
    if ((effective >> BigInt(bit)) & 1n) return name as keyof typeof CAPABILITY_BITS;
  }
  throw new ExpError(
    'SETUP_FAILED',
    'postgres',
    'this root user may not pass on file access to the user PostgreSQL runs as; put the checkout where others may enter',
  );
}
