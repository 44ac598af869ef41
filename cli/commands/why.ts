import { parseArgs } from 'node:util';
import { changedLeaves, changeText, type KeyChange, valueText } from '../../plan/diff.ts';
import { ExitCode, ExpError } from '../../schemas/errors.ts';
import type { Command } from '../command.ts';
import { explainNode, type NodeExplanation } from '../explain-node.ts';
import { withStack } from '../open-stack.ts';
import { findRun, type NodeStatus } from '../run-state.ts';
import { detectTerminal, paint, type Terminal } from '../terminal.ts';

export const command: Command = {
  name: 'why',
  summary: 'Say why a node of a run ran or was reused, and what its key is made of.',
  usage: 'why RUN|latest NODE [--profile P] [--json]',
  help: `  NODE     its id as \`exp status\` shows it; ARM/ID where arms have different ones
  --json   {run, arms, node, status, error, key, made, since}

The key is compared with that of the nearest node of this id in earlier runs of the same spec.`,

  async run(argv, io) {
    const { values, positionals } = parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: { profile: { type: 'string' }, json: { type: 'boolean', default: false } },
    });
    const [wanted, node, ...more] = positionals;
    if (wanted === undefined || node === undefined || more.length > 0)
      throw new ExpError('USAGE', 'exp why', 'wants a RUN (or `latest`) and one of its nodes');
    return withStack(values.profile, async (stack) => {
      const explained = await explainNode(stack, await findRun(stack.pool, wanted), node);
      if (values.json) io.out(JSON.stringify(explained));
      else for (const line of describe(explained, detectTerminal(io))) io.out(line);
      return ExitCode.done;
    });
  },
};

const WHAT_IT_DID: Record<NodeStatus, string> = {
  waiting: 'waits for its inputs',
  running: 'runs',
  paused: 'is paused',
  done: 'ran',
  reused: 'was reused',
  failed: 'ran and failed',
  skipped: 'was skipped: an input did not come',
  cancelled: 'was cancelled',
  gate_failed: 'ran, and missed its gate',
};

function describe(explained: NodeExplanation, terminal: Terminal): string[] {
  const { run, arms, node, status, error, key, made } = explained;
  const rows: [string, string[]][] = [
    ['because', reasons(explained)],
    ['error', error === null ? [] : [error]],
    ['key', [key.key]],
    ['made of', [`${key.kind}, version ${key.kind_version}`, ...(key.seed === null ? [] : [`seed ${key.seed}`])]],
    ['inputs', key.inputs.map((input) => `${input.id} ${input.key.slice(0, 12)}`)],
    ['files', key.files.map(({ path, sha256 }) => `${path} ${sha256.slice(0, 12)}`)],
    ['parameters', changedLeaves({}, key.parameters).map(({ path, after }) => `${path}: ${valueText(after)}`)],
    ['made', made === null ? ['no artifact is there'] : [`${stamp(made.created_at)}, generation ${made.generation}`]],
    ['with', Object.entries(made?.made_with ?? {}).map(([name, value]) => `${name} ${value}`)],
  ];
  const width = Math.max(...rows.map(([title]) => title.length));
  const ofArms = arms.length > 1 || arms[0] !== 'main' ? ` (${arms.join(', ')})` : '';
  return [
    `${paint(terminal, 'bold', node)} of ${run}${ofArms} ${WHAT_IT_DID[status]}`,
    ...rows.flatMap(([title, lines]) =>
      lines.map((line, at) => `  ${paint(terminal, 'dim', (at === 0 ? title : '').padEnd(width))}  ${line}`),
    ),
  ];
}

function reasons({ status, made, since, run }: NodeExplanation): string[] {
  if (status === 'reused' && made !== null) return [`an artifact has its key, made ${stamp(made.created_at)}`];
  if (since === null) return [`no run of this spec before ${run} has such a node`];
  if (since.changes.length === 0) return [`${since.run} has the same key, and left no artifact that could be reused`];
  return [...since.changes.map((change) => withRun(change, since.run))];
}

const withRun = (change: KeyChange, run: string): string => `${changeText(change)}, since ${run}`;

const stamp = (time: string): string => `${time.slice(0, 16).replace('T', ' ')} UTC`;
