/** Looks up what `reuse` names: a stage as the plan of an earlier run has it. */
import type { ReusedStage } from '../plan/compile.ts';
import type { Plan } from '../schemas/plan.ts';
import type { Profile } from '../schemas/profile.ts';
import { isOutage, openStackToAsk, type Stack } from './open-stack.ts';

/** Runs looked at, newest first. */
const NEWEST = 50;

/** Null where no finished run has published that stage, or the services are down. */
export async function findStage(
  profile: Profile,
  stage: string,
  run: string,
  names: readonly string[],
): Promise<ReusedStage | null> {
  const stack = await openStackToAsk(profile);
  if (stack === null) return null;
  try {
    return await findOn(stack, stage, run, names);
  } catch (error) {
    if (isOutage(error)) return null;
    throw error;
  } finally {
    await stack.close();
  }
}

async function findOn(stack: Stack, stage: string, run: string, names: readonly string[]): Promise<ReusedStage | null> {
  const { rows } = await stack.pool.query<{ id: string; plan_blob: string }>(
    run === 'latest'
      ? `select id, plan_blob from runs where status = 'done' and name = any($1) order by created_at desc limit ${NEWEST}`
      : 'select id, plan_blob from runs where id = any($1)',
    [run === 'latest' ? names : [run]],
  );
  for (const { id, plan_blob } of rows) {
    const plan = await stack.store.readJson<Plan>(plan_blob);
    const nodes = plan.arms.flatMap((arm) => arm.nodes.filter((node) => node.id === stage));
    const made = await stack.store.findAll(nodes.map(({ key }) => key));
    const node = nodes.find(({ key }) => made.has(key));
    if (node !== undefined) return { run: id, node };
  }
  return null;
}
