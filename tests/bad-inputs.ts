/**
 * The bad specs that are refused, B1 to B38, each with the codes and places that are expected. Where a spec can be
 * kept it is a fixture; bytes, sizes, links and pipes are made in a folder.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { repoRoot } from '../services/home.ts';

export const PROBLEM_SPECS = join(repoRoot(), 'tests/fixtures/specs/problems');

export interface BadInput {
  /** B1 … B38. */
  row: string;
  input: string;
  /** Name of a fixture, or what makes the spec in a new folder and says where it is. */
  spec: string | Make;
  /** `CODE line:column`, in order; none where the input is harmless text. */
  expected: string[];
}

type Make = (folder: string) => string;

/** Where the spec is, once it is made. */
export const makeSpec = ({ spec }: BadInput, folder: string): string =>
  typeof spec === 'string' ? join(PROBLEM_SPECS, `${spec}.yaml`) : spec(folder);

const text =
  (content: string | Uint8Array): Make =>
  (folder) => {
    const path = join(folder, 'spec.yaml');
    writeFileSync(path, content);
    return path;
  };

/** The small valid spec with its pages elsewhere; the path stands at 5:36. */
const withPages =
  (path: string, make: (folder: string) => void): Make =>
  (folder) => {
    make(folder);
    const base = readFileSync(join(PROBLEM_SPECS, 'base.yaml'), 'utf8').split('\n').slice(1).join('\n');
    return text(base.replace('path: pages', `path: ${path}`))(folder);
  };

/** A few lines laid over the small valid spec. */
const over =
  (lines: string, files: Record<string, string> = {}): Make =>
  (folder) => {
    for (const [name, content] of Object.entries(files)) writeFileSync(join(folder, name), content);
    mkdirSync(join(folder, 'pages'));
    writeFileSync(join(folder, 'base.yaml'), readFileSync(join(PROBLEM_SPECS, 'base.yaml')));
    return text(`extends: [base.yaml]\n${lines}\n`)(folder);
  };

function sparse(bytes: number): Make {
  return (folder) => {
    const path = text('a: 1\n')(folder);
    truncateSync(path, bytes);
    return path;
  };
}

function pipe(folder: string, name: string): string {
  const path = join(folder, name);
  execFileSync('mkfifo', [path], { stdio: 'ignore' });
  return path;
}

const linkOut = (folder: string): void => symlinkSync('/etc', join(folder, 'out'));

const stage1 = (fields: string): Make => over(`curriculum:\n  stage1: ${fields}`);
const named = (name: string): Make => over(`name: ${name}`);
const pages = (path: string): Make => over(`corpus:\n  sources:\n    pages: { path: ${path} }`);
const judge = (fields: string, prompt: string): Make => over(`judge: { model: m, ${fields} }`, { 'judge.txt': prompt });
const PROMPT = '{question} {answer} {reference}';
const NINE = Array.from({ length: 9 }, (_, level) => level);

export const BAD_INPUTS: BadInput[] = [
  { row: 'B1', input: 'billion laughs, 9 × 9', spec: 'b01-billion-laughs', expected: ['YAML_ALIAS 4:10'] },
  {
    row: 'B1',
    input: 'billion laughs in maps',
    spec: text(
      `${NINE.map((level) => `a${level}: &a${level} {${NINE.map((n) => `k${n}: ${level === 0 ? 'lol' : `*a${level - 1}`}`).join(', ')}}`).join('\n')}\n`,
    ),
    expected: ['YAML_ALIAS 2:14'],
  },
  { row: 'B2', input: 'an alias of itself', spec: 'b02-alias-of-itself', expected: ['YAML_ALIAS 3:10'] },
  { row: 'B3', input: 'a key twice', spec: 'b03-duplicate-key', expected: ['DUP_KEY 4:3'] },
  { row: 'B3', input: 'a key twice, once quoted', spec: over('name: a\n"name": b'), expected: ['DUP_KEY 3:1'] },
  { row: 'B4', input: '__proto__', spec: 'b04-proto', expected: ['KEY_FORBIDDEN 3:3'] },
  {
    row: 'B4',
    input: '__proto__ written with escapes',
    spec: over('"\\x5f_proto__": { x: 1 }'),
    expected: ['KEY_FORBIDDEN 2:1'],
  },
  { row: 'B5', input: 'constructor', spec: 'b05-constructor', expected: ['KEY_FORBIDDEN 3:3'] },
  {
    row: 'B6',
    input: 'a merge key with __proto__ in its base',
    spec: 'b06-merge-key',
    expected: ['KEY_FORBIDDEN 3:19', 'KEY_FORBIDDEN 5:5'],
  },
  { row: 'B7', input: '!!js/function', spec: 'b07-js-tag', expected: ['TAG 2:14'] },
  { row: 'B8', input: '!!python/object/apply', spec: 'b08-python-tag', expected: ['TAG 3:8'] },
  { row: 'B9', input: '20,000 open brackets', spec: text('['.repeat(20_000)), expected: ['DEPTH 1:65'] },
  { row: 'B9', input: '19,000 dashes on one line', spec: text('- '.repeat(19_000)), expected: ['DEPTH 1:129'] },
  { row: 'B10', input: '60,000 keys on one line', spec: text('a: '.repeat(60_000)), expected: ['SYNTAX 1:5'] },
  { row: 'B11', input: 'a key of 2 MB', spec: text(`${'k'.repeat(2_000_000)}: 1`), expected: ['SIZE 1:1'] },
  { row: 'B11', input: 'a file of 50 MB', spec: sparse(50_000_000), expected: ['SIZE 1:1'] },
  {
    row: 'B11',
    input: 'more than 20,000 values',
    spec: text(`vars: [${'1,'.repeat(20_001)}]`),
    expected: ['SIZE 1:40004'],
  },
  { row: 'B12', input: 'an empty file', spec: text(''), expected: ['EMPTY 1:1'] },
  { row: 'B12', input: 'only comments', spec: 'b12-only-comments', expected: ['EMPTY 1:1'] },
  { row: 'B13', input: 'two documents', spec: 'b13-two-documents', expected: ['MULTI_DOC 2:1'] },
  {
    row: 'B13',
    input: 'a second document after an end mark',
    spec: text('name: x\n...\nname: y'),
    expected: ['MULTI_DOC 3:1'],
  },
  { row: 'B14', input: 'a tab as indent', spec: 'b14-tab-indent', expected: ['SYNTAX 3:1'] },
  {
    row: 'B15',
    input: 'invalid UTF-8 in line 2',
    spec: text(Buffer.concat([Buffer.from('a: 1\nb: '), Uint8Array.of(0xff, 0xfe, 0x41)])),
    expected: ['ENCODING 2:4'],
  },
  {
    row: 'B15',
    input: 'UTF-16 with its BOM',
    spec: text(Buffer.from('\ufeffname: x', 'utf16le')),
    expected: ['ENCODING 1:1'],
  },
  { row: 'B15', input: 'a lone surrogate', spec: 'b15-lone-surrogate', expected: ['CONTROL_CHAR 2:14'] },
  { row: 'B15', input: 'NUL', spec: text('name: a\0b'), expected: ['CONTROL_CHAR 1:8'] },
  { row: 'B16', input: 'a direction override', spec: 'b16-bidi-override', expected: ['CONTROL_CHAR 2:7'] },
  {
    row: 'B16',
    input: 'a direction override in a comment',
    spec: text('# \u202e\nname: x'),
    expected: ['CONTROL_CHAR 1:3'],
  },
  { row: 'B17', input: '9007199254740993', spec: 'b17-integer-too-large', expected: ['INT_RANGE 2:7'] },
  { row: 'B17', input: 'an integer of 30 digits', spec: over(`seed: ${'9'.repeat(30)}`), expected: ['INT_RANGE 2:7'] },
  { row: 'B18', input: '.inf', spec: 'b18-infinity', expected: ['NUMBER 3:39'] },
  { row: 'B18', input: '.nan', spec: 'b18-nan', expected: ['NUMBER 3:39'] },
  { row: 'B18', input: '1e400', spec: 'b18-overflow', expected: ['NUMBER 3:39'] },
  { row: 'B18', input: '-0', spec: 'b18-minus-zero', expected: ['NUMBER 3:39'] },
  { row: 'B19', input: '0755', spec: 'b19-octal', expected: ['NUMBER_FORM 2:7'] },
  { row: 'B20', input: 'a number in quotes', spec: 'b20-number-as-text', expected: ['TYPE 3:39'] },
  { row: 'B21', input: '0', spec: 'b21-zero', expected: ['RANGE 3:31'] },
  { row: 'B21', input: '-1', spec: 'b21-negative', expected: ['RANGE 3:31'] },
  { row: 'B21', input: '1.5', spec: 'b21-fraction', expected: ['RANGE 3:31'] },
  { row: 'B21', input: '1e12', spec: 'b21-huge', expected: ['RANGE 3:31'] },
  { row: 'B22', input: 'yes for a boolean', spec: 'b22-yes-for-boolean', expected: ['TYPE 3:41'] },
  { row: 'B22', input: 'NO for a country', spec: over('description: NO'), expected: [] },
  { row: 'B23', input: 'learning_rat', spec: 'b23-misspelt-field', expected: ['UNKNOWN_FIELD 5:7'] },
  { row: 'B24', input: 'stages in a circle', spec: 'b24-cycle', expected: ['CYCLE 3:17'] },
  { row: 'B24', input: 'stages like each other', spec: 'b24-like-cycle', expected: ['CYCLE 4:14'] },
  { row: 'B24', input: 'a file that extends itself', spec: 'b24-extends-itself', expected: ['CYCLE 1:11'] },
  { row: 'B25', input: 'a stage that is not there', spec: 'b25-missing-stage', expected: ['REF 3:19'] },
  { row: 'B25', input: 'a split that is not there', spec: 'b25-missing-split', expected: ['REF 3:30'] },
  { row: 'B25', input: 'a checkpoint that is not there', spec: 'b25-missing-after', expected: ['REF 3:26'] },
  { row: 'B25', input: 'a tool that is not there', spec: 'b25-missing-tool', expected: ['REF 2:18'] },
  { row: 'B25', input: 'a variable that is not there', spec: 'b25-missing-variable', expected: ['REF 4:37'] },
  {
    row: 'B26',
    input: 'a sweep of 10⁹ combinations',
    spec: over(`sweep:\n  matrix:\n${NINE.map((n) => `    agent.a${n}: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]`).join('\n')}`),
    expected: ['SWEEP_SIZE 3:3'],
  },
  { row: 'B27', input: '../../etc/passwd', spec: 'b27-name-with-dots', expected: ['NAME 2:7'] },
  { row: 'B27', input: 'a/b', spec: named('a/b'), expected: ['NAME 2:7'] },
  { row: 'B27', input: '.', spec: named('.'), expected: ['NAME 2:7'] },
  { row: 'B27', input: 'a trailing dot', spec: named('quickstart.'), expected: ['NAME 2:7'] },
  { row: 'B27', input: '300 characters', spec: 'b27-long-name', expected: ['NAME 2:7'] },
  { row: 'B27', input: 'the name of a device', spec: 'b27-device-name', expected: ['NAME 3:3'] },
  { row: 'B27', input: 'CON', spec: named('CON'), expected: ['NAME 2:7'] },
  { row: 'B27', input: 'an upper-case stage', spec: 'b27-upper-case-stage', expected: ['NAME 3:3'] },
  { row: 'B28', input: '../../../etc/shadow', spec: 'b28-path-above', expected: ['PATH_OUTSIDE 4:20'] },
  { row: 'B28', input: 'an absolute path', spec: 'b28-absolute-path', expected: ['PATH_OUTSIDE 4:20'] },
  { row: 'B28', input: 'file:///', spec: 'b28-file-url', expected: ['PATH_OUTSIDE 4:20'] },
  { row: 'B28', input: '%2e%2e/', spec: 'b28-escaped-dots', expected: ['PATH_OUTSIDE 4:20'] },
  { row: 'B28', input: 'backslashes', spec: 'b28-backslash', expected: ['PATH_OUTSIDE 4:20'] },
  {
    row: 'B28',
    input: 'extends above its folder',
    spec: 'b28-extends-above',
    expected: ['PATH_OUTSIDE 1:11'],
  },
  { row: 'B28', input: 'a home', spec: pages('~root/pages'), expected: ['PATH_OUTSIDE 4:20'] },
  { row: 'B29', input: 'a link to /etc', spec: withPages('out', linkOut), expected: ['PATH_OUTSIDE 5:36'] },
  { row: 'B29', input: 'below a link to /etc', spec: withPages('out/x.md', linkOut), expected: ['PATH_OUTSIDE 5:36'] },
  {
    row: 'B31',
    input: 'a pipe as data',
    spec: withPages('pipe', (folder) => void pipe(folder, 'pipe')),
    expected: ['NOT_REGULAR 5:36'],
  },
  { row: 'B31', input: 'a pipe as a spec', spec: (folder) => pipe(folder, 'spec.yaml'), expected: ['NOT_REGULAR 1:1'] },
  { row: 'B31', input: 'a device as a spec', spec: () => '/dev/zero', expected: ['NOT_REGULAR 1:1'] },
  { row: 'B31', input: 'a folder as a spec', spec: (folder) => folder, expected: ['NOT_REGULAR 1:1'] },
  {
    row: 'B31',
    input: 'a folder as a prompt',
    spec: (folder) => {
      mkdirSync(join(folder, 'prompt'));
      writeFileSync(join(folder, 'prompt', 'judge.txt'), PROMPT);
      return over('judge: { model: m, prompt: prompt }')(folder);
    },
    expected: ['NOT_REGULAR 2:28'],
  },
  { row: 'B31', input: 'a glob as a prompt', spec: judge('prompt: "*.txt"', PROMPT), expected: ['NOT_REGULAR 2:28'] },
  { row: 'B32', input: 'a variable in a text', spec: 'b32-env-in-text', expected: ['SECRET_FIELD 2:14'] },
  { row: 'B32', input: 'a secret in a path', spec: 'b32-secret-in-path', expected: ['SECRET_FIELD 4:20'] },
  { row: 'B33', input: 'a field of its own', spec: 'b33-secret-field', expected: ['SECRET_LITERAL 2:1'] },
  { row: 'B33', input: 'a literal key', spec: 'b33-secret-literal', expected: ['SECRET_LITERAL 2:44'] },
  { row: 'B34', input: 'what templates would run', spec: 'b34-templates-are-text', expected: [] },
  // Void by construction: no field of the language is a regular expression.
  {
    row: 'B35',
    input: 'a slow regular expression',
    spec: over(`tasks:\n  sources:\n    made: { regex: (a+)+$, text: ${'a'.repeat(50)}! }`),
    expected: ['UNKNOWN_FIELD 4:13', 'UNKNOWN_FIELD 4:28'],
  },
  {
    row: 'B35',
    input: 'text for a slow expression of ours',
    spec: over(`name: ${'a'.repeat(50)}!\ndescription: "${'${vars.'.repeat(5000)}"`),
    expected: ['NAME 2:7', 'RANGE 3:14'],
  },
  {
    row: 'B36',
    input: 'a prompt that asks nothing and has a strange slot',
    spec: 'b36-prompt-without-slot',
    expected: ['TEMPLATE 2:28', 'TEMPLATE 2:28'],
  },
  { row: 'B36', input: 'a prompt with its slots', spec: judge('prompt: judge.txt', PROMPT), expected: [] },
  { row: 'B37', input: 'http://169.254.169.254/', spec: 'b37-metadata-address', expected: ['URL 2:49'] },
  {
    row: 'B37',
    input: 'the same in one number',
    spec: judge('prompt: judge.txt, url: "http://2852039166/"', PROMPT),
    expected: ['URL 2:44'],
  },
  { row: 'B37', input: 'http://user:pw@h/', spec: 'b37-credentials', expected: ['URL 2:49'] },
  { row: 'B37', input: 'javascript:', spec: 'b37-javascript', expected: ['URL 2:49'] },
  { row: 'B38', input: '--trust-remote-code', spec: 'b38-option-as-model', expected: ['ARG 2:17'] },
  { row: 'B38', input: '; rm -rf /', spec: 'b38-shell-as-model', expected: ['ARG 2:17'] },
  { row: 'B38', input: 'a newline', spec: 'b38-newline-in-model', expected: ['ARG 2:17'] },
  {
    row: 'B38',
    input: 'a split of that name',
    spec: stage1('{ tasks: { split: "; rm -rf /" } }'),
    expected: ['REF 3:29'],
  },
];
