// Exit 0 when node_modules holds what package-lock.json asks for: the same packages, versions and digests, each there.
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

const root = dirname(dirname(import.meta.dirname));
const read = (path) => JSON.parse(readFileSync(join(root, path), 'utf8')).packages;

try {
  const wanted = read('package-lock.json');
  const installed = read('node_modules/.package-lock.json');
  for (const [path, entry] of Object.entries(wanted)) {
    if (path === '') continue;
    const have = installed[path];
    if (have === undefined && entry.optional) continue; // for another platform
    if (have?.version !== entry.version || have?.integrity !== entry.integrity) process.exit(1);
    if (!existsSync(join(root, path, 'package.json'))) process.exit(1);
  }
} catch {
  process.exit(1);
}
