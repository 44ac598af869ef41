import type { SourcePage } from '../../environment.ts';

/** What a package says about itself; a part that it does not say is absent or empty. */
export interface PackageFacts {
  ecosystem: 'npm' | 'python';
  name: string;
  version: string;
  license?: string | undefined;
  author?: string | undefined;
  /** Range of Node or Python versions, as written by the package. */
  requires?: string | undefined;
  dependencies: { name: string; range: string }[];
  /** npm only. */
  devDependencies?: number | undefined;
  /** Python only. */
  extras?: string[] | undefined;
  /** Python only. */
  classifiers?: number | undefined;
  keywords: string[];
  /** `owner/name` when it is hosted where such names exist. */
  repository?: string | undefined;
  homepageHost?: string | undefined;
  commands: string[];
  description?: string | undefined;
}

/** A longer list is shown in the box by its length and its beginning; the whole of it stands below. */
const BOX_DEPENDENCIES = 8;
const BOX_WORDS = 3;
/** Up to so many dependencies are links in the box itself, where a reader on a small budget sees them. */
const BOX_LINK_LIMIT = 2;

/**
 * Markdown of a package page: first its facts, each a short paragraph of its own, then links and description, then
 * the README. A reader on a small token budget is given the paragraphs that match its goal, so it gets the facts.
 */
export function packagePage(
  url: string,
  facts: PackageFacts,
  readme: string,
  { linkOf, readmeChars }: { linkOf: (name: string) => string; readmeChars: number },
): SourcePage {
  const box = factLines(facts, linkOf).map(([label, value]) => `${label}: ${value}`);
  const sections = [`# ${titleOf(facts)}`, ...box];
  if (facts.description) sections.push(facts.description);
  if (facts.dependencies.length > 0) {
    const links = facts.dependencies.map(
      ({ name, range }) => `- [${name}](${linkOf(name)})${range ? ` ${range}` : ''}`,
    );
    sections.push(`## Links\n\n${links.join('\n')}`);
  }
  for (const [label, items] of [
    ['extras', facts.extras ?? []],
    ['keywords', facts.keywords],
  ] as const) {
    if (items.length > BOX_WORDS) sections.push(`## All ${label}\n\n${items.join(', ')}`);
  }
  const text = headOf(cleanReadme(readme), readmeChars);
  if (text) sections.push(`## README\n\n${text}`);
  return { url, title: titleOf(facts), text: sections.join('\n\n'), facts: storedFacts(facts) };
}

function titleOf({ name, ecosystem }: PackageFacts): string {
  return `${name} (${ecosystem === 'npm' ? 'npm' : 'Python'})`;
}

function factLines(facts: PackageFacts, linkOf: (name: string) => string): [label: string, value: string][] {
  const lines: [string, string | undefined][] = [
    ['Version', facts.version],
    ['License', facts.license],
    ['Author', facts.author],
    [facts.ecosystem === 'npm' ? 'Requires Node' : 'Requires Python', facts.requires],
    listLine('Dependencies', dependencyNames(facts, linkOf), BOX_DEPENDENCIES),
    ['Development dependencies', facts.devDependencies?.toString()],
    ['Classifiers', facts.classifiers?.toString()],
    listLine('Keywords', facts.keywords, BOX_WORDS),
    ['Repository', facts.repository],
    ...(facts.extras?.length ? [listLine('Extras', facts.extras, BOX_WORDS)] : []),
    ['Commands', facts.commands.join(', ')],
    ['Homepage host', facts.homepageHost],
  ];
  return lines.filter((line): line is [string, string] => line[1] !== undefined && line[1] !== '');
}

function dependencyNames({ dependencies }: PackageFacts, linkOf: (name: string) => string): string[] {
  const names = dependencies.map(({ name }) => name);
  return names.length > BOX_LINK_LIMIT ? names : names.map((name) => `[${name}](${linkOf(name)})`);
}

function listLine(label: string, items: readonly string[], limit: number): [string, string] {
  const shown = items.length === 0 ? 'none' : items.slice(0, limit).join(', ');
  return [`${label} (${items.length})`, items.length > limit ? `${shown}, …` : shown];
}

/** The same facts as data. Each value stands in the text of the page as it is written here. */
function storedFacts(facts: PackageFacts): Record<string, string | string[]> {
  const stored: Record<string, string | string[] | undefined> = {
    ecosystem: facts.ecosystem,
    name: facts.name,
    version: facts.version,
    license: facts.license,
    author: facts.author,
    requires: facts.requires,
    dependencies: facts.dependencies.map(({ name }) => name),
    dev_dependencies: facts.devDependencies?.toString(),
    extras: facts.extras,
    classifiers: facts.classifiers?.toString(),
    repository: facts.repository,
    homepage_host: facts.homepageHost,
    commands: facts.commands,
    keywords: facts.keywords,
  };
  return Object.fromEntries(
    Object.entries(stored).filter((entry): entry is [string, string | string[]] => entry[1] !== undefined),
  );
}

/** Comments, images, badges and layout tags say nothing in a text corpus; they would only fill its chunks. */
function cleanReadme(readme: string): string {
  return readme
    .replace(/\r\n?/g, '\n')
    .replace(/<!--[\s\S]*?-->/g, '')
    .replace(
      /<\/?(?:img|source|picture|p|div|span|a|br|hr|h[1-6]|sub|sup|center|table|thead|tbody|tr|td|th)\b[^<>]*>/gi,
      '',
    )
    .replace(/^\.\. (?:\|[^|\n]*\| )?image::.*(?:\n[ \t]+:.*)*/gm, '')
    .replace(/!\[[^\]]*\](?:\([^)]*\)|\[[^\]]*\])/g, '')
    .replace(/\[\s*\](?:\([^)]*\)|\[[^\]]*\])/g, '')
    .replaceAll('\0', '')
    .replace(/[ \t]+$/gm, '')
    .replace(/\n{3,}/g, '\n\n')
    .trim();
}

/** The beginning of a text, cut between paragraphs; the cut is marked, so that no reader takes the part for the whole. */
function headOf(text: string, limit: number): string {
  if (text.length <= limit) return text;
  const cut = text.lastIndexOf('\n\n', limit);
  return `${text.slice(0, cut > limit / 2 ? cut : limit).trimEnd()}\n\n(The README goes on in the package.)`;
}

/** One line, no markup: facts are read line by line. Too long for a fact: absent. */
export function oneLine(value: unknown, limit = 80): string | undefined {
  if (typeof value !== 'string') return undefined;
  const line = value.trim();
  return line === '' || line.length > limit || line.includes('\n') ? undefined : line.replace(/\s+/g, ' ');
}

/** `owner/name` of a repository address on one of the hosts where that pair names it. */
export function repositoryName(address: string): string | undefined {
  const match =
    /(?:github|gitlab|bitbucket|codeberg)(?:\.com|\.org)?[:/]+([\w.-]+)\/([\w.-]+?)(?:\.git)?(?:[/#?].*)?$/.exec(
      address.trim(),
    );
  if (match) return `${match[1]}/${match[2]}`;
  return /^[\w.-]+\/[\w.-]+$/.test(address.trim()) ? address.trim() : undefined;
}

export function hostOf(address: unknown): string | undefined {
  if (typeof address !== 'string' || !URL.canParse(address)) return undefined;
  return new URL(address).hostname.replace(/^www\./, '') || undefined;
}
