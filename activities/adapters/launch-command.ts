import { createServer } from 'node:net';
import { hostname } from 'node:os';

/** How a profile starts the trainer of a stage. */
export interface Launcher {
  /** Argument vector; {{command}} stands for the trainer's own, other names are filled in. */
  readonly command: readonly string[];
  /** Ends what the command started, where ending the command itself does not. */
  readonly cancel?: readonly string[];
  /** The trainer may be on another machine, and is reached over TCP. */
  readonly remote?: boolean;
}

/** Processes that train one policy together; one is a plain process, more are started by torchrun. */
export interface Processes {
  /** In all, over all machines. */
  readonly count: number;
  readonly machines: number;
}

export interface Launch {
  readonly python: string;
  /** Where it is reached: a Unix socket, or the file to which it writes its address. */
  readonly socket: string;
  readonly processes: Processes;
  /** Unique among jobs, of letters, digits and dashes. */
  readonly job: string;
  /** Of a port at which the machines of one job meet: free on this one. */
  readonly port: number;
}

/** The whole argument vector of a trainer. */
export function launchCommand(launcher: Launcher, launch: Launch): string[] {
  return fill(launcher.command, launch, launcher.remote ? '--address' : '--socket');
}

/** What ends a job that was launched elsewhere, or null. */
export function cancelCommand(launcher: Launcher, launch: Launch): string[] | null {
  return launcher.cancel ? fill(launcher.cancel, launch, '') : null;
}

function fill(template: readonly string[], launch: Launch, reached: string): string[] {
  const { count, machines } = launch.processes;
  const values: Record<string, string> = {
    job: launch.job,
    nodes: String(machines),
    gpus_per_node: String(count / machines),
  };
  return template.flatMap((argument) =>
    argument === '{{command}}'
      ? trainerCommand(launch, reached)
      : [argument.replaceAll(/\{\{(\w+)\}\}/g, (whole, name: string) => values[name] ?? whole)],
  );
}

/** Run on each machine of the job; torchrun starts the processes of that machine and ends all when one is lost. */
function trainerCommand(
  { python, socket, processes: { count, machines }, job, port }: Launch,
  reached: string,
): string[] {
  const server = ['-m', 'exp_trainer.server', reached, socket];
  if (count === 1) return [python, ...server];
  const meeting =
    machines === 1
      ? ['--standalone']
      : [`--nnodes=${machines}`, '--rdzv-backend=c10d', `--rdzv-id=${job}`, `--rdzv-endpoint=${hostname()}:${port}`];
  return [python, '-m', 'torch.distributed.run', ...meeting, `--nproc-per-node=${count / machines}`, ...server];
}

/** A port that nobody listens on. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve, reject) => server.once('error', reject).listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}
