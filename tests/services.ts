/** Real services for a test file: those it names, in a home of its own, by the code of `exp up`. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { loadProfile } from '../plan/profile.ts';
import type { Profile } from '../schemas/profile.ts';
import type { Connections } from '../services/connections.ts';
import { repoRoot } from '../services/home.ts';
import { isAlive, readProcess } from '../services/processes.ts';
import type { ServiceName } from '../services/programs.ts';
import { up } from '../services/stack.ts';
import { down } from '../services/stop-stack.ts';

const PREFIX = 'exp-test-';

export interface TestStack {
  connections: Connections;
  /** Also in EXP_HOME until the stack is stopped. */
  home: string;
  profile: Profile;
  /** End everything, verify it, and remove the home. */
  stop(): Promise<void>;
}

export interface TestStackOptions {
  /** The local profile when absent. */
  profile?: Profile;
  /** Name or path by which workers load it; needed when workers are among the names. */
  profileRef?: string;
}

export async function startStack(names: readonly ServiceName[], options: TestStackOptions = {}): Promise<TestStack> {
  const profile = options.profile ?? loadProfile('local', join(repoRoot(), 'profiles'));
  await endAbandonedStacks(profile);
  const home = mkdtempSync(join(tmpdir(), PREFIX));
  writeFileSync(join(home, 'owner'), `${process.pid} ${readProcess(process.pid)?.startTime}`);
  const lines: string[] = [];
  const before = process.env.EXP_HOME;
  const stop = async (): Promise<void> => {
    await down({ home, profile, report: (line) => lines.push(line) });
    rmSync(home, { recursive: true, force: true });
    if (before === undefined) delete process.env.EXP_HOME;
    else process.env.EXP_HOME = before;
  };
  process.env.EXP_HOME = home;
  try {
    const connections = await up({
      home,
      profile,
      profileRef: options.profileRef ?? 'local',
      only: names,
      report: (line) => lines.push(line),
    });
    return { connections, home, profile, stop };
  } catch (error) {
    await stop();
    throw new Error(`the services of this test did not start:\n${lines.join('\n')}`, { cause: error });
  }
}

/** A test process that was killed could not stop its services. */
async function endAbandonedStacks(profile: Profile): Promise<void> {
  for (const name of readdirSync(tmpdir()).filter((entry) => entry.startsWith(PREFIX))) {
    const home = join(tmpdir(), name);
    if (!existsSync(join(home, 'owner'))) continue;
    const [pid, startTime = ''] = readFileSync(join(home, 'owner'), 'utf8').split(' ');
    if (isAlive({ pid: Number(pid), startTime })) continue;
    await down({ home, profile, report: () => undefined });
    rmSync(home, { recursive: true, force: true });
  }
}
