/** A plan for people and for programs: what runs, what is reused and why, and what it may cost at most. */
import { type Cost, type Estimate, estimateNode, priceOf, totalOf } from '../plan/estimate.ts';
import type { NodeAction } from '../plan/reuse.ts';
import { withoutGuarantees } from '../plan/verl.ts';
import type { Unkeyed } from '../schemas/node-parameters.ts';
import type { Plan, PlanNode } from '../schemas/plan.ts';
import type { Profile } from '../schemas/profile.ts';
import type { CommandIo } from './command.ts';
import { count, detectTerminal, renderTable } from './terminal.ts';

const SHOWN_KEY = 12;
const SHOWN_ARMS = 3;

type Priced = Estimate & Cost;

const pricedNode = (node: PlanNode, nodes: readonly PlanNode[], profile: Profile): Priced | null => {
  const estimate = estimateNode(node, nodes);
  return estimate && { ...estimate, ...priceOf(estimate, profile) };
};

export function planToJson({ run_key, name, arms }: Plan, actions: readonly NodeAction[], profile: Profile) {
  const members = arms.flatMap((arm) => arm.nodes.map((node) => ({ node, nodes: arm.nodes })));
  return {
    name,
    run_key,
    nodes: members.map(({ node, nodes }, index) => ({
      arm: actions[index]?.arm,
      id: node.id,
      kind: node.kind,
      key: node.key,
      inputs: node.inputs,
      action: actions[index]?.action,
      reason: actions[index]?.reason,
      ...(actions[index]?.since && { since: actions[index].since }),
      estimate: pricedNode(node, nodes, profile),
      without: withoutGuarantees(node),
    })),
    total: { ...totalToRun(arms, actions, profile), currency: profile.prices.currency },
  };
}

/** Over the nodes that run, each once. */
function totalToRun(
  arms: Plan['arms'],
  actions: readonly NodeAction[],
  profile: Profile,
): Priced & { unknown: number } {
  const members = arms.flatMap((arm) => arm.nodes.map((node) => ({ node, nodes: arm.nodes })));
  const running = members.filter((_, index) => actions[index]?.action === 'run');
  const once = new Map(running.map((member) => [member.node.key, member]));
  const total = totalOf([...once.values()].map(({ node, nodes }) => estimateNode(node, nodes)));
  return { ...total, ...priceOf(total, profile) };
}

/** Every distinct node once, in the order in which arms need them, indented by how many come before it. */
export function showPlan(
  { name, profile: profileName, arms }: Plan,
  actions: readonly NodeAction[],
  { profile, io }: { profile: Profile; io: CommandIo },
): void {
  const rows = new Map<string, { cells: string[]; arms: string[] }>();
  let index = 0;
  for (const arm of arms) {
    const depths = depthsOf(arm.nodes);
    for (const node of arm.nodes) {
      const { action = 'run', reason = '' } = actions[index++] ?? {};
      const known = rows.get(node.key);
      if (known) known.arms.push(arm.name);
      else {
        const indented = `${'  '.repeat(depths.get(node.id) ?? 0)}${node.id}`;
        const estimate = estimateText(pricedNode(node, arm.nodes, profile), profile);
        rows.set(node.key, {
          cells: [indented, node.kind, keyText(node), action, estimate, reason],
          arms: [arm.name],
        });
      }
    }
  }
  const running = actions.filter(({ action }) => action === 'run').length;
  const several = arms.length > 1;
  const distinct = several ? `${arms.length} arms, ${index} nodes, ` : '';
  io.out(
    `${name} on profile ${profileName}: ${distinct}${running} of ${rows.size} ${several ? 'distinct ' : ''}nodes run, ${rows.size - running} are reused`,
  );
  const titles = ['node', 'kind', 'key', 'action', 'estimate', 'reason'];
  const columns = (several ? [...titles, 'arms'] : titles).map((title) => ({ title }));
  const table = [...rows.values()].map(({ cells, arms: users }) =>
    several ? [...cells, armsText(users, arms.length)] : cells,
  );
  for (const line of renderTable(detectTerminal(io), columns, table)) io.out(line);
  for (const line of withoutText(arms)) io.out(line);
  if (running > 0) io.out(totalText(totalToRun(arms, actions, profile), profile));
}

/** What no promise covers, by node: said before it is run. */
function withoutText(arms: Plan['arms']): string[] {
  const nodes = new Map(arms.flatMap((arm) => arm.nodes.map((node) => [node.id, withoutGuarantees(node)] as const)));
  return [...nodes].flatMap(([id, without]) =>
    without.length === 0 ? [] : [`${id} runs on verl, without`, ...without.map((promise) => `  ${promise}`)],
  );
}

/** The longest way to a node from one that reads nothing. */
function depthsOf(nodes: readonly PlanNode[]): Map<string, number> {
  const depths = new Map<string, number>();
  for (const { id, inputs } of nodes)
    depths.set(id, Math.max(-1, ...inputs.map((input) => depths.get(input) ?? 0)) + 1);
  return depths;
}

function armsText(users: readonly string[], total: number): string {
  if (users.length === total) return 'all';
  return users.length > SHOWN_ARMS ? `${users.length} arms` : users.join(' ');
}

function keyText({ key, unkeyed }: PlanNode): string {
  return (unkeyed as Unkeyed).unknown ? 'unknown' : key.slice(0, SHOWN_KEY);
}

function estimateText(priced: Priced | null, profile: Profile): string {
  return priced === null ? 'unknown' : partsOf(priced, profile).join(', ');
}

function partsOf(priced: Priced, { prices }: Profile): string[] {
  const { rollouts, tokens_at_most, trained_tokens_at_most, tool_calls_at_most, gpu_hours_at_most, cost_at_most } =
    priced;
  const parts = [
    rollouts > 0 && `≤ ${count(rollouts)} rollouts`,
    tokens_at_most > 0 && `≤ ${count(tokens_at_most)} tokens`,
    trained_tokens_at_most > 0 && `≤ ${count(trained_tokens_at_most)} trained`,
    tool_calls_at_most > 0 && `≤ ${count(tool_calls_at_most)} calls`,
    gpu_hours_at_most !== null && gpu_hours_at_most > 0 && `≤ ${count(Math.ceil(gpu_hours_at_most))} GPU-hours`,
    cost_at_most !== null && cost_at_most > 0 && `≤ ${count(Math.ceil(cost_at_most))} ${prices.currency}`,
  ];
  return parts.filter((part) => part !== false);
}

function totalText(total: Priced & { unknown: number }, profile: Profile): string {
  const parts = partsOf(total, profile);
  const unknown = total.unknown > 0 ? `; ${total.unknown} nodes without an estimate` : '';
  const hours = total.gpu_hours_at_most === null ? '; GPU-hours unknown: the profile states no throughput' : '';
  return `what runs: ${parts.join(', ') || 'nothing sampled or trained'}${unknown}${hours}`;
}
