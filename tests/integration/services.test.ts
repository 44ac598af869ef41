import { spawn } from 'node:child_process';
import { createServer } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { examine } from '../../services/doctor.ts';
import { isLoopback, listeners, socketsOf } from '../../services/ports.ts';
import { withClient } from '../../services/postgres.ts';
import { stackId, stackProcesses } from '../../services/processes.ts';
import type { ServiceName } from '../../services/programs.ts';
import { readServicesFile } from '../../services/services-file.ts';
import { serviceStates, up } from '../../services/stack.ts';
import { down } from '../../services/stop-stack.ts';
import { startStack, type TestStack } from '../services.ts';

const NAMES: readonly ServiceName[] = ['postgres', 'temporal', 'milvus', 'mlflow'];

describe('the embedded services', () => {
  let stack: TestStack;

  beforeAll(async () => {
    stack = await startStack(NAMES);
  });
  afterAll(async () => {
    await stack?.stop();
  });

  const pidOf = async (name: ServiceName): Promise<number> =>
    (await serviceStates(stack.home))?.find((state) => state.name === name)?.pid ?? 0;
  const upAgain = (only: readonly ServiceName[], lines: string[] = []) =>
    up({ home: stack.home, profile: stack.profile, profileRef: 'local', only, report: (line) => lines.push(line) });
  const count = () =>
    withClient(stack.connections.postgres.url, async (client) =>
      Number((await client.query('select count(*) as n from pages')).rows[0].n),
    );

  test('listen on loopback only', () => {
    const inodes = new Map(listeners().map((listener) => [`socket:[${listener.inode}]`, listener.address]));
    const addresses = stackProcesses(stack.home).flatMap(({ pid }) =>
      socketsOf(pid).flatMap((link) => inodes.get(link) ?? []),
    );
    expect(addresses.length).toBeGreaterThanOrEqual(NAMES.length);
    expect(addresses.filter((address) => !isLoopback(address))).toEqual([]);
  });

  test('up again starts nothing anew', async () => {
    const before = await Promise.all(NAMES.map(pidOf));
    await Promise.all([upAgain(NAMES), upAgain(NAMES)]);
    expect(await Promise.all(NAMES.map(pidOf))).toEqual(before);
  });

  test('PostgreSQL comes back after SIGKILL, with what was committed', async () => {
    await withClient(stack.connections.postgres.url, (client) =>
      client.query("insert into pages (hash, title, text) values ('h', 't', repeat('x', 100000))"),
    );
    const before = await pidOf('postgres');
    process.kill(before, 'SIGKILL');
    let rows: number | undefined;
    for (let waited = 0; waited < 60_000 && rows === undefined; waited += 100) {
      rows = await count().catch(() => sleep(100, undefined));
    }
    expect(rows).toBe(1);
    expect(await pidOf('postgres')).not.toBe(before);
  });

  test('a killed supervisor leaves orphans, which doctor names and the next up replaces', async () => {
    const supervisord = stackProcesses(stack.home).find(({ service }) => service === 'supervisord');
    process.kill(supervisord?.pid ?? 0, 'SIGKILL');
    await sleep(200);
    const findings = await examine(stack.home, stack.profile);
    expect(findings.find(({ code }) => code === 'SUPERVISOR_GONE')?.message).toMatch(/run without their supervisor/);

    const lines: string[] = [];
    await upAgain(['postgres', 'milvus'], lines);
    expect(lines[0]).toMatch(/^ending \d+ processes/);
    expect(await count()).toBe(1);
    expect(stackProcesses(stack.home).filter(({ command }) => command.includes('milvus_lite'))).toHaveLength(1);
  });

  test('doctor says which service is down, shows its last log line, and what to do', async () => {
    const pid = await pidOf('postgres');
    process.kill(pid, 'SIGSTOP');
    try {
      const findings = await examine(stack.home, stack.profile);
      const finding = findings.find(({ at, level }) => at === 'postgres' && level !== 'ok');
      expect(finding?.message).toMatch(/postgres .*(does not answer|not ready)/);
    } finally {
      process.kill(pid, 'SIGCONT');
    }
  });

  test('down leaves nothing, and a port taken meanwhile is given up except the one that links name', async () => {
    const file = readServicesFile(stack.home);
    await down({ home: stack.home, profile: stack.profile, report: () => undefined });
    expect(stackProcesses(stack.home)).toEqual([]);
    expect(listeners().filter(({ port }) => Object.values(file?.ports ?? {}).includes(port))).toEqual([]);

    const stranger = createServer().listen(file?.ports.postgres, '127.0.0.1');
    await new Promise((resolve) => stranger.once('listening', resolve));
    const findings = await examine(stack.home, stack.profile);
    expect(findings.find(({ code }) => code === 'PORT_TAKEN')?.message).toContain(`process ${process.pid}`);
    const lines: string[] = [];
    await upAgain(['postgres'], lines);
    expect(lines[0]).toMatch(/^port \d+ of postgres is taken by process \d+ .*; using \d+ from now on$/);
    await new Promise((resolve) => stranger.close(resolve));
  });

  test('down ends what was started in a session of its own, as trainers are', async () => {
    const environment = { ...process.env, EXP_STACK: stackId(stack.home), EXP_SERVICE: 'worker-gpu' };
    const trainer = spawn('sleep', ['600'], { detached: true, stdio: 'ignore', env: environment });
    const ended = new Promise((resolve) => trainer.once('exit', resolve));
    await upAgain(['postgres']);
    expect(trainer.exitCode).toBeNull();
    await down({ home: stack.home, profile: stack.profile, report: () => undefined });
    await ended;
    expect(stackProcesses(stack.home)).toEqual([]);
  });
});
