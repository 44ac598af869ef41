import { Readable } from 'node:stream';
import { afterEach, describe, expect, test } from 'vitest';
import { command } from '../../cli/commands/advantages.ts';

const stdin = Object.getOwnPropertyDescriptor(process, 'stdin') as PropertyDescriptor;
afterEach(() => void Object.defineProperty(process, 'stdin', stdin));

async function advantages(argv: string[], input: unknown): Promise<string> {
  const text = typeof input === 'string' ? input : JSON.stringify(input);
  Object.defineProperty(process, 'stdin', { configurable: true, value: Readable.from([Buffer.from(text)]) });
  const lines: string[] = [];
  const io = { out: (line: string) => void lines.push(line), err: () => {}, isTTY: false, env: {} };
  expect(await command.run(argv, { ...io, signal: new AbortController().signal })).toBe(0);
  return lines.join('\n');
}

const rollout = (values: unknown[], tools: unknown[], outcome: unknown, malformed?: unknown) => ({
  values,
  tools,
  outcome,
  ...(malformed !== undefined && { malformed }),
});
/** The golden vector of the recipe. */
const golden = {
  groups: [
    [
      rollout([-3.0, -2.9, -2.0, -2.1, -1.9, -0.5], ['search', 'visit', 'search', 'search', 'visit', null], 1),
      rollout([-3.0, -3.1, -2.8, -3.2], ['search', 'visit', 'visit', null], 0, [0]),
      rollout([-3.0, -2.7, -2.6], ['search', 'search', null], 0, []),
      rollout([-3.0, -2.5], ['visit', null], 1),
    ],
  ],
};

test('--json has the advantages of every turn, in full precision', async () => {
  const { advantages: groups } = JSON.parse(await advantages(['--preset', 'dr_venus', '--json'], golden)) as {
    advantages: number[][][];
  };
  expect(groups[0]?.map((turns) => turns.map((value) => Number(value.toFixed(4))))).toEqual([
    [3.5311, 3.5311, 2.6643, 2.6643, 2.6643, 1.0],
    [-3.7527, -1.9954, -1.95, -1.0],
    [-1, -1, -1],
    [1.2357, 1.0],
  ]);
});

test('a table says what each turn did, what it was rewarded with, and its advantage', async () => {
  const lines = (await advantages(['--preset', 'dr_venus'], golden)).split('\n').map((line) => line.trim().split(/ +/));
  expect(lines[0]).toEqual(['group', 'rollout', 'turn', 'tool', 'belief', 'reward', 'advantage']);
  expect(lines[1]).toEqual(['0', '0', '0', 'search', '-3.0000', '-', '3.5311']);
  expect(lines[7]).toEqual(['0', '1', '0', 'malformed', '-3.0000', '-1.0000', '-3.7527']);
});

test('every option changes the preset in one place', async () => {
  const first = rollout([-2, -1, -1.2], ['visit', 'search', null], 1);
  const one = { groups: [[first, rollout([-2, -2, -1.5], ['visit', 'visit', null], 0)]] };
  const run = async (...argv: string[]) => advantages(['--preset', 'dr_venus', '--json', ...argv], one);
  const plain = await run();
  for (const argv of [
    ['--gamma', '0.5'],
    ['--scope', 'all'],
    ['--weight', '0.5'],
    ['--normalize', 'joint'],
  ])
    expect(await run(...argv), argv.join(' ')).not.toBe(plain);
  expect(await run('--scope', 'Visit')).toBe(plain);
  expect(await run('--scope', 'all', '--measure', 'prob')).not.toBe(await run('--scope', 'all'));
});

describe('bad input is refused at its place', () => {
  const of = (rollouts: unknown) => ({ groups: [rollouts] });
  test.each([
    ['{', 'stdin: GROUPS: it is not JSON'],
    [[], '(root): GROUPS: wants an object with groups, not []'],
    [{}, '(root): GROUPS: lacks "groups"'],
    [{ groups: 3 }, 'groups: GROUPS: wants a list, not 3'],
    [of([]), 'groups[0]: GROUPS: a group has at least one rollout'],
    [of([{ values: [-1], tools: [null] }]), 'groups[0][0]: GROUPS: lacks "outcome"'],
    [of([{ ...rollout([-1], [null], 1), outcom: 1 }]), 'groups[0][0]: GROUPS: has no field "outcom"'],
    [of([rollout([-1, 'x'], ['a', null], 1)]), 'groups[0][0].values[1]: GROUPS: wants a number, not "x"'],
    [of([rollout([], [], 1)]), 'groups[0][0].values: GROUPS: a rollout has at least one turn'],
    [of([rollout([-1], [], 1)]), 'groups[0][0].tools: GROUPS: has 0 entries for the 1 turns'],
    [of([rollout([-1], [4], 1)]), 'groups[0][0].tools[0]: GROUPS: wants the name of a tool, or null, not 4'],
    [of([rollout([-1], [null], 1, [1])]), 'groups[0][0].malformed[0]: GROUPS: wants a whole number from 0 to 0, not 1'],
    [of([rollout([-1], [null], true)]), 'groups[0][0].outcome: GROUPS: wants a number, not true'],
    [of([rollout([-1, null], ['visit', null], 1)]), 'groups[0][0].values[1]: GROUPS: a belief is needed here'],
  ])('%j', async (input, message) => {
    await expect(advantages(['--preset', 'dr_venus'], input)).rejects.toThrow(message);
  });

  test.each([
    [[], 'wants --preset paper | dr_venus | released_2025'],
    [['--preset', 'igpo'], '--preset "igpo" is none of paper, dr_venus, released_2025'],
    [['--preset', 'paper', '--gamma', '1.5'], '--gamma wants a number from 0 to 1, not "1.5"'],
    [['--preset', 'paper', '--every', '0'], '--every wants a whole number of at least 1, not "0"'],
    [['--preset', 'paper', '--scope', 'visit,'], '--scope wants tools'],
  ])('%j', async (argv, message) => {
    await expect(advantages(argv, golden)).rejects.toThrow(message);
  });
});
