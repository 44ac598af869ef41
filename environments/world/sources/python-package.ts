import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { SourcePage } from '../../environment.ts';
import { hostOf, oneLine, packagePage, repositoryName } from './package-page.ts';
import { normalizePythonName, pythonUrl } from './package-url.ts';

/** The page of one `.dist-info` folder; null when it holds no metadata. */
export async function readPythonPackage(name: string, folder: string, readmeChars: number): Promise<SourcePage | null> {
  const raw = await readFile(join(folder, 'METADATA'), 'utf8').catch(() => null);
  if (raw === null) return null;
  const { headers, body } = parseMetadata(raw);
  const first = (header: string) => headers.get(header)?.[0];
  const all = (header: string) => headers.get(header) ?? [];
  const entryPoints = await readFile(join(folder, 'entry_points.txt'), 'utf8').catch(() => '');
  const links = all('project-url').map((link) => link.slice(link.indexOf(',') + 1).trim());
  const facts = {
    ecosystem: 'python' as const,
    name,
    version: first('version') ?? '',
    license: licenseOf(headers),
    author: authorName(first('author')) ?? authorName(first('author-email')),
    requires: oneLine(first('requires-python')),
    dependencies: requirements(all('requires-dist')),
    extras: [...new Set(all('provides-extra'))],
    classifiers: all('classifier').length,
    keywords: keywordsOf(first('keywords')),
    repository: [first('home-page') ?? '', ...links].map(repositoryName).find((found) => found !== undefined),
    homepageHost: hostOf(first('home-page') ?? links[0]),
    commands: consoleScripts(entryPoints),
    description: oneLine(first('summary'), 300),
  };
  return packagePage(pythonUrl(name), facts, body || first('description') || '', { linkOf: pythonUrl, readmeChars });
}

/** Core metadata is RFC 822: headers (a continuation line begins with white space), a blank line, the description. */
export function parseMetadata(raw: string): { headers: Map<string, string[]>; body: string } {
  const headers = new Map<string, string[]>();
  const text = raw.replace(/\r\n/g, '\n');
  const end = text.indexOf('\n\n');
  const head = end < 0 ? text : text.slice(0, end);
  for (const line of head.split(/\n(?![ \t])/)) {
    const colon = line.indexOf(':');
    if (colon <= 0) continue;
    const name = line.slice(0, colon).toLowerCase();
    const value = line
      .slice(colon + 1)
      .replace(/\n(?: {8}|[ \t]*\|)?/g, '\n')
      .trim();
    if (value === '' || value === 'UNKNOWN') continue;
    headers.set(name, [...(headers.get(name) ?? []), value]);
  }
  return { headers, body: end < 0 ? '' : text.slice(end + 2) };
}

/** The expression if there is one; a short `License`; else the last part of the classifier that names it. */
function licenseOf(headers: Map<string, string[]>): string | undefined {
  const classifier = headers.get('classifier')?.find((item) => /^License :: (?!OSI Approved$)/.test(item));
  return (
    oneLine(headers.get('license-expression')?.[0]) ??
    oneLine(headers.get('license')?.[0], 40) ??
    oneLine(classifier?.split(' :: ').at(-1))
  );
}

/** `Name <mail>` or `"Name" <mail>, Other <mail>`: the names alone. A bare address names nobody. */
function authorName(value: string | undefined): string | undefined {
  if (value === undefined) return undefined;
  const names = value.split(',').map((part) =>
    part
      .replace(/\s*<[^>]*>/, '')
      .replace(/^\s*"|"\s*$/g, '')
      .trim(),
  );
  return oneLine(names.filter((part) => part !== '' && !part.includes('@')).join(', '));
}

/** Requirements of a plain installation: those that belong to an extra are left out. */
function requirements(lines: readonly string[]): { name: string; range: string }[] {
  const found = new Map<string, string>();
  for (const line of lines) {
    if (/;.*\bextra\s*==/.test(line)) continue;
    const match = /^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?\s*\(?([^;)]*)/.exec(line);
    if (match) found.set(normalizePythonName(match[1] as string), (match[2] as string).trim());
  }
  return [...found].map(([name, range]) => ({ name, range }));
}

function keywordsOf(value: string | undefined): string[] {
  if (value === undefined) return [];
  const parts = value.includes(',') ? value.split(',') : value.split(/\s+/);
  return [...new Set(parts.map((part) => oneLine(part)).filter((part) => part !== undefined))] as string[];
}

function consoleScripts(entryPoints: string): string[] {
  const section = /\[console_scripts\]([^[]*)/.exec(entryPoints)?.[1] ?? '';
  return [...section.matchAll(/^\s*([\w.-]+)\s*=/gm)].map((match) => match[1] as string);
}
