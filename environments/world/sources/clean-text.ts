// Characters that carry no text: controls, zero-width marks, bidirectional overrides. PostgreSQL refuses NUL, and
// invisible characters are how a page hides instructions from a reader but not from a model. Joiners (U+200C,
// U+200D) stay: Persian, Indic scripts and emoji need them.
const INVISIBLE =
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is taken out
  /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]/g;

/** Text as it is stored: well-formed Unicode, NFC, `\n` line ends, nothing invisible. */
export function cleanText(text: string): string {
  return text
    .replace(/\p{Surrogate}/gu, '\ufffd')
    .replace(/\r\n?/g, '\n')
    .replace(INVISIBLE, '')
    .normalize('NFC')
    .trim();
}

/** A title is one line. */
export function cleanTitle(title: string): string {
  return cleanText(title).replace(/\s+/g, ' ');
}
