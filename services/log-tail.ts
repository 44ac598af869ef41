import { closeSync, fstatSync, openSync, readSync } from 'node:fs';

/** The last lines of a log, each cut to 300 characters; empty when there is no such file. */
export function logTail(path: string, lines: number): string[] {
  const READ_AT_MOST = 64 * 1024;
  let descriptor: number;
  try {
    descriptor = openSync(path, 'r');
  } catch {
    return [];
  }
  try {
    const { size } = fstatSync(descriptor);
    const buffer = Buffer.alloc(Math.min(size, READ_AT_MOST));
    readSync(descriptor, buffer, 0, buffer.length, size - buffer.length);
    return buffer
      .toString('utf8')
      .split('\n')
      .filter((line) => line.trim() !== '')
      .slice(-lines)
      .map((line) => line.slice(0, 300));
  } finally {
    closeSync(descriptor);
  }
}
