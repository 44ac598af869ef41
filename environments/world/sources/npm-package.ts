import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { SourcePage } from '../../environment.ts';
import { hostOf, oneLine, packagePage, repositoryName } from './package-page.ts';
import { npmUrl } from './package-url.ts';

interface PackageJson {
  version?: unknown;
  license?: unknown;
  licenses?: unknown;
  author?: unknown;
  engines?: unknown;
  dependencies?: unknown;
  devDependencies?: unknown;
  keywords?: unknown;
  repository?: unknown;
  homepage?: unknown;
  bin?: unknown;
  description?: unknown;
}

/** The page of one package folder; null when it is not installed (optional, for another platform). */
export async function readNpmPackage(name: string, folder: string, readmeChars: number): Promise<SourcePage | null> {
  const files = await readdir(folder).catch(() => null);
  if (!files?.includes('package.json')) return null;
  const manifest = JSON.parse(await readFile(join(folder, 'package.json'), 'utf8')) as PackageJson;
  const readmeFile = files.filter((file) => /^readme(\.(md|markdown|txt))?$/i.test(file)).sort()[0];
  const readme = readmeFile ? await readFile(join(folder, readmeFile), 'utf8') : '';
  const facts = {
    ecosystem: 'npm' as const,
    name,
    version: oneLine(manifest.version) ?? '',
    license: licenseOf(manifest),
    author: authorName(manifest.author),
    requires: oneLine((manifest.engines as { node?: unknown } | undefined)?.node),
    dependencies: Object.entries(asRecord(manifest.dependencies)).map(([dependency, range]) => ({
      name: dependency,
      range: oneLine(range) ?? '',
    })),
    devDependencies: Object.keys(asRecord(manifest.devDependencies)).length,
    keywords: stringsOf(manifest.keywords),
    repository: repositoryOf(manifest.repository),
    homepageHost: hostOf(manifest.homepage),
    commands: typeof manifest.bin === 'string' ? [name.replace(/^@[^/]+\//, '')] : Object.keys(asRecord(manifest.bin)),
    description: oneLine(manifest.description, 300),
  };
  return packagePage(npmUrl(name), facts, readme, { linkOf: npmUrl, readmeChars });
}

/** `license` is an SPDX expression; `{type}` and `licenses: [{type}]` are how old manifests wrote it. */
function licenseOf({ license, licenses }: PackageJson): string | undefined {
  const stated = license ?? (Array.isArray(licenses) ? licenses[0] : licenses);
  return oneLine(typeof stated === 'object' && stated !== null ? (stated as { type?: unknown }).type : stated);
}

/** `Name <mail> (url)` or `{name, email, url}`: the name alone. */
function authorName(author: unknown): string | undefined {
  const stated = typeof author === 'object' && author !== null ? (author as { name?: unknown }).name : author;
  if (typeof stated !== 'string') return undefined;
  return oneLine(stated.replace(/\s*[<(].*$/s, ''));
}

function repositoryOf(repository: unknown): string | undefined {
  const address =
    typeof repository === 'object' && repository !== null ? (repository as { url?: unknown }).url : repository;
  return typeof address === 'string' ? repositoryName(address.replace(/^github:/, 'github.com/')) : undefined;
}

function asRecord(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Record<string, unknown>) : {};
}

function stringsOf(value: unknown): string[] {
  if (!Array.isArray(value)) return [];
  return [
    ...new Set(value.map((item) => oneLine(item)).filter((item) => item !== undefined && !item.includes(','))),
  ] as string[];
}
