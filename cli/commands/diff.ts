import { parseArgs } from 'node:util';
import { changeText, leafText } from '../../plan/diff.ts';
import { ExitCode, ExpError } from '../../schemas/errors.ts';
import type { Plan } from '../../schemas/plan.ts';
import type { Profile } from '../../schemas/profile.ts';
import type { Command, CommandIo } from '../command.ts';
import { asUnreachable, openProfile, openStack, requireStack, type Stack } from '../open-stack.ts';
import { differPlans, type NodeDifference, type PlanDifference, type ResultDifference } from '../plan-difference.ts';
import { planSpec } from '../plan-spec.ts';
import { findRun } from '../run-state.ts';
import { showProblems } from '../show-problems.ts';
import { detectTerminal, renderTable } from '../terminal.ts';

export const command: Command = {
  name: 'diff',
  summary: 'Show how two runs or specs differ: leaves of the spec, nodes, results.',
  usage: 'diff A B [--all] [--profile P] [--json]',
  help: `  A, B     a run (or \`latest\`), or the path of a spec (ends in .yaml)
  --all    also the nodes that both share
  --json   {a, b, spec, arms, nodes, results}

Results stand side by side as they were published; \`exp compare\` pairs them by question and tests the difference.`,

  async run(argv, io) {
    const { values, positionals } = parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: {
        all: { type: 'boolean', default: false },
        profile: { type: 'string' },
        json: { type: 'boolean', default: false },
      },
    });
    const [a, b, ...more] = positionals;
    if (a === undefined || b === undefined || more.length > 0)
      throw new ExpError('USAGE', 'exp diff', 'wants two runs or specs');
    const { profile, ref } = openProfile(values.profile);
    const stack = isSpec(a) && isSpec(b) ? await openStack(profile) : await requireStack(profile);
    try {
      const sides = [];
      for (const wanted of [a, b]) {
        const side = isSpec(wanted) ? await planned(wanted, ref, io) : await ofRun(wanted, stack as Stack);
        if (side === null) return ExitCode.invalidInput;
        sides.push(side);
      }
      const [first, second] = sides as [Side, Side];
      const difference = await differPlans(first.plan, second.plan, stack?.store ?? null);
      if (values.json) io.out(JSON.stringify({ a: first.name, b: second.name, ...difference }));
      else show(difference, [first.name, second.name], values.all, io);
      return ExitCode.done;
    } catch (error) {
      throw asUnreachable(error, profile);
    } finally {
      await stack?.close();
    }
  },
};

interface Side {
  name: string;
  plan: Plan;
}

const isSpec = (wanted: string): boolean => /\.ya?ml$/.test(wanted);

async function ofRun(wanted: string, { pool, store }: Stack): Promise<Side> {
  const { id, plan_blob } = await findRun(pool, wanted);
  return { name: id, plan: await store.readJson<Plan>(plan_blob) };
}

/** Null when the spec has problems, which are then shown. */
async function planned(spec: string, profile: Profile['name'], io: CommandIo): Promise<Side | null> {
  const { plan, problems, texts } = await planSpec({ spec, profile, env: io.env });
  if (plan === null) showProblems(problems, texts, io);
  return plan && { name: spec, plan };
}

function show(
  { spec, arms, nodes, results }: PlanDifference,
  [a, b]: [string, string],
  all: boolean,
  io: CommandIo,
): void {
  const leaves = [
    ...spec.map(leafText),
    ...arms.only_a.map((arm) => `arm ${arm}: only in ${a}`),
    ...arms.only_b.map((arm) => `arm ${arm}: only in ${b}`),
    ...arms.changed.flatMap(({ arm, changes }) => changes.map((change) => `arm ${arm}: ${leafText(change)}`)),
  ];
  const differing = nodes.filter(({ shared }) => !shared);
  io.out(`spec: ${leaves.length === 0 ? 'the same' : `${a} → ${b}`}`);
  for (const line of leaves) io.out(`  ${line}`);
  io.out('');
  io.out(`nodes: ${nodes.length - differing.length} of ${nodes.length} are shared`);
  const shown = all ? nodes : differing;
  if (shown.length > 0) table(['node', 'kind', 'A', 'B', 'what differs'], shown.map(nodeCells), io);
  if (results === null) {
    io.out('');
    io.out('results: the services are down, so none are read');
  } else if (results.length > 0) {
    io.out('');
    io.out('results, per cent with 95 % intervals');
    table(['benchmark', 'metric', 'A', 'B', 'difference'], results.map(resultCells), io);
  }
}

function table(titles: readonly string[], rows: readonly string[][], io: CommandIo): void {
  const columns = titles.map((title) => ({ title }));
  for (const line of renderTable(detectTerminal(io), columns, rows)) io.out(line);
}

const SHOWN_KEY = 12;

function nodeCells({ arms, id, kind, a, b, shared, changes }: NodeDifference): string[] {
  const key = (value: string | null): string => value?.slice(0, SHOWN_KEY) ?? '–';
  const said = shared ? 'shared' : changes.map(changeText).join('; ');
  return [labelOf(arms, id), kind, key(a), key(b), said];
}

function resultCells({ arms, node, metric, a, b }: ResultDifference): string[] {
  const difference = a && b ? signed(b.value - a.value) : '';
  return [labelOf(arms, node), metric.replace('_at_', '@'), percent(a), percent(b), difference];
}

function labelOf(arms: readonly string[], id: string): string {
  if (arms.length > 1) return `${id} (${arms.length} arms)`;
  return arms[0] === 'main' ? id : `${arms[0]}/${id}`;
}

const share = (value: number): string => (100 * value).toFixed(1);
const signed = (value: number): string => `${value > 0 ? '+' : ''}${share(value)}`;

function percent(interval: ResultDifference['a']): string {
  return interval === null ? '–' : `${share(interval.value)} [${share(interval.low)}, ${share(interval.high)}]`;
}
