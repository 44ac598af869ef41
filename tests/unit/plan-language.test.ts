import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { LoadPlanOptions } from '../../plan/load-plan.ts';
import type { PlanNode } from '../../schemas/plan.ts';
import { folderWith, found, keysOf, nodesOf, planFile, recipe } from './plan-fixture.ts';

const BASE = readFileSync(recipe, 'utf8');
const specWith = (text: string): string =>
  join(folderWith({ 'recipe.yaml': BASE, 'spec.yaml': `extends: [recipe.yaml]\n${text}` }), 'spec.yaml');
const planned = (text: string, options: Partial<LoadPlanOptions> = {}) => planFile(specWith(text), options);

describe('reuse', () => {
  const REUSE = 'reuse: { stages.cold_start: { run: latest } }\n';

  test('puts the node of that run in the place of the stage, under its key; what it was made from is not made', async () => {
    const base = await nodesOf(recipe);
    const made: PlanNode = { ...(base.find(({ id }) => id === 'cold_start') as PlanNode), key: 'a'.repeat(64) };
    const nodes = await nodesOf(specWith(REUSE), {
      findStage: async (stage, run, names) =>
        stage === 'cold_start' && run === 'latest' && names.includes('quickstart')
          ? { run: 'quickstart-261101-abcdef', node: made }
          : null,
    });
    const stage = nodes.find(({ id }) => id === 'cold_start');
    expect(stage).toMatchObject({
      key: 'a'.repeat(64),
      inputs: [],
      unkeyed: { reused_from: 'quickstart-261101-abcdef' },
    });
    expect(nodes.map(({ id }) => id)).not.toContain('cold_start.trajectories');
    const [before, after] = [keysOf(base), keysOf(nodes)];
    expect(after['stage1']).not.toBe(before['stage1']);
    expect([after['index'], after['held_out.base']]).toEqual([before['index'], before['held_out.base']]);
  });

  test('the run is not known: the spec is valid, and the keys that hang on it are unknown', async () => {
    const { plan, problems, unknown } = await planned(REUSE);
    expect(problems).toEqual([]);
    expect(unknown).toContainEqual(expect.stringContaining('reuse.stages.cold_start: no finished run of quickstart'));
    const marks = Object.fromEntries((plan?.arms[0]?.nodes ?? []).map(({ id, unkeyed }) => [id, unkeyed['unknown']]));
    expect(marks['stage1']).toContain('the run of reuse.stages.cold_start');
    expect(marks['index'] ?? []).not.toContain('the run of reuse.stages.cold_start');
  });

  test('of a stage that there is not is a problem', async () => {
    expect(found(await planned('reuse: { stages.cold_strat: { run: latest } }\n'))).toEqual(['REF 2:10']);
  });
});

describe('what is compared', () => {
  test('must be measured, after a stage that there is, with an arm that there is', async () => {
    const { problems } = await planned(`compare: { metric: eval/held_out/avg_at_9, at: stage7, control: contrl }
ablations: { control: {}, hot: { curriculum.stage1.rollout.temperature: 0.5 } }
`);
    expect(problems.map(({ code, message, hint }) => `${code} ${message} ${hint}`)).toEqual([
      expect.stringMatching(/^REF no benchmark measures `eval\/held_out\/avg_at_9` .*eval\/held_out\/avg_at_2/),
      expect.stringMatching(/^REF there are no weights of a stage `stage7` .*stage1/),
      expect.stringMatching(/^REF there is no arm `contrl` .*control/),
    ]);
  });

  test('published numbers name benchmarks of the spec', async () => {
    expect(found(await planned('references: { theirs: { world: web, held_out: 12.5 } }\n'))).toEqual([]);
    expect(found(await planned('references: { theirs: { world: web, held_uot: 12.5 } }\n'))).toEqual(['REF 2:37']);
  });

  test('comparison and references change no key', async () => {
    const text =
      'references: { theirs: { world: web, held_out: 12.5 } }\ncompare: { metric: eval/held_out/avg_at_2 }\n';
    expect(keysOf(await nodesOf(specWith(text)))).toEqual(keysOf(await nodesOf(recipe)));
  });
});

describe('stages', () => {
  test('a source that is named is the only one a stage depends on', async () => {
    const two = (limit: number) =>
      nodesOf(
        specWith(`tasks:
  sources:
    own: { kind: jsonl, path: own.jsonl, limit: ${limit} }
curriculum: { cold_start: { tasks: { source: made } }, stage1: { tasks: { source: made } } }
`),
      );
    const [before, after] = [keysOf(await two(4)), keysOf(await two(5))];
    expect(after['stage1']).toBe(before['stage1']);
    expect(after['held_out.base']).not.toBe(before['held_out.base']);
  });

  test('an evaluation within a stage names a benchmark; a plateau needs one', async () => {
    const stage = (text: string) => planned(`curriculum: { stage1: { ${text} } }\n`);
    expect(found(await stage('evaluate: { benchmark: held_uot, every: 1 }'))).toEqual(['REF 2:48']);
    expect(found(await stage('until: { plateau: { metric: eval/held_out/avg_at_2, patience: 2 } }'))).toEqual([
      'REQUIRED 2:43',
    ]);
    expect(
      found(
        await stage(
          'evaluate: { benchmark: held_out, every: 1 }, until: { plateau: { metric: eval/held_out/avg_at_2, patience: 2 } }',
        ),
      ),
    ).toEqual([]);
  });

  test('settings of another algorithm are warned of, unless an arm takes that algorithm away', async () => {
    const igpo = 'curriculum: { stage1: { algorithm: { name: igpo, gamma: 0.9 } } }\n';
    const arms = 'ablations: { control: {}, grpo: { curriculum.stage1.algorithm: { name: grpo } } }\n';
    expect((await planned(igpo + arms)).warnings).toEqual([]);
    const { warnings } = await planned('curriculum: { stage1: { algorithm: { gamma: 0.9 } } }\n');
    expect(warnings.map(({ code, line, column }) => `${code} ${line}:${column}`)).toEqual(['NO_EFFECT 2:45']);
  });

  test('sampling ahead is executed, and warned of where every checkpoint is measured', async () => {
    const ahead = (settings: string) =>
      planned(`curriculum: { stage1: { rollout: { max_staleness: 1 }, ${settings} } }\n`);
    const { warnings, unknown } = await ahead('evaluate: { benchmark: held_out, every: 2 }');
    expect({ warnings, unknown }).toEqual({ warnings: [], unknown: (await planned('')).unknown });
    const { warnings: each } = await ahead('evaluate: { benchmark: held_out, every: 1 }');
    expect(each.map(({ code, line, column }) => `${code} ${line}:${column}`)).toEqual(['NO_EFFECT 2:51']);
  });

  test('beliefs come from the engine in short contexts at temperature 1, else from the trainer', async () => {
    const beliefs = async (settings: string) => {
      const { plan } = await planned(`curriculum: { stage1: { algorithm: { name: igpo }, ${settings} } }\n`);
      return plan?.arms[0]?.nodes.find(({ id }) => id === 'stage1')?.unkeyed['beliefs'];
    };
    expect(await beliefs('context_length: 1536')).toBe('engine');
    expect(await beliefs('rollout: { temperature: 0.7 }')).toBe('trainer');
    const engine = 'algorithm: { name: igpo, information_gain: { beliefs: engine } }';
    expect(found(await planned(`curriculum: { stage1: { ${engine}, rollout: { temperature: 0.7 } } }\n`))).toEqual([
      'RANGE 2:79',
    ]);
  });

  test('a scope holds a tool that the agent has, and a buffer is within the context', async () => {
    const algorithm = (text: string) =>
      planned(`agent: { tools: [search] }\ncurriculum: { stage1: { algorithm: { ${text} } } }\n`).then(found);
    expect(await algorithm('name: igpo, information_gain: { scope: [visit] }')).toEqual(['REF 3:77']);
    expect(await algorithm('name: dapo, overlong: { buffer: 1536 }')).toEqual(['RANGE 3:70']);
  });

  test('buckets have rising edges, and a weight each', async () => {
    const buckets = (text: string) =>
      planned(`curriculum: { stage1: { difficulty: { buckets: { ${text} } } } }\n`).then(found);
    expect(await buckets('edges: [512, 256]')).toEqual(['RANGE 2:63']);
    expect(await buckets('edges: [256, 512], weights: [1, 2]')).toEqual(['RANGE 2:78']);
  });
});

describe('benchmarks', () => {
  test('ask a split or a dataset of the profile, never both', async () => {
    const dataset = (text: string) => planned(`benchmarks: { held_out: { dataset: ${text} } }\n`);
    expect(found(await dataset('{ name: frames }'))).toEqual(['REQUIRED 2:36']);
    const { problems, unknown } = await planned('benchmarks: { other: { dataset: frames } }\n');
    expect(problems).toEqual([]);
    expect(unknown).toContainEqual(expect.stringContaining('datasets: profile local has no frames'));
  });

  test('of a list of turn limits, each is measured by a name of its own', async () => {
    const nodes = await nodesOf(specWith('benchmarks: { held_out: { max_turns: [2, 4] } }\n'));
    const ids = nodes.filter(({ kind }) => kind === 'benchmark').map(({ id }) => id);
    expect(ids).toContain('held_out_turns_2.base');
    expect(ids).toContain('held_out_turns_4.stage1');
  });
});

test('records a source must have reach the node that reads it, and no key', async () => {
  const source = (expect: string) =>
    nodesOf(specWith(`tasks: { sources: { own: { kind: jsonl, path: own.jsonl${expect} } } }\n`));
  const [with_, without] = [await source(', expect: { records: 7 }'), await source('')];
  expect(with_.find(({ id }) => id === 'tasks')?.unkeyed['expect']).toEqual({ own: 7 });
  expect(keysOf(with_)).toEqual(keysOf(without));
});
