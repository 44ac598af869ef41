import { parseArgs } from 'node:util';
import { ExitCode } from '../../schemas/errors.ts';
import type { Profile } from '../../schemas/profile.ts';
import type { Connections } from '../../services/connections.ts';
import { home } from '../../services/home.ts';
import { SERVICES } from '../../services/programs.ts';
import { serviceStates } from '../../services/stack.ts';
import type { Command, CommandIo } from '../command.ts';
import { renderFrame } from '../live-view.ts';
import { asUnreachable, openProfile, openStack, type Stack, withStack } from '../open-stack.ts';
import {
  allNodes,
  findRun,
  listRuns,
  RunReader,
  type RunRow,
  type RunState,
  runArgument,
  toldGates,
} from '../run-state.ts';
import { clock, detectTerminal, renderTable } from '../terminal.ts';

export const command: Command = {
  name: 'status',
  summary: 'Show where a run is; without a RUN, which services are up and which runs are active.',
  usage: 'status [RUN|latest] [--profile P] [--json]',
  async run(argv, io) {
    const { values, positionals } = parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: { profile: { type: 'string' }, json: { type: 'boolean', default: false } },
    });
    if (positionals.length === 0) return showStack(values.profile, values.json, io);
    const wanted = runArgument(positionals, 'status');
    return withStack(values.profile, async (stack, profile) => {
      const { id } = await findRun(stack.pool, wanted);
      const state = await new RunReader(stack, id, profile.prices).read();
      if (values.json) io.out(JSON.stringify(toJson(state)));
      else showRun(state, io);
      return ExitCode.done;
    });
  },
};

/** `arm` tells nodes of the same name apart, and arms that share one show the same key; `trouble` is there when the workflows do not answer. */
function toJson(state: RunState) {
  const severalArms = state.arms.length > 1;
  const nodes = allNodes(state).map(({ arm, id, kind, key, status, attempts, error, done, total }) => ({
    id,
    kind,
    key,
    status,
    attempts,
    ...(severalArms && { arm }),
    ...(error !== null && { error }),
    ...(total > 0 && { done, total }),
  }));
  const gates = toldGates(state).map(({ arm, ...gate }) => ({ ...gate, ...(severalArms && { arm }) }));
  const { run, status, mlflow_url, paused, spend, trouble } = state;
  const arms = state.arms.map(({ arm, status: ofArm }) => ({ arm, status: ofArm }));
  return {
    run,
    status,
    nodes,
    mlflow_url,
    ...(severalArms && { arms }),
    spend,
    ...(paused && { paused }),
    ...(gates.length > 0 && { gates }),
    ...(trouble !== null && { trouble }),
  };
}

/** The picture of `exp watch`, once and whole: it may be longer than the screen. */
function showRun(state: RunState, io: CommandIo): void {
  const terminal = { ...detectTerminal(io), rows: Number.MAX_SAFE_INTEGER };
  const columns = io.isTTY ? terminal.columns : Math.max(terminal.columns, 120);
  for (const line of renderFrame(state, { ...terminal, columns }, { now: new Date(), tick: 0 })) io.out(line);
}

interface ServiceStatus {
  name: string;
  status: string;
  pid: number | null;
  since: string | null;
  address: string | null;
}

async function showStack(profileName: string | undefined, json: boolean, io: CommandIo): Promise<number> {
  const { profile } = openProfile(profileName);
  const stack = await openStack(profile);
  try {
    const services = profile.embedded ? await embeddedServices(stack) : await externalServices(stack, profile);
    const runs = stack ? await listRuns(stack.pool, { active: true }) : [];
    const up = services.every(({ status }) => status === 'up');
    if (json)
      io.out(
        JSON.stringify({
          profile: profile.name,
          up,
          services,
          runs: runs.map(({ id, status }) => ({ run: id, status })),
        }),
      );
    else for (const line of describeStack(services, runs, up, io)) io.out(line);
    return ExitCode.done;
  } catch (error) {
    throw asUnreachable(error, profile);
  } finally {
    await stack?.close();
  }
}

const STATE_WORDS: Record<string, string> = {
  RUNNING: 'up',
  STARTING: 'starting',
  BACKOFF: 'restarting',
  FATAL: 'failed',
  STOPPING: 'stopping',
};

async function embeddedServices(stack: Stack | null): Promise<ServiceStatus[]> {
  const states = new Map((await serviceStates(home()))?.map((state) => [state.name, state]));
  const addresses = stack ? addressesOf(stack.connections) : {};
  return SERVICES.map((name) => {
    const state = states.get(name);
    const running = state?.statename === 'RUNNING';
    return {
      name,
      status: (state && STATE_WORDS[state.statename]) ?? 'down',
      pid: running ? state.pid : null,
      since: running ? new Date(state.start * 1000).toISOString() : null,
      address: running ? (addresses[name] ?? null) : null,
    };
  });
}

/** Of services elsewhere only those that every verb needs are asked. */
async function externalServices(stack: Stack | null, profile: Profile): Promise<ServiceStatus[]> {
  const temporal = stack
    ? await stack.temporal().then(
        () => true,
        () => false,
      )
    : null;
  const word = (answers: boolean | null): string => (answers === null ? 'not asked' : answers ? 'up' : 'down');
  const row = (name: string, status: string, address: string | null): ServiceStatus => ({
    name,
    status,
    pid: null,
    since: null,
    address,
  });
  return [
    row('postgres', word(stack !== null), null),
    row('temporal', word(temporal), profile.addresses?.temporal.address ?? null),
  ];
}

/** Links a person may open; PostgreSQL's address holds a password and is not among them. */
function addressesOf(connections: Connections): Record<string, string> {
  const [engine] = connections.engines;
  return {
    temporal: connections.temporal.ui ?? connections.temporal.address,
    milvus: connections.milvus.address,
    mlflow: connections.mlflow.url,
    ...(engine && { engine: engine.url }),
  };
}

function describeStack(
  services: readonly ServiceStatus[],
  runs: readonly RunRow[],
  up: boolean,
  io: CommandIo,
): string[] {
  const terminal = detectTerminal(io);
  const now = Date.now();
  const since = (at: string | null): string => (at === null ? '' : clock((now - Date.parse(at)) / 1000));
  const rows = services.map(({ name, status, pid, since: began, address }) => [
    name,
    status,
    since(began),
    pid === null ? '' : String(pid),
    address ?? '',
  ]);
  const columns = [
    { title: 'service' },
    { title: 'status' },
    { title: 'for', align: 'right' as const },
    { title: 'pid', align: 'right' as const },
    { title: 'address' },
  ];
  return [
    ...renderTable(terminal, columns, rows),
    ...(up ? [] : ['', 'to start what is down: exp up    to learn why it is: exp doctor']),
    '',
    ...(runs.length > 0 ? ['active runs:', ...runs.map(({ id }) => `  ${id}`)] : ['no run is active']),
  ];
}
