import { text as readAll } from 'node:stream/consumers';
import { parseArgs } from 'node:util';
import {
  type IgpoAdvantages,
  type IgpoOptions,
  type IgpoRollout,
  igpoAdvantages,
  missingBelief,
} from '../../environments/deep-research/advantages-igpo.ts';
import {
  IGPO_MEASURES,
  IGPO_NORMALIZATIONS,
  IGPO_PRESET_NAMES,
  IGPO_PRESETS,
  type IgpoSettings,
} from '../../schemas/algorithms.ts';
import { ExitCode, ExpError } from '../../schemas/errors.ts';
import type { Command } from '../command.ts';

type Groups = IgpoRollout[][];

export const command: Command = {
  name: 'advantages',
  summary: 'Compute the advantages of IGPO, turn by turn, for groups of rollouts.',
  usage:
    'advantages --preset PRESET [--gamma G] [--scope TOOLS] [--measure M] [--normalize N] [--weight W] [--json] < groups.json',
  help: `  --preset ${IGPO_PRESET_NAMES.join(' | ')}
  --gamma G             discount from one reward position to the next
  --scope TOOLS         tools whose turns are evaluated: visit, or search,visit; all for every turn
  --every K             beliefs only before turns whose number divides by K
  --measure M           ${IGPO_MEASURES.join(' | ')}: of the reference answer, whose change is the gain
  --normalize N         ${IGPO_NORMALIZATIONS.join(' | ')}
  --weight W            of the normalised gains
  --format-penalty P    a malformed turn's reward is -P; 1 when absent, 0 for none
  --json                {"advantages": [[[turn, ...], rollout...], group...]}

Reads {"groups": [[{"values": [...], "tools": ["search", ..., null], "malformed": [turn, ...], "outcome": 1.0}, ...], ...]}
from standard input. values[t] is the mean log-probability of the reference answer before turn t; it may be null where no
belief is needed. "malformed" may be left out; "tokens" (from each turn to the next) matters to per_position alone, which
otherwise takes every turn for one token.`,

  async run(argv, io) {
    const { values } = parseArgs({
      args: [...argv],
      options: {
        preset: { type: 'string' },
        gamma: { type: 'string' },
        scope: { type: 'string' },
        every: { type: 'string' },
        measure: { type: 'string' },
        normalize: { type: 'string' },
        weight: { type: 'string' },
        'format-penalty': { type: 'string' },
        json: { type: 'boolean', default: false },
      },
    });
    const options = optionsOf(values);
    if (process.stdin.isTTY === true) throw new ExpError('USAGE', 'exp advantages', 'reads groups from standard input');
    const groups = readGroups(await readAll(process.stdin));
    refuseMissing(groups, options);
    const computed = igpoAdvantages(groups, options);
    if (values.json)
      io.out(JSON.stringify({ advantages: computed.credits.map((group) => group.map((own) => own.advantages)) }));
    else for (const line of table(groups, computed)) io.out(line);
    return ExitCode.done;
  },
};

type Written = Partial<
  Record<'preset' | 'gamma' | 'scope' | 'every' | 'measure' | 'normalize' | 'weight' | 'format-penalty', string>
>;

function optionsOf(written: Written): IgpoOptions {
  const preset = oneOf('preset', written.preset, IGPO_PRESET_NAMES);
  if (preset === undefined) throw usage(`wants --preset ${IGPO_PRESET_NAMES.join(' | ')}`);
  const set: Partial<IgpoSettings> = Object.fromEntries(
    Object.entries({
      measure: oneOf('measure', written.measure, IGPO_MEASURES),
      normalize: oneOf('normalize', written.normalize, IGPO_NORMALIZATIONS),
      gamma: numberOf('gamma', written.gamma, { most: 1 }),
      weight: numberOf('weight', written.weight, {}),
      every: numberOf('every', written.every, { least: 1, integer: true }),
      scope: written.scope === undefined ? undefined : scopeOf(written.scope),
    }).filter(([, value]) => value !== undefined),
  );
  const formatPenalty = numberOf('format-penalty', written['format-penalty'], {}) ?? 1;
  return { ...IGPO_PRESETS[preset], ...set, formatPenalty, normalizeStd: true };
}

const usage = (message: string): ExpError => new ExpError('USAGE', 'exp advantages', message);

function oneOf<T extends string>(name: string, value: string | undefined, known: readonly T[]): T | undefined {
  if (value === undefined || (known as readonly string[]).includes(value)) return value as T | undefined;
  throw usage(`--${name} ${JSON.stringify(value)} is none of ${known.join(', ')}`);
}

function numberOf(
  name: string,
  value: string | undefined,
  { least = 0, most = Number.MAX_VALUE, integer = false },
): number | undefined {
  if (value === undefined) return undefined;
  const number = value.trim() === '' ? Number.NaN : Number(value);
  if (number >= least && number <= most && (!integer || Number.isInteger(number))) return number;
  const bounds = most < Number.MAX_VALUE ? `from ${least} to ${most}` : `of at least ${least}`;
  throw usage(`--${name} wants ${integer ? 'a whole number' : 'a number'} ${bounds}, not ${JSON.stringify(value)}`);
}

function scopeOf(written: string): string[] | null {
  const tools = written.split(',').map((tool) => tool.trim().toLowerCase());
  if (tools.includes('')) throw usage('--scope wants tools, such as visit or search,visit, or all');
  return tools.length === 1 && tools[0] === 'all' ? null : tools;
}

const invalid = (at: string, message: string): ExpError => new ExpError('GROUPS', at, message);

function readGroups(text: string): Groups {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    throw invalid('stdin', `it is not JSON: ${(error as Error).message}`);
  }
  const { groups } = fieldsOf(parsed, '(root)', ['groups'], []);
  return listOf(groups, 'groups').map((group, at) => {
    const rollouts = listOf(group, `groups[${at}]`);
    if (rollouts.length === 0) throw invalid(`groups[${at}]`, 'a group has at least one rollout');
    return rollouts.map((rollout, index) => readRollout(rollout, `groups[${at}][${index}]`));
  });
}

function readRollout(given: unknown, at: string): IgpoRollout {
  const fields = fieldsOf(given, at, ['values', 'tools', 'outcome'], ['malformed', 'tokens']);
  const values = listOf(fields.values, `${at}.values`).map((value, turn) =>
    value === null ? null : finite(value, `${at}.values[${turn}]`),
  );
  const turns = values.length;
  if (turns === 0) throw invalid(`${at}.values`, 'a rollout has at least one turn');
  const perTurn = (value: unknown, name: string): unknown[] => {
    const list = listOf(value, `${at}.${name}`);
    if (list.length === turns) return list;
    throw invalid(`${at}.${name}`, `has ${list.length} entries for the ${turns} turns of values`);
  };
  const tools = perTurn(fields.tools, 'tools').map((tool, turn) => {
    if (tool === null || typeof tool === 'string') return tool;
    throw invalid(`${at}.tools[${turn}]`, `wants the name of a tool, or null, not ${shown(tool)}`);
  });
  const malformed = listOf(fields.malformed ?? [], `${at}.malformed`).map((turn, index) =>
    wholeNumber(turn, `${at}.malformed[${index}]`, 0, turns - 1),
  );
  const tokens =
    fields.tokens === undefined
      ? undefined
      : perTurn(fields.tokens, 'tokens').map((count, turn) =>
          wholeNumber(count, `${at}.tokens[${turn}]`, 1, Number.MAX_SAFE_INTEGER),
        );
  return { values, tools, malformed, outcome: finite(fields.outcome, `${at}.outcome`), ...(tokens && { tokens }) };
}

function fieldsOf(
  value: unknown,
  at: string,
  required: readonly string[],
  optional: readonly string[],
): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw invalid(at, `wants an object with ${required.join(', ')}, not ${shown(value)}`);
  const known = [...required, ...optional];
  for (const name of Object.keys(value))
    if (!known.includes(name)) throw invalid(at, `has no field ${shown(name)}: there are ${known.join(', ')}`);
  for (const name of required) if (!(name in value)) throw invalid(at, `lacks ${shown(name)}`);
  return value as Record<string, unknown>;
}

function listOf(value: unknown, at: string): unknown[] {
  if (Array.isArray(value)) return value;
  throw invalid(at, `wants a list, not ${shown(value)}`);
}

function finite(value: unknown, at: string): number {
  if (typeof value === 'number' && Number.isFinite(value)) return value;
  throw invalid(at, `wants a number, not ${shown(value)}`);
}

function wholeNumber(value: unknown, at: string, least: number, most: number): number {
  if (Number.isInteger(value) && (value as number) >= least && (value as number) <= most) return value as number;
  throw invalid(at, `wants a whole number from ${least} to ${most}, not ${shown(value)}`);
}

const shown = (value: unknown): string => (JSON.stringify(value) ?? 'nothing').slice(0, 60);

function refuseMissing(groups: Groups, options: IgpoOptions): void {
  for (const [at, group] of groups.entries())
    for (const [index, rollout] of group.entries()) {
      const turn = missingBelief(rollout, options);
      if (turn !== null)
        throw invalid(
          `groups[${at}][${index}].values[${turn}]`,
          'a belief is needed here, because the turn before it is within the scope',
        );
    }
}

/** One line a turn: what was done, what it was rewarded with, and its advantage. */
function table(groups: Groups, { credits, scale, gamma }: IgpoAdvantages): string[] {
  const header = ['group', 'rollout', 'turn', 'tool', 'belief', 'reward', 'advantage'];
  const rows = groups.flatMap((group, at) =>
    group.flatMap(({ values, tools, malformed }, index) =>
      values.map((value, turn) => {
        const { advantages = [], rewards = [] } = credits[at]?.[index] ?? {};
        const tool = tools[turn] ?? (turn === values.length - 1 ? 'answer' : '');
        const numbers = [value, rewards[turn] ?? null, advantages[turn] ?? null];
        return [
          ...[at, index, turn].map(String),
          malformed.includes(turn) ? 'malformed' : tool,
          ...numbers.map(number),
        ];
      }),
    ),
  );
  const widths = header.map((title, column) => Math.max(title.length, ...rows.map((row) => row[column]?.length ?? 0)));
  const isText = (column: number): boolean => column === 3;
  const lines = [header, ...rows].map((row) =>
    row
      .map((cell, column) => (isText(column) ? cell.padEnd(widths[column] ?? 0) : cell.padStart(widths[column] ?? 0)))
      .join('  ')
      .trimEnd(),
  );
  return [...lines, '', `gamma ${gamma}, scale of the gains ${number(scale)}`];
}

const number = (value: number | null): string => (value === null ? '-' : value.toFixed(4));
