import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { LoadPlanOptions } from '../../plan/load-plan.ts';
import { nodeAt } from '../../plan/located.ts';
import { placeText } from '../../plan/problem.ts';
import type { Experiment } from '../../schemas/experiment.ts';
import { folderWith, found, planFile, recipe } from './plan-fixture.ts';

const BASE = readFileSync(recipe, 'utf8');

/** The resolved spec of `spec.yaml` among the files; `recipe.yaml` is there to extend. */
async function resolved(files: Record<string, string>, options: Partial<LoadPlanOptions> = {}) {
  const folder = folderWith({ 'recipe.yaml': BASE, ...files });
  const overlays = options.overlays?.map((name) => join(folder, name)) ?? [];
  const loaded = await planFile(join(folder, 'spec.yaml'), { ...options, overlays });
  return { ...loaded, folder, spec: loaded.plan?.spec as unknown as Experiment };
}

const extending = (text: string): Record<string, string> => ({ 'spec.yaml': `extends: [recipe.yaml]\n${text}` });

describe('later layers win', () => {
  test('extends from left to right, then the file, then overlays, then the command line', async () => {
    const files = {
      'left.yaml':
        'extends: [recipe.yaml]\nname: left\ndescription: left\nseed: 1\nagent: { max_turns: 11 }\nreward: { format_penalty: 0.1 }\n',
      'right.yaml': 'description: right\nseed: 2\nagent: { max_turns: 12 }\nreward: { format_penalty: 0.2 }\n',
      'spec.yaml':
        'extends: [left.yaml, right.yaml]\nseed: 3\nagent: { max_turns: 13 }\nreward: { format_penalty: 0.3 }\n',
      'overlay.yaml': 'agent: { max_turns: 14 }\nreward: { format_penalty: 0.4 }\n',
    };
    const { spec } = await resolved(files, { overlays: ['overlay.yaml'], overrides: ['reward.format_penalty=0.5'] });
    expect([spec.name, spec.description, spec.seed, spec.agent.max_turns, spec.reward.format_penalty]).toEqual([
      'left',
      'right',
      3,
      14,
      0.5,
    ]);
  });

  test('maps merge deeply, lists are replaced, the rest stays', async () => {
    const { spec } = await resolved(
      extending('agent: { tools: [search] }\nbenchmarks:\n  held_out: { after: [base] }\n'),
    );
    expect(spec.agent).toMatchObject({ tools: ['search'], max_turns: 4 });
    expect(spec.benchmarks['held_out']).toMatchObject({ after: ['base'], samples: 2 });
  });

  test('!unset removes a key, and a default takes its place', async () => {
    const { spec } = await resolved(
      extending('corpus: { near_duplicates: !unset }\nagent: { observation_tokens: !unset }\n'),
    );
    expect(spec.corpus).not.toHaveProperty('near_duplicates');
    expect(spec.agent.observation_tokens).toBe(512);
  });

  test('every value knows the file and line it came from', async () => {
    const { root, folder } = await resolved(extending('seed: 5\n'), { overrides: ['agent.max_turns=9'] });
    const at = (...path: string[]) =>
      placeText(nodeAt(root as NonNullable<typeof root>, path)?.at ?? { file: '', line: 0, column: 0 });
    expect(at('seed')).toBe(`${folder}/spec.yaml:2:7`);
    expect(at('corpus', 'limit', 'chunks')).toBe(`${folder}/recipe.yaml:10:20`);
    expect(at('agent', 'max_turns')).toBe('command line:1:17');
  });
});

describe('the command line', () => {
  test('key=value changes, +key=value adds, ~key removes; values are YAML', async () => {
    const { spec } = await resolved(extending(''), {
      overrides: [
        'agent.max_turns=6',
        '+curriculum.stage1.algorithm.kl={ coefficient: 0.5 }',
        '~corpus.near_duplicates',
        'agent.tools=[search]',
      ],
    });
    expect(spec.agent).toMatchObject({ max_turns: 6, tools: ['search'] });
    expect(spec.curriculum['stage1']).toMatchObject({ algorithm: { kl: { coefficient: 0.5, estimator: 'k3' } } });
    expect(spec.corpus).not.toHaveProperty('near_duplicates');
  });

  test.each([
    ['agent.max_trns=6', 'UNKNOWN_FIELD 1:1', 'did you mean `max_turns`?'],
    ['agent.context_management=none', 'UNKNOWN_FIELD 1:1', 'write +agent.context_management=… to add it'],
    ['~nothing', 'UNKNOWN_FIELD 1:1', undefined],
    ['agent.max_turns=six', 'TYPE 1:17', undefined],
    ['agent.max_turns=[', 'SYNTAX 1:18', undefined],
    ['+a b=1', 'USAGE 1:1', 'write key=value, +key=value or ~key'],
  ])('%s is %s', async (override, expected, hint) => {
    const loaded = await resolved(extending(''), { overrides: [override] });
    expect(found(loaded)).toEqual([expected]);
    expect(loaded.problems[0]?.file).toBe('command line');
    expect(loaded.problems[0]?.hint).toBe(hint);
  });
});

describe('like', () => {
  const stage2 =
    'curriculum:\n  stage2: { like: stage1, from: "${stages.stage1.checkpoint}", rollout: { temperature: 0.7 }, difficulty: !unset }\n';

  test('has everything the other stage says, except what it says itself', async () => {
    const { spec } = await resolved(extending(stage2));
    const { stage1, stage2: second } = spec.curriculum as Record<string, Record<string, unknown>>;
    expect(second).toMatchObject({
      kind: 'rl',
      until: stage1?.['until'],
      rollout: { temperature: 0.7, group_size: 4 },
    });
    expect(second).not.toHaveProperty('difficulty');
    expect(second).not.toHaveProperty('like');
  });

  test('follows a change of the other stage, unless it sets the value itself', async () => {
    const { spec } = await resolved(extending(stage2), {
      overrides: ['curriculum.stage1.rollout.group_size=8', 'curriculum.stage1.rollout.temperature=0.9'],
    });
    expect(spec.curriculum['stage2']).toMatchObject({ rollout: { group_size: 8, temperature: 0.7 } });
  });

  test('works over several stages, in any order of the file', async () => {
    const { spec } = await resolved(
      extending('curriculum:\n  a: { like: b, until: { steps: 9 } }\n  b: { like: stage1, context_length: 2000 }\n'),
    );
    expect(spec.curriculum['a']).toMatchObject({ kind: 'rl', context_length: 2000, until: { steps: 9 } });
  });
});

describe('benchmark_defaults', () => {
  test('lie under every benchmark', async () => {
    const { spec } = await resolved(
      extending(
        'benchmark_defaults: { samples: 7, sampling: { temperature: 0.6 }, after: last }\nbenchmarks:\n  more: { dataset: { split: held_out } }\n',
      ),
    );
    expect(spec.benchmarks['more']).toMatchObject({
      samples: 7,
      after: 'last',
      sampling: { temperature: 0.6, top_p: 1 },
    });
    expect(spec.benchmarks['held_out']).toMatchObject({ samples: 2, sampling: { temperature: 0.6 } });
  });

  test('`last` is the last stage that makes weights', async () => {
    const { plan } = await resolved(extending('benchmarks: { held_out: { after: last } }\n'));
    expect(plan?.arms[0]?.nodes.filter(({ kind }) => kind === 'benchmark').map(({ id }) => id)).toEqual([
      'held_out.stage1',
    ]);
  });
});

describe('references', () => {
  test('one that is a whole scalar keeps its type; within text it is text', async () => {
    const { spec } = await resolved(
      extending(
        'vars: { k: 8, who: us, tools: [visit] }\ndescription: "for ${vars.who} (${vars.k})"\nagent: { max_turns: "${vars.k}", tools: "${vars.tools}" }\n',
      ),
    );
    expect(spec.agent).toMatchObject({ max_turns: 8, tools: ['visit'] });
    expect(spec.description).toBe('for us (8)');
  });

  test('a type error points at the use, not at the variable', async () => {
    expect(found(await resolved(extending('vars: { k: eight }\nagent: { max_turns: "${vars.k}" }\n')))).toEqual([
      'TYPE 3:21',
    ]);
  });

  test('checkpoints make edges, also to stages further down', async () => {
    const { plan } = await resolved(
      extending(
        'curriculum:\n  cold_start: { from: "${stages.before.checkpoint}" }\n  before: { like: cold_start, from: "${base}" }\n',
      ),
    );
    const nodes = plan?.arms[0]?.nodes ?? [];
    expect(nodes.find(({ id }) => id === 'cold_start')?.inputs).toEqual(['cold_start.trajectories', 'before']);
    expect(nodes.findIndex(({ id }) => id === 'before')).toBeLessThan(nodes.findIndex(({ id }) => id === 'cold_start'));
  });

  test.each(['corpus.sources.docs.licence', 'agent.max_turns'])('${env:} is refused in %s', async (path) => {
    expect(found(await resolved(extending(''), { overrides: [`+${path}="\${env:HOME}"`] }))[0]).toMatch(
      /^SECRET_FIELD/,
    );
  });

  test('the value of ${env:} enters no key and no run', async () => {
    const source = 'corpus:\n  sources:\n    docs: !unset\n    pages: { kind: jsonl, path: "${env:PAGES}/p.jsonl" }\n';
    const one = await resolved(extending(source), { env: { PAGES: folderWith({ 'p.jsonl': '{}' }) } });
    const other = await resolved(extending(source), { env: { PAGES: folderWith({ 'p.jsonl': '{}' }) } });
    expect(one.plan?.run_key).toBe(other.plan?.run_key);
    expect(one.plan?.arms[0]?.nodes.map(({ key }) => key)).toEqual(other.plan?.arms[0]?.nodes.map(({ key }) => key));
    expect(one.plan?.arms[0]?.nodes[0]?.unkeyed).not.toEqual(other.plan?.arms[0]?.nodes[0]?.unkeyed);
  });
});

describe('the run key', () => {
  const runKey = async (options: Partial<LoadPlanOptions> = {}) => (await planFile(recipe, options)).plan?.run_key;

  test('knows the whole spec, its name included, and the label', async () => {
    const usual = await runKey();
    expect(await runKey()).toBe(usual);
    for (const other of [
      { overrides: ['name=other'] },
      { overrides: ['tracking.mlflow_experiment=other'] },
      { label: 'again' },
    ]) {
      expect(await runKey(other)).not.toBe(usual);
    }
  });
});
