import { Readability } from '@mozilla/readability';
import { convert } from 'html-to-text';
import { parseHTML } from 'linkedom';
import TurndownService from 'turndown';
import { cleanText, cleanTitle } from './clean-text.ts';

// Parsers are quadratic in depth: 200,000 nested elements keep htmlparser2 busy for 14 s.
const MAX_DEPTH = 512;
const MAX_BYTES = 30 * 2 ** 20;
// And slow by the piece: 100,000 take three seconds.
const MAX_PIECES = 100_000;
const RAW_TEXT = /^(?:script|style|textarea|title)$/i;
const SELF_CLOSING =
  /^(?:area|base|br|col|embed|hr|img|input|link|meta|param|source|track|wbr|p|li|dt|dd|tr|td|th|option)$/i;
const HIDDEN_STYLE = /display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0(?![.\d])|opacity\s*:\s*0(?![.\d])/i;
const NO_TEXT = 'script, style, template, noscript, iframe, object, svg, canvas, [hidden], [aria-hidden="true"]';

const turndown = new TurndownService({ headingStyle: 'atx', codeBlockStyle: 'fenced', bulletListMarker: '-' });
// An image is its alternative text at most, which a page may use to hide instructions: not text a reader sees.
turndown.addRule('no images', { filter: 'img', replacement: () => '' });

export interface ExtractedPage {
  title: string;
  text: string;
}

/** The readable part of an HTML page as Markdown, hidden text dropped; or, as a string, why there is none. */
export function htmlToMarkdown(bytes: Uint8Array): ExtractedPage | string {
  if (bytes.length > MAX_BYTES) return `larger than ${MAX_BYTES} bytes`;
  const html = decodeHtml(bytes);
  if (html.includes('\u0000')) return 'binary, not HTML';
  const { depth, pieces } = measure(html);
  if (depth > MAX_DEPTH) return `nested deeper than ${MAX_DEPTH}`;
  if (pieces > MAX_PIECES) return `more than ${MAX_PIECES} elements and entities`;

  const { document } = parseHTML(html);
  if (!document.documentElement) return 'no HTML element';
  dropHidden(document);
  const heading = document.querySelector('h1')?.textContent ?? '';
  const title = cleanTitle(document.querySelector('title')?.textContent || heading);
  const whole = document.body?.innerHTML ?? '';
  const article = new Readability(document as ConstructorParameters<typeof Readability>[0], {
    charThreshold: 200,
  }).parse();
  const text = article?.content
    ? turndown.turndown(parseHTML(`<html><body>${article.content}</body></html>`).document.body)
    : plainText(whole);
  const cleaned = cleanText(text);
  return cleaned === '' ? 'no text' : { title: title || cleanTitle(heading), text: cleaned };
}

/** For pages that are no article (lists, tables of links), where Readability finds nothing. */
function plainText(html: string): string {
  return convert(html, {
    wordwrap: false,
    limits: { maxDepth: MAX_DEPTH },
    selectors: [{ selector: 'img', format: 'skip' }],
  });
}

function dropHidden(document: ReturnType<typeof parseHTML>['document']): void {
  for (const element of document.querySelectorAll(NO_TEXT)) element.remove();
  for (const element of document.querySelectorAll('[style]')) {
    if (HIDDEN_STYLE.test(element.getAttribute('style') ?? '')) element.remove();
  }
}

/**
 * How deep elements nest and how many elements and entities there are, in one pass without building a tree.
 * Elements that HTML closes by itself do not nest.
 */
function measure(html: string): { depth: number; pieces: number } {
  const piece = /<!--|&[#\w]|<(\/?)([a-zA-Z][^\s/<>]*)[^<>]*>/g;
  let depth = 0;
  let deepest = 0;
  let pieces = 0;
  for (let match = piece.exec(html); match !== null; match = piece.exec(html)) {
    const [whole, closing, name = ''] = match;
    pieces += 1;
    if (whole === '<!--') {
      piece.lastIndex = endOf(html, '-->', piece.lastIndex);
    } else if (RAW_TEXT.test(name) && !closing) {
      piece.lastIndex = endOf(html, `</${name}`, piece.lastIndex);
    } else if (name !== '' && !SELF_CLOSING.test(name) && !whole.endsWith('/>')) {
      depth = closing ? Math.max(0, depth - 1) : depth + 1;
      deepest = Math.max(deepest, depth);
    }
  }
  return { depth: deepest, pieces };
}

function endOf(html: string, marker: string, from: number): number {
  const at = html.indexOf(marker, from);
  return at === -1 ? html.length : at + marker.length;
}

/** WHATWG order: byte order mark, then `<meta charset>`, then UTF-8. UTF-7 has no decoder and is never honoured. */
function decodeHtml(bytes: Uint8Array): string {
  if (bytes[0] === 0xff && bytes[1] === 0xfe) return new TextDecoder('utf-16le').decode(bytes);
  if (bytes[0] === 0xfe && bytes[1] === 0xff) return new TextDecoder('utf-16be').decode(bytes);
  if (bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf) return new TextDecoder('utf-8').decode(bytes);
  const head = new TextDecoder('latin1').decode(bytes.subarray(0, 2048));
  const label = /<meta[^>]+charset\s*=\s*["']?\s*([\w-]+)/i.exec(head)?.[1] ?? 'utf-8';
  try {
    return new TextDecoder(label).decode(bytes);
  } catch {
    return new TextDecoder('utf-8').decode(bytes);
  }
}
