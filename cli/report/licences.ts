import type { Plan, PlanNode } from '../../schemas/plan.ts';
import type { Profile } from '../../schemas/profile.ts';
import type { Licence } from './document.ts';

/** Licences of everything a run stood on: sources as the plan has them, models as the profile's registries have them. */
export function licencesOf({ arms, spec }: Plan, profile: Profile): Licence[] {
  const nodes = arms.flatMap((arm) => arm.nodes);
  const registry = `registry of the profile ${profile.name}`;
  const { models, embedders, engines } = profile.registries;
  const { engine } = (spec['policy'] ?? {}) as { engine?: string };
  const found = [
    ...nodes.flatMap(sourcesOf),
    ...nodes.flatMap((node) => {
      const { policy, embedder } = node.parameters as { policy?: { model: string }; embedder?: { model: string } };
      return [
        ...(policy === undefined ? [] : [entry('policy', policy.model, models[policy.model]?.licence, registry)]),
        ...(embedder === undefined
          ? []
          : [entry('embedder', embedder.model, embedders[embedder.model]?.licence, registry)]),
      ];
    }),
    ...(engine === undefined ? [] : [entry('engine', engine, engines[engine]?.licence, registry)]),
  ];
  return [...new Map(found.map((licence) => [JSON.stringify(licence), licence])).values()];
}

const entry = (used_as: string, name: string, licence: string | undefined, provenance: string): Licence => ({
  used_as,
  name,
  licence: licence ?? 'not in the registry',
  provenance,
});

function sourcesOf({ kind, parameters }: PlanNode): Licence[] {
  if (kind !== 'corpus' && kind !== 'tasks') return [];
  const { sources } = parameters as { sources: Record<string, { licence?: string; provenance?: string }> };
  return Object.entries(sources ?? {}).flatMap(([name, { licence, provenance }]) =>
    licence === undefined ? [] : [entry(`${kind} source`, name, licence, provenance ?? '')],
  );
}
