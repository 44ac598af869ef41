/** supervisord's configuration for the programs of a stack. */
import { createHash } from 'node:crypto';
import { mkdirSync } from 'node:fs';
import { tmpdir, userInfo } from 'node:os';
import { join } from 'node:path';
import { canonicalJson } from '../schemas/canonical.ts';
import { python, repoRoot } from './home.ts';
import { groupFile } from './processes.ts';
import { logPath, type Program } from './programs.ts';

export const confPath = (home: string): string => join(home, 'supervisord.conf');
export const pidPath = (home: string): string => join(home, 'supervisord.pid');
export const programPath = (home: string, service: string): string => join(home, 'programs', `${service}.json`);

/** Longest path of a unix socket that every kernel takes is 107 bytes; a home may be deeper than that. */
export function socketPath(stack: string): string {
  const preferred = join(tmpdir(), `exp-${userInfo().uid}`, `${stack}.sock`);
  return preferred.length < 100 ? preferred : join('/tmp', `exp-${userInfo().uid}`, `${stack}.sock`);
}

/** Creates the socket's folder for its owner alone. */
export function makeSocketDir(stack: string): string {
  const path = socketPath(stack);
  mkdirSync(join(path, '..'), { recursive: true, mode: 0o700 });
  return path;
}

/** What launch.py reads; the digest of it stands on the command line, so a change is a changed program. */
export function programDocument(home: string, program: Program): { text: string; digest: string } {
  const { service, argv, env, unset, cwd } = program;
  const text = canonicalJson({ service, argv, env, unset, cwd, group_file: groupFile(home, service) });
  return { text, digest: createHash('sha256').update(text).digest('hex').slice(0, 16) };
}

export function renderConf(home: string, stack: string, programs: readonly Program[]): string {
  const socket = socketPath(stack);
  const head = section('supervisord', {
    nodaemon: 'true',
    identifier: `exp-${stack}`,
    logfile: doublePercents(logPath(home, 'supervisord')),
    logfile_maxbytes: '5MB',
    logfile_backups: '2',
    loglevel: 'info',
    pidfile: doublePercents(pidPath(home)),
    childlogdir: doublePercents(join(home, 'logs')),
    directory: doublePercents(home),
    minfds: '1024',
  });
  const rpc = section('rpcinterface:supervisor', {
    'supervisor.rpcinterface_factory': 'supervisor.rpcinterface:make_main_rpcinterface',
  });
  const server = section('unix_http_server', { file: doublePercents(socket), chmod: '0700' });
  const control = section('supervisorctl', { serverurl: `unix://${doublePercents(socket)}` });
  return [head, server, rpc, control, ...programs.map((program) => programSection(home, program))].join('\n');
}

/** Nothing starts by itself with supervisord: `exp up` starts what is asked for, in order. */
function programSection(home: string, program: Program): string {
  const { digest } = programDocument(home, program);
  const argv = [python(), join(repoRoot(), 'services', 'launch.py'), programPath(home, program.service), digest];
  return section(`program:${program.service}`, {
    command: argv.map(quote).join(' '),
    autostart: 'false',
    autorestart: 'true',
    startsecs: '1',
    startretries: '1000',
    stopsignal: program.stopSignal,
    stopwaitsecs: String(program.stopWaitSeconds),
    stopasgroup: 'false',
    killasgroup: 'true',
    redirect_stderr: 'true',
    stdout_logfile: doublePercents(logPath(home, program.service)),
    stdout_logfile_maxbytes: '10MB',
    stdout_logfile_backups: '3',
  });
}

const section = (name: string, values: Record<string, string>): string =>
  `[${name}]\n${Object.entries(values)
    .map(([key, value]) => `${key} = ${value}\n`)
    .join('')}`;

/** supervisord expands %(name)s in every value, and takes ` ;` for the start of a comment. */
const doublePercents = (text: string): string => text.replaceAll('%', '%%');

/** A command line is split as a POSIX shell would. */
const quote = (text: string): string =>
  /^[\w@+=:,./-]+$/.test(text) ? text : doublePercents(`"${text.replace(/["\\$`]/g, '\\$&')}"`);
