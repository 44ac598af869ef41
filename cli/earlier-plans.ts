/** Frozen plans of earlier runs, to say what has changed since. */
import type { EarlierPlan } from '../plan/why.ts';
import { ExpError } from '../schemas/errors.ts';
import type { Plan } from '../schemas/plan.ts';
import type { Stack } from './open-stack.ts';

/** What a researcher may still have in mind; more would make planning slow and say little. */
const EARLIER_PLANS = 8;

/** The newest plans of one spec name and profile, newest first, each once; those of runs that began before `before`. */
export async function readEarlierPlans(
  { pool, store }: Pick<Stack, 'pool' | 'store'>,
  { name, profile, before }: { name: string; profile: string; before?: Date },
): Promise<EarlierPlan[]> {
  const { rows } = await pool.query<{ id: string; plan_blob: string }>(
    `select id, plan_blob from (
       select distinct on (plan_blob) id, plan_blob, created_at from runs
       where name = $1 and profile = $2 and ($3::timestamptz is null or created_at < $3)
       order by plan_blob, created_at desc
     ) as newest order by created_at desc, id limit ${EARLIER_PLANS}`,
    [name, profile, before ?? null],
  );
  const plans = rows.map(({ id, plan_blob }) =>
    store.readJson<Plan>(plan_blob).then(
      (plan): EarlierPlan[] => [{ run: id, plan }],
      (error: unknown) => {
        if (error instanceof ExpError && error.code === 'ARTIFACT_MISSING') return [];
        throw error;
      },
    ),
  );
  return (await Promise.all(plans)).flat();
}
