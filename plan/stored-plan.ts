/** Plans that were written to a file: read strictly, and held against what their spec would give now. */
import { Ajv } from 'ajv';
import { canonicalJson } from '../schemas/canonical.ts';
import { ExpError } from '../schemas/errors.ts';
import type { Unkeyed } from '../schemas/node-parameters.ts';
import { Plan, type PlanArm, type PlanNode } from '../schemas/plan.ts';
import { changeText, keyChanges } from './diff.ts';
import { nodeKey } from './node-key.ts';

let compiled: ReturnType<Ajv['compile']> | undefined;

/** Throws PLAN when the text is no plan, or one whose keys are not those of its parts: somebody edited it. */
export function parseStoredPlan(text: string, file: string): Plan {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new ExpError('PLAN', file, `is no JSON: ${(cause as Error).message}`, { cause });
  }
  compiled ??= new Ajv({ strict: false, validateSchema: false, code: { optimize: false } }).compile(Plan);
  if (!compiled(value)) {
    const [first] = compiled.errors ?? [];
    throw new ExpError('PLAN', file, `is no plan: ${first?.instancePath || 'it'} ${first?.message}`);
  }
  const plan = value as Plan;
  for (const arm of plan.arms) checkArm(arm, file);
  return plan;
}

function checkArm({ name, nodes }: PlanArm, file: string): void {
  const keys = new Map<string, string>();
  for (const node of nodes) {
    const missing = node.inputs.find((input) => !keys.has(input));
    if (missing !== undefined)
      throw new ExpError('PLAN', file, `${node.id} reads ${missing}, which does not come before it`);
    if (keys.has(node.id)) throw new ExpError('PLAN', file, `arm ${name} has two nodes ${node.id}`);
    const inputs = node.inputs.map((input) => keys.get(input) as string);
    // A stage that was taken from a run keeps its key without the inputs that the key was made from.
    const isTaken = (node.unkeyed as Unkeyed).reused_from !== undefined;
    if (!isTaken && nodeKey(node, inputs) !== node.key)
      throw new ExpError('PLAN', file, `the key of ${node.id} is not that of its parts: plan the spec again`);
    keys.set(node.id, node.key);
  }
}

/** Where a stored plan is not what its spec gives now, in words; empty when it may run. */
export function staleReasons(stored: Plan, now: Plan): string[] {
  const names = (plan: Plan): string => plan.arms.map(({ name }) => name).join(', ');
  if (names(stored) !== names(now)) return [`its arms were ${names(stored)}, now they are ${names(now)}`];
  const reasons = stored.arms.flatMap((arm, at) => armReasons(arm, now.arms[at] as PlanArm));
  return [...new Set(reasons)];
}

/** What a node only inherits from its inputs is said there. */
function armReasons(stored: PlanArm, now: PlanArm): string[] {
  const gone = stored.nodes.filter(({ id }) => !now.nodes.some((node) => node.id === id));
  return [
    ...gone.map(({ id }) => `${id}: no longer a node`),
    ...now.nodes.flatMap((node) => {
      const before = stored.nodes.find(({ id }) => id === node.id);
      if (before === undefined) return [`${node.id}: a new node`];
      const changes = keyChanges({ node: before, nodes: stored.nodes }, { node, nodes: now.nodes });
      const own = changes.filter(({ component, before: old, after }) => component !== 'input' || !old || !after);
      return [...own.map((change) => `${node.id}: ${changeText(change)}`), ...pathReasons(before, node)];
    }),
  ];
}

/** Workers read files where the plan says they are. */
function pathReasons(before: PlanNode, now: PlanNode): string[] {
  const paths = ({ unkeyed }: PlanNode): Record<string, string> => (unkeyed as Unkeyed).paths ?? {};
  if (canonicalJson(paths(before)) === canonicalJson(paths(now))) return [];
  const moved = Object.entries(paths(now)).filter(([source, path]) => paths(before)[source] !== path);
  return moved.map(([source, path]) => `${now.id}: the files of ${source} are now at ${path}`);
}
