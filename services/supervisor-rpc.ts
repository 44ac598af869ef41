/** The part of supervisord's XML-RPC that we use, over its unix socket. */
import { request } from 'node:http';

export interface ProgramState {
  name: string;
  /** STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED, FATAL, UNKNOWN */
  statename: string;
  pid: number;
  /** Seconds since the epoch. */
  start: number;
  exitstatus: number;
  spawnerr: string;
}

type Value = string | number | boolean | null | Value[] | { [key: string]: Value };

/** supervisord answered, and refused. */
export class SupervisorFault extends Error {
  readonly fault: number;

  constructor(method: string, fault: number, text: string) {
    super(`supervisord refused ${method}: ${text}`);
    this.fault = fault;
  }
}

/** It answers within milliseconds; on an overloaded machine, when it gets its turn. */
const ANSWER_MS = 60_000;

export const FAULT_ALREADY_STARTED = 60;
export const FAULT_NOT_RUNNING = 70;

export class SupervisorClient {
  readonly socketPath: string;

  constructor(socketPath: string) {
    this.socketPath = socketPath;
  }

  /** Whether a supervisord answers there. */
  async isUp(): Promise<boolean> {
    try {
      const state = (await this.call('supervisor.getState')) as { statename: string };
      return state.statename === 'RUNNING';
    } catch (error) {
      if (error instanceof SupervisorFault) return false; // shutting down
      return false;
    }
  }

  async programs(): Promise<ProgramState[]> {
    return (await this.call('supervisor.getAllProcessInfo')) as unknown as ProgramState[];
  }

  async program(name: string): Promise<ProgramState> {
    const state = (await this.programs()).find((program) => program.name === name);
    if (state === undefined) throw new Error(`supervisord does not know ${name}`);
    return state;
  }

  /** Re-read the configuration: which programs are new, changed, gone. Nothing is started or stopped by it. */
  async reloadConfig(): Promise<{ added: string[]; changed: string[]; removed: string[] }> {
    const [[added, changed, removed]] = (await this.call('supervisor.reloadConfig')) as [
      [string[], string[], string[]],
    ];
    return { added, changed, removed };
  }

  async addGroup(name: string): Promise<void> {
    await this.call('supervisor.addProcessGroup', name);
  }

  async removeGroup(name: string): Promise<void> {
    await this.call('supervisor.removeProcessGroup', name);
  }

  /** Returns at once; a program that runs already is left alone. */
  async start(name: string): Promise<void> {
    await this.unlessFault(FAULT_ALREADY_STARTED, 'supervisor.startProcess', name, false);
  }

  /** Returns at once; a program that does not run is left alone. */
  async stop(name: string): Promise<void> {
    await this.unlessFault(FAULT_NOT_RUNNING, 'supervisor.stopProcess', name, false);
  }

  async shutdown(): Promise<void> {
    await this.call('supervisor.shutdown');
  }

  private async unlessFault(fault: number, method: string, ...parameters: (string | boolean)[]): Promise<void> {
    try {
      await this.call(method, ...parameters);
    } catch (error) {
      if (!(error instanceof SupervisorFault && error.fault === fault)) throw error;
    }
  }

  private async call(method: string, ...parameters: (string | boolean)[]): Promise<Value> {
    const body = `<?xml version="1.0"?><methodCall><methodName>${method}</methodName><params>${parameters
      .map((value) => `<param><value>${encode(value)}</value></param>`)
      .join('')}</params></methodCall>`;
    const answer = decode(await this.post(body));
    if (answer.fault !== undefined) {
      const { faultCode, faultString } = answer.fault as { faultCode: number; faultString: string };
      throw new SupervisorFault(method, faultCode, faultString);
    }
    return answer.value;
  }

  private post(body: string): Promise<string> {
    return new Promise((resolve, reject) => {
      const call = request(
        {
          socketPath: this.socketPath,
          path: '/RPC2',
          method: 'POST',
          headers: { 'content-type': 'text/xml', 'content-length': Buffer.byteLength(body) },
          timeout: ANSWER_MS,
        },
        (response) => {
          let text = '';
          response.setEncoding('utf8');
          response.on('data', (chunk: string) => (text += chunk));
          response.on('end', () =>
            response.statusCode === 200
              ? resolve(text)
              : reject(new Error(`supervisord answers HTTP ${response.statusCode}`)),
          );
          response.on('error', reject);
        },
      );
      call.on('timeout', () => call.destroy(new Error('supervisord does not answer')));
      call.on('error', reject);
      call.end(body);
    });
  }
}

const ENTITIES: Record<string, string> = { amp: '&', lt: '<', gt: '>', quot: '"', apos: "'" };

function encode(value: string | boolean): string {
  if (typeof value === 'boolean') return `<boolean>${value ? 1 : 0}</boolean>`;
  return `<string>${value.replace(/[&<>]/g, (c) => (c === '&' ? '&amp;' : c === '<' ? '&lt;' : '&gt;'))}</string>`;
}

/** Reads what Python's xmlrpc.client writes: no attributes, no comments, no CDATA. */
export function decode(xml: string): { value: Value; fault?: Value } {
  const tokens: string[] = xml.match(/<[^>]+>|[^<]+/g) ?? [];
  let at = 0;
  const skipTo = (tag: string): void => {
    while (at < tokens.length && tokens[at] !== tag) at += 1;
    at += 1;
  };

  const text = (): string => {
    const token = tokens[at] ?? '';
    if (token.startsWith('<')) return '';
    at += 1;
    return token.replace(/&(#x?[0-9a-fA-F]+|\w+);/g, (whole, name: string) => {
      if (name.startsWith('#x')) return String.fromCodePoint(Number.parseInt(name.slice(2), 16));
      if (name.startsWith('#')) return String.fromCodePoint(Number(name.slice(1)));
      return ENTITIES[name] ?? whole;
    });
  };

  /** After `<value>`; leaves the position after `</value>`. */
  const value = (): Value => {
    while (/^\s*$/.test(tokens[at] ?? '<') && /^<\w/.test(tokens[at + 1] ?? '')) at += 1;
    const tag = tokens[at] ?? '';
    if (!tag.startsWith('<') || tag === '</value>') {
      const bare = text();
      skipTo('</value>');
      return bare;
    }
    at += 1;
    const result = typed(tag);
    skipTo('</value>');
    return result;
  };

  const typed = (tag: string): Value => {
    if (tag === '<array>') return members('</data>', '<value>', () => value());
    if (tag === '<struct>') return Object.fromEntries(members('</struct>', '<name>', member));
    if (tag === '<nil/>') return null;
    const content = text();
    if (tag === '<int>' || tag === '<i4>' || tag === '<double>') return Number(content);
    return tag === '<boolean>' ? content.trim() === '1' : content;
  };

  const member = (): [string, Value] => {
    const name = text();
    skipTo('<value>');
    return [name, value()];
  };

  const members = <T>(end: string, begin: string, read: () => T): T[] => {
    const items: T[] = [];
    while (at < tokens.length && tokens[at] !== end) {
      at += 1;
      if (tokens[at - 1] === begin) items.push(read());
    }
    at += 1;
    return items;
  };

  const isFault = tokens.includes('<fault>');
  skipTo('<value>');
  const result = value();
  return isFault ? { value: null, fault: result } : { value: result };
}
