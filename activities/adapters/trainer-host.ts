import { setTimeout as delay } from 'node:timers/promises';
import type { Pool } from 'pg';
import { ExpError } from '../../schemas/errors.ts';
import type { Launcher, Processes } from './launch-command.ts';
import { adoptTrainer, endTrainer, startTrainer, type TrainerClient, type TrainerLease } from './trainer-process.ts';

interface LeaseRow {
  epoch: string;
  holder: string | null;
  state: { host?: string; process?: TrainerLease };
}

/** How long a step waits for the holder to bring a killed trainer back. */
const RETURN_MS = 120_000;

/**
 * Trainer processes of this host, leased per stage in PostgreSQL: the epoch only rises, so what a superseded holder
 * still does is refused. Only the holder starts a process; everybody else adopts the one the lease names.
 */
export class TrainerHost {
  readonly #pool: Pool;
  readonly #host: string;
  readonly #logDir: string;
  readonly #python: string;
  readonly #packageDir: string;
  readonly #launcher: Launcher;
  readonly #clients = new Map<number, TrainerClient>();

  constructor(options: {
    pool: Pool;
    host: string;
    logDir: string;
    python: string;
    packageDir: string;
    launcher: Launcher;
  }) {
    this.#pool = options.pool;
    this.#host = options.host;
    this.#logDir = options.logDir;
    this.#python = options.python;
    this.#packageDir = options.packageDir;
    this.#launcher = options.launcher;
  }

  /** Take the lease. A holder that comes back (a restarted worker) keeps its epoch and its process. */
  async acquire(stageKey: string, holder: string): Promise<number> {
    const { rows } = await this.#pool.query<LeaseRow>(
      `insert into leases (resource, epoch, holder, state, expires_at) values ($1, 1, $2, $3, 'infinity')
       on conflict (resource) do update set
         epoch = leases.epoch + case when leases.holder = $2 then 0 else 1 end,
         holder = $2,
         state = case when leases.holder = $2 or leases.state ->> 'host' = $4 then leases.state else $3 end
       returning epoch`,
      [resourceOf(stageKey), holder, { host: this.#host }, this.#host],
    );
    return Number((rows[0] as LeaseRow).epoch);
  }

  /** Have a live process under the lease: the one that is there, or a new one. Called by the holder only. */
  async ensureProcess(
    stageKey: string,
    epoch: number,
    processes: Processes,
    waiting: { signal: AbortSignal; onWait(): void },
  ): Promise<TrainerClient> {
    const row = await this.#read(stageKey, epoch);
    const adopted = row.state.process ? await this.#adopt(row.state.process) : null;
    if (adopted) return adopted;
    // It may live and not answer: two processes must not share the memory of one.
    if (row.state.process && row.state.host === this.#host) await endTrainer(row.state.process);
    const { lease, client } = await startTrainer({
      python: this.#python,
      packageDir: this.#packageDir,
      logDir: this.#logDir,
      name: stageKey.slice(0, 12),
      launcher: this.#launcher,
      processes,
      ...waiting,
    });
    const { rowCount } = await this.#pool.query(
      `update leases set state = jsonb_build_object('host', $3::text, 'process', $4::jsonb) where resource = $1 and epoch = $2`,
      [resourceOf(stageKey), epoch, this.#host, lease],
    );
    if (rowCount === 0) {
      await endTrainer(lease);
      throw lost(stageKey);
    }
    this.#clients.set(lease.pid, client);
    return client;
  }

  /** The trainer of a stage, for one activity; waits while the holder replaces a killed one. */
  async client(stageKey: string, epoch: number): Promise<TrainerClient> {
    for (const deadline = Date.now() + RETURN_MS; ; await delay(250)) {
      const { state } = await this.#read(stageKey, epoch);
      const client = state.process ? await this.#adopt(state.process) : null;
      if (client) return client;
      if (Date.now() > deadline) throw new ExpError('TRAINER_LOST', stageKey, 'no trainer process came back');
    }
  }

  /** Fencing: throws LEASE_LOST when somebody else holds the stage by now. */
  async assertHeld(stageKey: string, epoch: number): Promise<void> {
    await this.#read(stageKey, epoch);
  }

  /** End the process of a stage; nothing happens when it is gone or another epoch holds it. */
  async end(stageKey: string, epoch: number): Promise<void> {
    const row = await this.#read(stageKey, epoch).catch(() => null);
    const process = row?.state.process;
    if (!process || row.state.host !== this.#host) return;
    await endTrainer(process);
    this.#clients.delete(process.pid);
    await this.#pool.query(`update leases set state = state - 'process' where resource = $1 and epoch = $2`, [
      resourceOf(stageKey),
      epoch,
    ]);
  }

  async #adopt(lease: TrainerLease): Promise<TrainerClient | null> {
    const known = this.#clients.get(lease.pid);
    const client = known && (await known.isAlive()) ? known : await adoptTrainer(lease);
    if (client) this.#clients.set(lease.pid, client);
    else this.#clients.delete(lease.pid);
    return client;
  }

  async #read(stageKey: string, epoch: number): Promise<LeaseRow> {
    const { rows } = await this.#pool.query<LeaseRow>('select epoch, holder, state from leases where resource = $1', [
      resourceOf(stageKey),
    ]);
    if (!rows[0] || Number(rows[0].epoch) !== epoch) throw lost(stageKey);
    return rows[0];
  }
}

const resourceOf = (stageKey: string): string => `trainer/${stageKey}`;

const lost = (stageKey: string): ExpError =>
  new ExpError('LEASE_LOST', stageKey, 'another holder took the trainer of this stage');
