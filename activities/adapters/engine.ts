/**
 * Engines, leased at a checkpoint. A lease is a row in PostgreSQL whose epoch rises with every acquisition, so what a
 * superseded holder still samples is refused. The row also says which boot of the engine has which weights; a request
 * names the boot, so an engine that started again refuses it (404) instead of answering with its base weights, and is
 * given the weights again before the turn is sampled once more.
 */
import { readdir, readFile } from 'node:fs/promises';
import { cpus } from 'node:os';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Pool } from 'pg';
import type { Completion, Sample, SampleRequest } from '../../environments/deep-research/agent-loop.ts';
import type { ScorePrompt } from '../../environments/deep-research/beliefs.ts';
import type { Checkpoint } from '../../schemas/checkpoint.ts';
import { ExpError } from '../../schemas/errors.ts';
import { withAdvisoryLock } from './advisory-lock.ts';
import {
  BootChanged,
  type CallOptions,
  type EngineAddress,
  EngineClient,
  type EngineInfo,
  type EngineTimes,
  type Served,
} from './engine-client.ts';

export interface EnginePoolDeps {
  pool: Pool;
  engines: readonly EngineAddress[];
  /** Hugging Face directory of a checkpoint's weights, with `probe.json`. */
  merged: { directory(checkpoint: Checkpoint): Promise<string> };
  times?: Partial<EngineTimes>;
  /** A lease that nobody renews ends after this long. */
  leaseMs?: number;
}

export interface AcquireOptions extends CallOptions {
  /** Called while another holder has the engine. */
  onWait?: (holder: string) => void;
}

/** The weights an engine was last given, and at which of its starts. */
interface LeaseState {
  boot?: string;
  checkpoint?: string;
  model_dir?: string;
  /** A switch that has begun: what the engine served before it. */
  replacing?: Replaced;
}

/** Weights that are given up: their probe as the engine answered it, and their directory, where it is known. */
interface Replaced {
  logprobs: number[];
  model_dir?: string;
}

interface Switch {
  resource: string;
  epoch: number;
  state: LeaseState;
  checkpoint: Checkpoint;
  directory: string;
}

interface LeaseRow {
  resource: string;
  epoch: string;
  holder: string | null;
  state: LeaseState;
}

interface Probe {
  token_ids: number[];
  logprobs: (number | null)[];
}

const LEASE_MS = 120_000;
const POLL_MS = 1_000;
/** A waiter that has not asked for this long is gone: it keeps nobody from the engine. */
const WAITER_MS = 10_000;
const LOAD_ATTEMPTS = 3;
/**
 * Mean distance per token, in nats, between the engine's logprobs of the probe and those computed in fp32. SmolLM2-135M
 * in bf16 is 0.065 to 0.075 away from its own fp32 values; strangers are whole nats away.
 */
const FP32_TOLERANCE = 0.2;
/** The same between two probes of the same weights on the same build and machine: measured 0, over reloads too. */
const REPEAT_TOLERANCE = 0.02;
/** Below this two probes are the same. Any change of weights moves bf16 rounding, and with it the probe, by far more. */
const SAME = 1e-5;

export class EnginePool {
  readonly #pool: Pool;
  readonly #clients: readonly EngineClient[];
  readonly #merged: EnginePoolDeps['merged'];
  readonly #leaseMs: number;
  /** Loads under way in this process, by resource and epoch: a hundred trajectories ask, one loads. */
  readonly #loading = new Map<string, Promise<string>>();

  constructor({ pool, engines, merged, times, leaseMs = LEASE_MS }: EnginePoolDeps) {
    this.#pool = pool;
    this.#clients = engines.map((engine) => new EngineClient(engine, times));
    this.#merged = merged;
    this.#leaseMs = leaseMs;
  }

  async close(): Promise<void> {
    await Promise.all(this.#clients.map((client) => client.close()));
  }

  /**
   * Take an engine for a checkpoint, waiting while others hold all of them, and give it the weights. A holder that
   * asks again keeps its lease. Throws ENGINE_MODEL when the engine serves another base model.
   */
  async acquire(checkpoint: Checkpoint, holder: string, options: AcquireOptions = {}): Promise<EngineLease> {
    const { client, epoch, isNew } = await this.#take(checkpoint, holder, options);
    const lease = new EngineLease({
      client,
      epoch,
      checkpoint,
      holder,
      pool: this.#pool,
      leaseMs: this.#leaseMs,
      load: (stale, call) => this.#load(client, epoch, checkpoint, stale, call),
    });
    const renewing = setInterval(() => void lease.renew().catch(() => {}), this.#leaseMs / 6);
    try {
      await lease.prepare(options);
    } catch (error) {
      if (isNew) await this.release(holder);
      throw error;
    } finally {
      clearInterval(renewing);
    }
    return lease;
  }

  /** Give back whatever the holder has; it may have nothing. */
  async release(holder: string): Promise<void> {
    await this.#pool.query(
      `update leases set holder = null, expires_at = now() where holder = $1 and resource like 'engine/%'`,
      [holder],
    );
  }

  async #take(
    checkpoint: Checkpoint,
    holder: string,
    options: AcquireOptions,
  ): Promise<{ client: EngineClient; epoch: number; isNew: boolean }> {
    if (this.#clients.length === 0)
      throw new ExpError('ENGINE_MISSING', 'profile', 'it names no engine to sample from');
    const names = this.#clients.map(({ address }) => resourceOf(address));
    await this.#pool.query(`insert into leases (resource) select unnest($1::text[]) on conflict do nothing`, [names]);
    try {
      return await this.#waitForTurn(names, checkpoint, holder, options);
    } finally {
      await this.#pool
        .query(`delete from engine_waiters where holder = $1 or seen < now() - interval '1 day'`, [holder])
        .catch(() => {}); // it is forgotten soon
    }
  }

  /** First come, first served: a free engine is for whoever has waited longest and still asks. */
  async #waitForTurn(
    names: readonly string[],
    checkpoint: Checkpoint,
    holder: string,
    { signal, onTokens, onWait }: AcquireOptions,
  ): Promise<{ client: EngineClient; epoch: number; isNew: boolean }> {
    for (;;) {
      signal?.throwIfAborted();
      // Its own engine first, then one that has the weights already.
      const { rows } = await this.#pool.query<LeaseRow & { is_new: boolean }>(
        `with me as (
           insert into engine_waiters as known (holder) values ($2)
           on conflict (holder) do update set seen = clock_timestamp(),
             since = case when known.seen < now() - $5 * interval '1 ms' then now() else known.since end
           returning since),
         free as (
           select resource, holder is distinct from $2 as is_new from leases
           where resource = any($1) and (holder = $2 or (holder is null or expires_at < now()) and not exists (
             select 1 from engine_waiters before, me where before.holder <> $2
               and before.seen > now() - $5 * interval '1 ms' and (before.since, before.holder) < (me.since, $2)))
           order by holder = $2 desc nulls last, state ->> 'checkpoint' = $3 desc nulls last, resource
           limit 1 for update skip locked)
         update leases set epoch = epoch + is_new::int, holder = $2, expires_at = now() + $4 * interval '1 ms'
         from free where leases.resource = free.resource
         returning leases.resource, epoch, leases.holder, state, is_new`,
        [names, holder, checkpoint.digest, this.#leaseMs, WAITER_MS],
      );
      const [row] = rows;
      const client = this.#clients.find(({ address }) => resourceOf(address) === row?.resource);
      if (client !== undefined && row !== undefined) return { client, epoch: Number(row.epoch), isNew: row.is_new };
      if (onWait !== undefined) onWait(await this.#holderOf(names));
      await sleep(POLL_MS * (0.5 + Math.random()), undefined, signal ? { signal } : {});
      onTokens?.(0);
    }
  }

  async #holderOf(names: readonly string[]): Promise<string> {
    const { rows } = await this.#pool.query<{ holder: string }>(
      'select holder from leases where resource = any($1) and holder is not null order by resource',
      [names],
    );
    return rows.map(({ holder }) => holder).join(', ');
  }

  /** The boot at which the engine has the weights; `stale` names one that is known to be gone. */
  #load(
    client: EngineClient,
    epoch: number,
    checkpoint: Checkpoint,
    stale: string | null,
    call: CallOptions,
  ): Promise<string> {
    const name = `${resourceOf(client.address)} ${epoch}`;
    const loading =
      this.#loading.get(name) ??
      this.#loadOnce(client, epoch, checkpoint, stale, call).finally(() => this.#loading.delete(name));
    this.#loading.set(name, loading);
    return loading;
  }

  async #loadOnce(
    client: EngineClient,
    epoch: number,
    checkpoint: Checkpoint,
    stale: string | null,
    call: CallOptions,
  ): Promise<string> {
    const directory = await this.#merged.directory(checkpoint);
    const resource = resourceOf(client.address);
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await withAdvisoryLock(this.#pool, resource, async () => {
          const info = await client.info(call);
          const state = await this.#stateAt(resource, epoch);
          const isLoaded = info.boot !== stale && state.boot === info.boot && state.checkpoint === checkpoint.digest;
          if (isLoaded) return info.boot;
          return this.#replaceWeights(client, info, { resource, epoch, state, checkpoint, directory }, call);
        });
      } catch (error) {
        call.signal?.throwIfAborted();
        if (error instanceof ExpError && error.code !== 'ENGINE_PROBE') throw error;
        if (attempt >= LOAD_ATTEMPTS) {
          if (error instanceof ExpError) throw error;
          throw new ExpError(
            'ENGINE_UNAVAILABLE',
            resource,
            `its weights could not be loaded: ${(error as Error).message}`,
            { cause: error },
          );
        }
        await sleep(1_000 * attempt);
        call.onTokens?.(0);
      }
    }
  }

  /** Give the engine the weights, and have it prove that it has them. Returns its boot from then on. */
  async #replaceWeights(
    client: EngineClient,
    info: EngineInfo,
    { resource, epoch, state, checkpoint, directory }: Switch,
    call: CallOptions,
  ): Promise<string> {
    const { address } = client;
    const boot = address.admin ? client.bootAfterLoad(info.boot) : info.boot;
    await checkBase(address, info, checkpoint, directory);
    const probe = await readProbe(directory);
    if (address.admin) {
      // An attempt that broke off may have loaded the weights: what was served before it is what counts.
      const unfinished = state.boot === info.boot ? state.replacing : undefined;
      const replacing = unfinished ?? {
        logprobs: (await client.probe(info.boot, probe.token_ids, call)).logprobs,
        ...(state.boot === info.boot && state.model_dir !== undefined && { model_dir: state.model_dir }),
      };
      // Until the probe has answered, nobody may take the engine for loaded.
      await this.#setState(resource, epoch, { boot, replacing });
      await client.loadWeights(boot, directory, call);
      const served = await client.probe(boot, probe.token_ids, call);
      checkExpected(address, checkpoint, served, probe);
      await checkReplaced(address, checkpoint, served, probe, replacing);
      await this.#checkRecorded(address, checkpoint, served);
    } else {
      const served = await client.probe(info.boot, probe.token_ids, call);
      checkExpected(address, checkpoint, served, probe);
      await this.#checkRecorded(address, checkpoint, served);
    }
    await this.#setState(resource, epoch, { boot, checkpoint: checkpoint.digest, model_dir: directory });
    return boot;
  }

  /** An engine answers for a checkpoint as it did the first time. */
  async #checkRecorded(address: EngineAddress, checkpoint: Checkpoint, { logprobs, build }: Served): Promise<void> {
    const { rows } = await this.#pool.query<{ logprobs: number[] }>(
      `with added as (
         insert into probes (checkpoint_digest, engine_build, logprobs) values ($1, $2, $3) on conflict do nothing returning logprobs)
       select logprobs from added union all select logprobs from probes where checkpoint_digest = $1 and engine_build = $2`,
      [checkpoint.digest, `${build} ${machineOf(address)}`, logprobs],
    );
    const change = meanDistance(logprobs, rows[0]?.logprobs ?? []);
    if (!(change <= REPEAT_TOLERANCE)) {
      throw probeFailed(
        address,
        checkpoint,
        `its answers are ${change.toFixed(4)} nats a token away from those it gave when it served it first`,
      );
    }
  }

  async #stateAt(resource: string, epoch: number): Promise<LeaseState> {
    const { rows } = await this.#pool.query<LeaseRow>('select state from leases where resource = $1 and epoch = $2', [
      resource,
      epoch,
    ]);
    if (rows[0] === undefined) throw leaseLost(resource);
    return rows[0].state;
  }

  async #setState(resource: string, epoch: number, state: LeaseState): Promise<void> {
    const { rowCount } = await this.#pool.query('update leases set state = $3 where resource = $1 and epoch = $2', [
      resource,
      epoch,
      state,
    ]);
    if (rowCount !== 1) throw leaseLost(resource);
  }
}

interface EngineLeaseDeps {
  client: EngineClient;
  epoch: number;
  checkpoint: Checkpoint;
  holder: string;
  pool: Pool;
  leaseMs: number;
  load(stale: string | null, call: CallOptions): Promise<string>;
}

/** An engine that answers with one checkpoint's weights, as long as the epoch is ours. */
export class EngineLease {
  readonly epoch: number;
  readonly #deps: EngineLeaseDeps;
  #boot: string | null = null;

  constructor(deps: EngineLeaseDeps) {
    this.#deps = deps;
    this.epoch = deps.epoch;
  }

  get engine(): string {
    return this.#deps.client.address.name;
  }

  async prepare(call: CallOptions): Promise<void> {
    this.#boot = await this.#deps.load(null, call);
  }

  /** Completes ids with the leased weights. A completion is returned only while the lease is still ours. */
  sampler(stopIds: readonly number[], call: CallOptions = {}): Sample {
    return async (ids: readonly number[], request: SampleRequest): Promise<Completion> => {
      const completion = await this.#served(call, (boot) =>
        this.#deps.client.complete(boot, ids, stopIds, request, call),
      );
      return { ...completion, weight_version: this.#deps.checkpoint.digest };
    };
  }

  /** Log-probabilities of ids under the leased weights, at temperature 1 whatever is sampled at. */
  scorer(call: CallOptions = {}): ScorePrompt {
    return async (ids, from) => {
      const logprobs = await this.#served(call, (boot) => this.#deps.client.score(boot, ids, from, call));
      call.onTokens?.(0);
      return logprobs;
    };
  }

  async #served<T>(call: CallOptions, ask: (boot: string) => Promise<T>): Promise<T> {
    for (;;) {
      const boot = this.#boot ?? (await this.#reload(null, call));
      try {
        const answer = await ask(boot);
        await this.assertHeld();
        return answer;
      } catch (error) {
        if (!(error instanceof BootChanged)) throw error;
        await this.assertHeld();
        await this.#reload(boot, call);
      }
    }
  }

  /** Throws LEASE_LOST once another holder has the engine: what was sampled meanwhile may come from other weights. */
  async assertHeld(): Promise<void> {
    const { client, pool } = this.#deps;
    const resource = resourceOf(client.address);
    const { rowCount } = await pool.query('select 1 from leases where resource = $1 and epoch = $2 and holder = $3', [
      resource,
      this.epoch,
      this.#deps.holder,
    ]);
    if (rowCount !== 1) throw leaseLost(resource);
  }

  async renew(): Promise<void> {
    const { client, pool, leaseMs, holder } = this.#deps;
    await pool.query(
      `update leases set expires_at = now() + $4 * interval '1 ms' where resource = $1 and epoch = $2 and holder = $3`,
      [resourceOf(client.address), this.epoch, holder, leaseMs],
    );
  }

  /** Others may have noticed first: whoever does, the engine is loaded once. */
  async #reload(stale: string | null, call: CallOptions): Promise<string> {
    if (this.#boot !== null && this.#boot !== stale) return this.#boot;
    const boot = await this.#deps.load(stale, call);
    this.#boot = boot;
    return boot;
  }
}

/** The engine's logprobs of a fixed prompt must be those of the checkpoint, up to rounding. */
function checkExpected(address: EngineAddress, checkpoint: Checkpoint, { logprobs }: Served, probe: Probe): void {
  const distance = meanDistance(logprobs, expectedOf(probe));
  if (distance <= FP32_TOLERANCE) return;
  throw probeFailed(
    address,
    checkpoint,
    `its answers are ${distance.toFixed(3)} nats a token away from what the weights give, at most ${FP32_TOLERANCE}`,
  );
}

/**
 * One step of training changes the probe by less than bf16 rounds, so nearness to the right values alone cannot tell
 * a checkpoint from its parent. But an engine repeats itself exactly: the same answers before and after mean the same
 * weights, which is right only when the checkpoints do not differ.
 */
async function checkReplaced(
  address: EngineAddress,
  checkpoint: Checkpoint,
  served: Served,
  probe: Probe,
  replaced: Replaced,
): Promise<void> {
  if (!(meanDistance(replaced.logprobs, served.logprobs) <= SAME)) return;
  if (replaced.model_dir === undefined) {
    if (checkpoint.adapters.length === 0) return; // it had just started, with these weights
  } else {
    const earlier = await readProbe(replaced.model_dir).catch(() => null);
    if (earlier !== null && meanDistance(expectedOf(earlier), expectedOf(probe)) <= SAME) return;
  }
  throw probeFailed(address, checkpoint, 'it answers exactly as before its weights were replaced');
}

async function readProbe(directory: string): Promise<Probe> {
  return JSON.parse(await readFile(join(directory, 'probe.json'), 'utf8')) as Probe;
}

function expectedOf({ logprobs }: Probe): number[] {
  return logprobs.slice(1).map((logprob) => logprob ?? Number.NaN);
}

function probeFailed({ name }: EngineAddress, { digest }: Checkpoint, what: string): ExpError {
  return new ExpError('ENGINE_PROBE', `engine ${name}`, `it does not serve checkpoint ${digest.slice(0, 12)}: ${what}`);
}

/** Rounding depends on the machine: more threads add up in another order. */
function machineOf({ name, url }: EngineAddress): string {
  const isHere = ['127.0.0.1', 'localhost', '[::1]'].includes(new URL(url).hostname);
  return isHere ? `${name} ${cpus().length} x ${cpus()[0]?.model ?? 'cpu'}` : name;
}

const SHAPE = [
  'model_type',
  'vocab_size',
  'hidden_size',
  'intermediate_size',
  'num_hidden_layers',
  'num_attention_heads',
  'num_key_value_heads',
];

/** Weights of another architecture would end the engine, and a directory without weights too: refuse before loading. */
async function checkBase(
  address: EngineAddress,
  info: EngineInfo,
  checkpoint: Checkpoint,
  directory: string,
): Promise<void> {
  const at = `engine ${address.name} at ${address.url}`;
  const remedy = `start it with ${checkpoint.model} (embedded.engine.model of the profile, then \`exp down\` and \`exp up\`)`;
  const [served, wanted] = await Promise.all([readConfig(info.root), readConfig(directory)]);
  const other =
    served === null
      ? basename(info.root) !== basename(checkpoint.model)
      : SHAPE.some((key) => wanted?.[key] !== served[key]);
  if (other)
    throw new ExpError(
      'ENGINE_MODEL',
      at,
      `serves ${info.root}, but the checkpoint is of ${checkpoint.model}: ${remedy}`,
    );
  if (!address.admin && checkpoint.adapters.length > 0) {
    throw new ExpError('ENGINE_MODEL', at, 'cannot be given trained weights: the profile says admin: false');
  }
  const files = await readdir(directory);
  if (wanted === null || !files.some((file) => file.endsWith('.safetensors'))) {
    throw new ExpError('CHECKPOINT', directory, 'holds no config.json or no .safetensors');
  }
}

/** Null when the directory is not on this machine. */
async function readConfig(directory: string): Promise<Record<string, unknown> | null> {
  try {
    return JSON.parse(await readFile(join(directory, 'config.json'), 'utf8')) as Record<string, unknown>;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ENOTDIR') return null;
    throw error;
  }
}

/** NaN when the lengths differ or a value is missing, so that no comparison with it holds. */
function meanDistance(a: readonly number[], b: readonly number[]): number {
  if (a.length !== b.length || a.length === 0) return Number.NaN;
  return a.reduce((sum, value, index) => sum + Math.abs(value - (b[index] ?? Number.NaN)), 0) / a.length;
}

/** Several engines of a profile may be of one entry of its registry, and share the name. */
function resourceOf({ name, url }: EngineAddress): string {
  return `engine/${name} at ${url}`;
}

function leaseLost(resource: string): ExpError {
  return new ExpError('LEASE_LOST', resource, 'another holder took the engine');
}
