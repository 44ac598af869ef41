import { createServer } from 'node:net';
import { describe, expect, test } from 'vitest';
import { isLoopback, listeners, ownerOf, planPorts } from '../../services/ports.ts';
import { isAlive, readProcess } from '../../services/processes.ts';
import type { Program } from '../../services/programs.ts';
import { programDocument, renderConf, socketPath } from '../../services/supervisor-conf.ts';
import { decode } from '../../services/supervisor-rpc.ts';

describe('ports', () => {
  const KEPT = {
    postgres: 20_001,
    temporal: 20_002,
    temporal_ui: 20_003,
    milvus: 20_004,
    mlflow: 20_005,
    engine: 20_006,
  };
  const allFreeBut =
    (...taken: number[]) =>
    async (port: number) =>
      !taken.includes(port);

  test('a kept port stays, also when its own service holds it', async () => {
    const plan = await planPorts(KEPT, new Set(['milvus']), allFreeBut(20_004));
    expect(plan).toEqual({ ports: KEPT, moved: [], blocked: [] });
  });

  test('a port that a stranger took is replaced, and said', async () => {
    const plan = await planPorts(KEPT, new Set(), allFreeBut(20_004), () => 0.5);
    expect(plan.ports.milvus).toBe(26_000);
    expect(plan.moved).toEqual([{ name: 'milvus', from: 20_004, to: 26_000 }]);
  });

  test('the port of MLflow, which links name, does not move by itself', async () => {
    const plan = await planPorts(KEPT, new Set(), allFreeBut(20_005));
    expect(plan.ports.mlflow).toBe(20_005);
    expect(plan.blocked).toEqual([{ name: 'mlflow', port: 20_005 }]);
  });

  test('new ports differ from each other, lie below the range of outgoing connections, and skip what is taken', async () => {
    let draws = 0;
    const plan = await planPorts({}, new Set(), allFreeBut(20_000), () => (Math.floor(draws++ / 2) * 0.001) % 1);
    const ports = Object.values(plan.ports);
    expect(new Set(ports).size).toBe(6);
    expect(ports.every((port) => port > 20_000 && port < 32_000)).toBe(true);
  });

  test('a listening socket of this process is found with its owner', async () => {
    const server = createServer().listen(0, '127.0.0.1');
    await new Promise((resolve) => server.once('listening', resolve));
    const { port } = server.address() as { port: number };
    expect(listeners().find((listener) => listener.port === port)?.address).toBe('127.0.0.1');
    expect(ownerOf(port)?.pid).toBe(process.pid);
    server.close();
  });

  test('an IPv4 address in IPv6 form counts as what it is', async () => {
    const server = createServer().listen(0, '::ffff:127.0.0.1');
    await new Promise((resolve) => server.once('listening', resolve));
    const { port } = server.address() as { port: number };
    const address = listeners().find((listener) => listener.port === port)?.address ?? '';
    expect([address, isLoopback(address), isLoopback('0.0.0.0'), isLoopback('::')]).toEqual([
      '127.0.0.1',
      true,
      false,
      false,
    ]);
    server.close();
  });
});

describe('configuration of the supervisor', () => {
  const program: Program = {
    service: 'postgres',
    argv: ['postgres', '-c', 'log_line_prefix=%m "x"'],
    env: { EXP_STACK: 'abc', PATH: '/bin' },
    unset: [],
    cwd: '/home/some one/100%/.exp/work',
    stopSignal: 'INT',
    stopWaitSeconds: 30,
  };

  test('paths with spaces are quoted, and per cent signs are doubled', () => {
    const conf = renderConf('/home/some one/100%/.exp', 'abc', [program]);
    expect(conf).toContain('"/home/some one/100%%/.exp/programs/postgres.json"');
    expect(conf).toContain('logfile = /home/some one/100%%/.exp/logs/supervisord.log');
    expect(conf).toContain('stopsignal = INT');
    expect(conf.replaceAll('%%', '')).not.toContain('%');
  });

  test('no password, address or environment stands in it', () => {
    expect(renderConf('/x', 'abc', [program])).not.toMatch(/EXP_STACK|log_line_prefix/);
  });

  test('another environment or argument is another program; the same one is the same', () => {
    const { digest } = programDocument('/x', program);
    expect(programDocument('/x', structuredClone(program)).digest).toBe(digest);
    expect(programDocument('/x', { ...program, env: { ...program.env, EXP_BUILD: '2' } }).digest).not.toBe(digest);
    expect(programDocument('/x', { ...program, argv: [...program.argv, '-S'] }).digest).not.toBe(digest);
  });

  test('the socket has a short path, whatever the home', () => {
    expect(socketPath('0123456789abcdef').length).toBeLessThan(100);
  });
});

describe('answers of the supervisor', () => {
  test('a list of structs, as Python writes it', () => {
    const xml = `<?xml version='1.0'?>
<methodResponse>
<params>
<param>
<value><array><data>
<value><struct>
<member>
<name>name</name>
<value><string>mlflow &amp; co</string></value>
</member>
<member>
<name>pid</name>
<value><int>0</int></value>
</member>
<member>
<name>empty</name>
<value><string></string></value>
</member>
</struct></value>
</data></array></value>
</param>
</params>
</methodResponse>`;
    expect(decode(xml)).toEqual({ value: [{ name: 'mlflow & co', pid: 0, empty: '' }] });
  });

  test('nested lists, empty ones too', () => {
    const list = (items: string): string => `<value><array><data>${items}</data></array></value>`;
    const xml = `<methodResponse><params><param>${list(list(list('<value><string>a</string></value>') + list('') + list('')))}</param></params></methodResponse>`;
    expect(decode(xml)).toEqual({ value: [[['a'], [], []]] });
  });

  test('a fault', () => {
    const xml = `<methodResponse><fault><value><struct><member><name>faultCode</name><value><int>70</int></value></member>
<member><name>faultString</name><value><string>NOT_RUNNING: x</string></value></member></struct></value></fault></methodResponse>`;
    expect(decode(xml).fault).toEqual({ faultCode: 70, faultString: 'NOT_RUNNING: x' });
  });
});

test('a pid with another start time is another process', () => {
  const self = readProcess(process.pid);
  expect(self && isAlive(self)).toBe(true);
  expect(isAlive({ pid: process.pid, startTime: '1' })).toBe(false);
});
