/** `services.json`: the ports and passwords of an embedded stack, kept between its starts. Mode 0600. */
import { randomBytes } from 'node:crypto';
import { closeSync, fsyncSync, mkdirSync, openSync, readFileSync, renameSync, writeSync } from 'node:fs';
import { join } from 'node:path';

export const PORT_NAMES = ['postgres', 'temporal', 'temporal_ui', 'milvus', 'mlflow', 'engine'] as const;
export type PortName = (typeof PORT_NAMES)[number];

export interface ServicesFile {
  version: 1;
  ports: Record<PortName, number>;
  passwords: { postgres: string };
}

export const servicesPath = (homeDir: string): string => join(homeDir, 'services.json');

/** Undefined when no stack was ever started in this home. */
export function readServicesFile(homeDir: string): ServicesFile | undefined {
  try {
    return JSON.parse(readFileSync(servicesPath(homeDir), 'utf8')) as ServicesFile;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}

export function writeServicesFile(homeDir: string, file: ServicesFile): void {
  mkdirSync(homeDir, { recursive: true });
  const fresh = `${servicesPath(homeDir)}.new`;
  const descriptor = openSync(fresh, 'w', 0o600);
  try {
    writeSync(descriptor, `${JSON.stringify(file, null, 2)}\n`);
    fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
  }
  renameSync(fresh, servicesPath(homeDir));
}

export const newPassword = (): string => randomBytes(24).toString('hex');
