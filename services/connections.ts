/** Addresses of a profile's services, with secrets resolved: the only place where a secret becomes a string. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { ExpError } from '../schemas/errors.ts';
import type { Addresses, Profile, Secret } from '../schemas/profile.ts';
import { home } from './home.ts';
import { readServicesFile, type ServicesFile } from './services-file.ts';

export interface TlsFiles {
  serverName?: string;
  /** PEM bytes. */
  ca?: Buffer;
  cert?: Buffer;
  key?: Buffer;
}

export interface EngineAddress {
  name: string;
  kind: 'vllm' | 'sglang';
  url: string;
  /** Whether development routes (load weights, reset the prefix cache) may be called. */
  admin: boolean;
}

export interface Connections {
  temporal: {
    address: string;
    namespace: string;
    queuePrefix: string;
    tls?: true | TlsFiles;
    apiKey?: string;
    ui?: string;
  };
  postgres: { url: string };
  milvus: { address: string; token?: string };
  mlflow: { url: string; token?: string };
  engines: EngineAddress[];
  artifacts:
    | { kind: 'dir'; path: string }
    | { kind: 's3'; bucket: string; prefix: string; region: string; endpoint?: string };
}

/** Throws SERVICES_DOWN when an embedded stack was never started, SECRET_MISSING when a named secret is not there. */
export async function connections(profile: Profile): Promise<Connections> {
  if (profile.addresses !== undefined) return external(profile, profile.addresses);
  const file = readServicesFile(home());
  if (file === undefined) {
    throw new ExpError(
      'SERVICES_DOWN',
      `profile ${profile.name}`,
      'the embedded services were never started here; run `exp up`',
    );
  }
  return embedded(profile, file, home());
}

/** Addresses of the embedded stack, from what `exp up` wrote. */
export function embedded(profile: Profile, { ports, passwords }: ServicesFile, homeDir: string): Connections {
  const engine = profile.embedded?.engine;
  return {
    temporal: {
      address: `127.0.0.1:${ports.temporal}`,
      namespace: 'default',
      queuePrefix: profile.queue_prefix,
      ui: `http://127.0.0.1:${ports.temporal_ui}`,
    },
    postgres: { url: `postgresql://exp:${passwords.postgres}@127.0.0.1:${ports.postgres}/exp` },
    milvus: { address: `127.0.0.1:${ports.milvus}` },
    mlflow: { url: `http://127.0.0.1:${ports.mlflow}` },
    engines:
      engine === undefined
        ? []
        : [{ name: engine.name, kind: 'vllm', url: `http://127.0.0.1:${ports.engine}`, admin: true }],
    artifacts: { kind: 'dir', path: join(homeDir, 'artifacts') },
  };
}

function external(
  profile: Profile,
  { temporal, postgres, milvus, mlflow, engines, artifacts }: Addresses,
): Connections {
  const at = (field: string): string => `profile ${profile.name}: addresses.${field}`;
  return {
    temporal: {
      address: temporal.address,
      namespace: temporal.namespace,
      queuePrefix: profile.queue_prefix,
      ...tlsOf(temporal, at('temporal.tls')),
      ...(temporal.api_key && { apiKey: resolveSecret(temporal.api_key, at('temporal.api_key')) }),
      ...(temporal.ui !== undefined && { ui: temporal.ui }),
    },
    postgres: {
      url: typeof postgres.url === 'string' ? postgres.url : resolveSecret(postgres.url, at('postgres.url')),
    },
    milvus: {
      address: milvus.address,
      ...(milvus.token && { token: resolveSecret(milvus.token, at('milvus.token')) }),
    },
    mlflow: { url: mlflow.url, ...(mlflow.token && { token: resolveSecret(mlflow.token, at('mlflow.token')) }) },
    engines: engines.map((engine) => ({ ...engine, kind: profile.registries.engines[engine.name]?.kind ?? 'vllm' })),
    artifacts,
  };
}

function tlsOf(temporal: Addresses['temporal'], at: string): { tls?: true | TlsFiles } {
  const { tls } = temporal;
  if (tls === undefined || tls === false) return {};
  if (tls === true) return { tls: true };
  return {
    tls: {
      ...(tls.server_name !== undefined && { serverName: tls.server_name }),
      ...(tls.ca !== undefined && { ca: readNamed(tls.ca, at) }),
      ...(tls.cert !== undefined && { cert: readNamed(tls.cert, at) }),
      ...(tls.key !== undefined && { key: readNamed(tls.key, at) }),
    },
  };
}

/** How to dial Temporal: what `Connection.connect` of the client and of the worker both take. */
export function temporalOptions({ address, tls, apiKey }: Connections['temporal']) {
  return {
    address,
    ...(tls && { tls: tls === true ? true : tlsConfig(tls) }),
    ...(apiKey !== undefined && { apiKey }),
  };
}

function tlsConfig({ serverName, ca, cert, key }: TlsFiles) {
  return {
    ...(serverName !== undefined && { serverNameOverride: serverName }),
    ...(ca && { serverRootCACertificate: ca }),
    ...(cert && key && { clientCertPair: { crt: cert, key } }),
  };
}

export function resolveSecret(secret: Secret, at: string): string {
  if ('file' in secret)
    return readNamed(secret.file, at)
      .toString('utf8')
      .replace(/\r?\n$/, '');
  const value = process.env[secret.env];
  if (!value) throw new ExpError('SECRET_MISSING', at, `the environment variable ${secret.env} is not set`);
  return value;
}

function readNamed(path: string, at: string): Buffer {
  try {
    return readFileSync(path);
  } catch (cause) {
    throw new ExpError('SECRET_MISSING', at, `cannot read ${path}`, { cause });
  }
}
