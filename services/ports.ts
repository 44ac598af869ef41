/** Ports of the embedded stack: chosen once, kept, and checked against whoever else listens. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { createServer } from 'node:net';
import { PORT_NAMES, type PortName } from './services-file.ts';

export interface Listener {
  address: string;
  port: number;
  inode: string;
}

/** Below the kernel's range for outgoing connections, so that none of those takes a port while its service restarts. */
const FIRST_PORT = 20_000;
const LAST_PORT = 31_999;

/** Links to earlier runs hold MLflow's address, so its port never moves by itself. */
const STORED_ADDRESSES: ReadonlySet<PortName> = new Set(['mlflow']);

export interface PortPlan {
  ports: Record<PortName, number>;
  /** Kept ports that a stranger holds, and what was chosen instead. */
  moved: { name: PortName; from: number; to: number }[];
  /** Kept ports that a stranger holds and that must not move. */
  blocked: { name: PortName; port: number }[];
}

/** Keep every port that is free or ours; choose new ones for the rest. */
export async function planPorts(
  kept: Partial<Record<PortName, number>>,
  ours: ReadonlySet<PortName>,
  isFree: (port: number) => Promise<boolean>,
  random: () => number = Math.random,
): Promise<PortPlan> {
  const plan: PortPlan = { ports: {} as Record<PortName, number>, moved: [], blocked: [] };
  const used = new Set(Object.values(kept));
  const choose = async (): Promise<number> => {
    for (;;) {
      const port = FIRST_PORT + Math.floor(random() * (LAST_PORT - FIRST_PORT + 1));
      if (used.has(port) || !(await isFree(port))) continue;
      used.add(port);
      return port;
    }
  };
  for (const name of PORT_NAMES) {
    const port = kept[name];
    if (port !== undefined && (ours.has(name) || (await isFree(port)))) {
      plan.ports[name] = port;
    } else if (port !== undefined && STORED_ADDRESSES.has(name)) {
      plan.ports[name] = port;
      plan.blocked.push({ name, port });
    } else {
      plan.ports[name] = await choose();
      if (port !== undefined) plan.moved.push({ name, from: port, to: plan.ports[name] });
    }
  }
  return plan;
}

/** Whether a server could listen there now. */
export function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', () => resolve(false));
    server.listen({ host: '127.0.0.1', port, exclusive: true }, () => server.close(() => resolve(true)));
  });
}

/** Every listening TCP socket of this machine (network namespace). */
export function listeners(): Listener[] {
  return [...listenersIn('/proc/net/tcp', ipv4), ...listenersIn('/proc/net/tcp6', ipv6)];
}

const LISTEN = '0A';

function listenersIn(file: string, address: (hex: string) => string): Listener[] {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch {
    return []; // no IPv6 in this kernel
  }
  return text
    .split('\n')
    .slice(1)
    .map((line) => line.trim().split(/\s+/))
    .filter((fields) => fields[3] === LISTEN)
    .map((fields) => {
      const [hex = '', port = ''] = (fields[1] ?? '').split(':');
      return { address: address(hex), port: Number.parseInt(port, 16), inode: fields[9] ?? '' };
    });
}

/** The kernel prints addresses as 32-bit words in the machine's (little-endian) order. */
function ipv4(hex: string): string {
  return [...Buffer.from(hex, 'hex')].reverse().join('.');
}

function ipv6(hex: string): string {
  const words = hex.match(/.{8}/g) ?? [];
  const bytes = words.map((word) => Buffer.from(word, 'hex').reverse().toString('hex')).join('');
  if (/^0{20}ffff/.test(bytes)) return [...Buffer.from(bytes.slice(24), 'hex')].join('.');
  if (bytes === `${'0'.repeat(31)}1`) return '::1';
  if (bytes === '0'.repeat(32)) return '::';
  return (bytes.match(/.{4}/g) ?? []).join(':');
}

export const isLoopback = (address: string): boolean => address === '::1' || address.startsWith('127.');

export interface PortOwner {
  pid: number;
  command: string;
}

/** Who holds a listening socket; undefined when the process belongs to another user and may not be looked into. */
export function ownerOf(port: number): PortOwner | undefined {
  const inodes = new Set(
    listeners()
      .filter((listener) => listener.port === port)
      .map(({ inode }) => `socket:[${inode}]`),
  );
  if (inodes.size === 0) return undefined;
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    if (socketsOf(pid).some((link) => inodes.has(link))) return { pid: Number(pid), command: commandOf(pid) };
  }
  return undefined;
}

/** Links of a process's descriptors, such as `socket:[123]`. */
export function socketsOf(pid: number | string): string[] {
  try {
    return readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
      try {
        return [readlinkSync(`/proc/${pid}/fd/${fd}`)];
      } catch {
        return []; // closed meanwhile
      }
    });
  } catch {
    return []; // gone, or not ours to see
  }
}

function commandOf(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ').trim().slice(0, 120);
  } catch {
    return '?';
  }
}
