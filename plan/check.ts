/** What a spec must mean, checked before anything runs. Shape and types are checked before. */
import type { Benchmark, Experiment, Stage } from '../schemas/experiment.ts';
import {
  checkAfter,
  checkBenchmarkNames,
  checkCompare,
  checkDatasets,
  checkEvaluation,
  checkReferences,
} from './check-benchmarks.ts';
import { checkGates } from './check-gates.ts';
import { checkEnding, checkHealth, checkStaleness } from './check-health.ts';
import { isJudged } from './judge.ts';
import { keyPlaceAt, type Located, type Path, placeAt } from './located.ts';
import { didYouMean, type Problem, problem, quoted } from './problem.ts';
import {
  agentOf,
  benchmarkAgent,
  benchmarkContext,
  datasetOf,
  type Protocol,
  parentOf,
  protocolsOf,
  splitOf,
  stageNamed,
  trains,
} from './stages.ts';

const TOOLS = ['search', 'visit'];
/** System prompt with two tools and a long question: 170 tokens of SmolLM2's vocabulary, rounded up. */
const PROMPT_TOKENS = 256;
/** The message that asks for the answer, with its frame. */
const FORCED_ANSWER_TOKENS = 32;
const SUM_TOLERANCE = 1e-6;

export interface CheckFindings {
  problems: Problem[];
  warnings: Problem[];
}

/** What the names in the spec turned out to be, as far as they are known. */
export interface KnownLimits {
  /** Longest sequence of the policy. */
  policyContext: number | null;
  /** Longest text of the embedder. */
  embedderTokens: number | null;
}

export type Report = (code: string, path: Path, message: string, hint?: string) => void;
export interface Check {
  experiment: Experiment;
  limits: KnownLimits;
  report: Report;
  /** Points at the key of a path, not at its value. */
  reportKey: Report;
  warn: Report;
}

/**
 * All problems at once. Where the shape is wrong already (`isValid` false), checks that stumble over it are skipped
 * and the rest still say what they find.
 */
export function checkSpec(experiment: Experiment, root: Located, limits: KnownLimits, isValid: boolean): CheckFindings {
  const found: CheckFindings = { problems: [], warnings: [] };
  const into =
    (list: Problem[], placeOf: typeof placeAt): Report =>
    (code, path, message, hint) =>
      void list.push(problem(code, placeOf(root, path), message, hint));
  const check: Check = {
    experiment,
    limits,
    report: into(found.problems, placeAt),
    reportKey: into(found.problems, keyPlaceAt),
    warn: into(found.warnings, placeAt),
  };
  for (const run of [
    checkParents,
    checkCycles,
    checkSplits,
    checkTools,
    checkFaults,
    checkShares,
    checkBenchmarkNames,
    checkAfter,
    checkDatasets,
    checkEvaluation,
    checkReferences,
    checkCompare,
    checkGroups,
    checkBuckets,
    checkAlgorithm,
    checkContext,
    checkResources,
    checkIndex,
    checkDemonstrations,
    checkCapabilities,
    checkJudge,
    checkReuse,
    checkGates,
    checkEnding,
    checkHealth,
    checkStaleness,
  ]) {
    try {
      run(check);
    } catch (error) {
      if (isValid || !(error instanceof TypeError)) throw error;
    }
  }
  return found;
}

const stagesOf = ({ curriculum }: Experiment): [string, Stage][] => Object.entries(curriculum);
const benchmarksOf = ({ benchmarks }: Experiment): [string, Benchmark][] => Object.entries(benchmarks);

function checkParents({ experiment, report }: Check): void {
  for (const [name, stage] of stagesOf(experiment)) {
    const parent = typeof stage.from === 'string' ? parentOf(stage) : null;
    if (parent === null) continue;
    const path = ['curriculum', name, 'from'];
    const other = experiment.curriculum[parent];
    if (other === undefined) {
      report(
        'REF',
        path,
        `there is no stage ${quoted(parent)}`,
        didYouMean(parent, Object.keys(experiment.curriculum)),
      );
    } else if (other.kind === 'profile') {
      report('REF', path, `the stage ${quoted(parent)} measures and makes no weights`);
    }
  }
}

function checkCycles({ experiment, report }: Check): void {
  const done = new Set<string>();
  for (const [start] of stagesOf(experiment)) {
    const way: string[] = [];
    let name: string | null = start;
    while (name !== null && !done.has(name) && !way.includes(name)) {
      way.push(name);
      const stage: Stage | undefined = experiment.curriculum[name];
      name = stage === undefined ? null : parentOf(stage);
    }
    if (name !== null && way.includes(name)) {
      const circle = [...way.slice(way.indexOf(name)), name];
      report('CYCLE', ['curriculum', name, 'from'], `stages start from each other in a circle: ${circle.join(' → ')}`);
    }
    for (const seen of way) done.add(seen);
  }
}

function checkSplits({ experiment, report, warn }: Check): void {
  const splits = Object.keys(experiment.tasks.splits);
  const known = (split: string, path: Path, fallback: Path): void => {
    if (!splits.includes(split))
      report(
        'REF',
        path.length > 0 ? path : fallback,
        `there is no split ${quoted(split)}`,
        didYouMean(split, splits) ?? `there are ${splits.join(', ')}`,
      );
  };
  const trained = new Set<string>();
  for (const [name, stage] of stagesOf(experiment)) {
    const isImport = stage.kind === 'sft' && stage.trajectories.source !== 'demonstrations';
    if (isImport) continue;
    known(splitOf(stage), stage.tasks?.split === undefined ? [] : ['curriculum', name, 'tasks', 'split'], [
      'curriculum',
      name,
    ]);
    const source = stage.tasks?.source;
    const sources = Object.keys(experiment.tasks.sources);
    if (source !== undefined && !sources.includes(source))
      report(
        'REF',
        ['curriculum', name, 'tasks', 'source'],
        `there is no source ${quoted(source)}`,
        didYouMean(source, sources) ?? `there are ${sources.join(', ')}`,
      );
    if (trains(stage)) trained.add(splitOf(stage));
  }
  for (const [name, benchmark] of benchmarksOf(experiment)) {
    const { split } = datasetOf(benchmark);
    if (split === undefined) continue;
    const path = ['benchmarks', name, 'dataset', 'split'];
    known(split, path, path);
    if (trained.has(split))
      warn('TRAINED_ON', path, `${quoted(name)} measures the split ${quoted(split)}, which is trained on`);
  }
}

type ToolList = [where: Path, tools: readonly string[] | undefined];

function checkTools({ experiment, report }: Check): void {
  const places: ToolList[] = [
    [['agent', 'tools'], experiment.agent.tools],
    ...stagesOf(experiment).flatMap(([name, stage]): ToolList[] => [
      [['curriculum', name, 'agent', 'tools'], stage.agent?.tools],
      ...(stage.kind === 'sft'
        ? [[['curriculum', name, 'trajectories', 'clean', 'tools'], stage.trajectories.clean?.tools] satisfies ToolList]
        : []),
      ...(stage.kind === 'rl'
        ? [
            [
              ['curriculum', name, 'algorithm', 'information_gain', 'scope'],
              stage.algorithm.information_gain?.scope,
            ] satisfies ToolList,
          ]
        : []),
    ]),
  ];
  for (const [path, tools] of places) {
    for (const [index, tool] of (tools ?? []).entries()) {
      if (!TOOLS.includes(tool))
        report(
          'REF',
          [...path, index],
          `there is no tool ${quoted(tool)}`,
          didYouMean(tool, TOOLS) ?? `there are ${TOOLS.join(', ')}`,
        );
    }
  }
}

/** A call goes wrong in one way, so the ways of a tool share its calls. */
function checkFaults({ experiment, report }: Check): void {
  const places: [where: Path, faults: Experiment['agent']['faults']][] = [
    [['agent', 'faults'], experiment.agent.faults],
    ...stagesOf(experiment).map(([name, stage]): [Path, Experiment['agent']['faults']] => [
      ['curriculum', name, 'agent', 'faults'],
      stage.agent?.faults,
    ]),
  ];
  for (const [path, faults] of places) {
    for (const [tool, shares] of Object.entries(faults ?? {})) {
      const sum = Object.values(shares).reduce((total, share) => total + share, 0);
      if (sum > 1 + SUM_TOLERANCE)
        report('RANGE', [...path, tool], `the faults of ${tool} sum to ${Number(sum.toFixed(6))}, more than all calls`);
    }
  }
}

function checkShares({ experiment: { tasks }, report }: Check): void {
  const sums: [string, Record<string, number> | undefined][] = [
    ['mix', tasks.mix as Record<string, number> | undefined],
    ['splits', tasks.splits],
  ];
  for (const [field, shares] of sums) {
    if (shares === undefined) continue;
    const sum = Object.values(shares).reduce((total, share) => total + share, 0);
    if (Math.abs(sum - 1) > SUM_TOLERANCE)
      report('RANGE', ['tasks', field], `the shares of \`tasks.${field}\` sum to ${Number(sum.toFixed(6))}, not 1`);
  }
}

function checkGroups({ experiment, report }: Check): void {
  for (const [name, stage] of stagesOf(experiment)) {
    const at = (...rest: Path): Path => ['curriculum', name, ...rest];
    if (stage.kind === 'rl') {
      const { rollout, optimizer } = stage;
      if (optimizer.minibatch !== undefined && rollout.prompts_per_step % optimizer.minibatch !== 0) {
        report(
          'RANGE',
          at('optimizer', 'minibatch'),
          `${rollout.prompts_per_step} prompts (${rollout.prompts_per_step * rollout.group_size} trajectories) do not divide into minibatches of ${optimizer.minibatch} prompts`,
        );
      }
    }
    if (stage.kind !== 'sft' && stage.difficulty) {
      const { rollouts, keep } = stage.difficulty;
      if (keep.min_passes > keep.max_passes)
        report(
          'RANGE',
          at('difficulty', 'keep', 'min_passes'),
          `keeps nothing: ${keep.min_passes} is more than max_passes ${keep.max_passes}`,
        );
      if (keep.max_passes > rollouts)
        report(
          'RANGE',
          at('difficulty', 'keep', 'max_passes'),
          `${keep.max_passes} passes of ${rollouts} rollouts cannot be`,
        );
    }
    if (stage.kind === 'sft') checkBands(stage, at, report);
  }
}

function checkBuckets({ experiment, report }: Check): void {
  for (const [name, stage] of stagesOf(experiment)) {
    const buckets = stage.kind === 'sft' ? undefined : stage.difficulty?.buckets;
    if (buckets === undefined) continue;
    const { edges, weights } = buckets;
    const at = (...rest: Path): Path => ['curriculum', name, 'difficulty', 'buckets', ...rest];
    for (const [index, edge] of edges.entries()) {
      const before = edges[index - 1] ?? 0;
      if (edge <= before) report('RANGE', at('edges', index), `edges rise; ${edge} comes after ${before}`);
    }
    if (weights !== undefined && weights.length !== edges.length + 1)
      report('RANGE', at('weights'), `${edges.length} edges make ${edges.length + 1} buckets, not ${weights.length}`);
  }
}

/** Settings of another algorithm than the one that is named would be read over. */
function checkAlgorithm({ experiment, report, warn }: Check): void {
  for (const [name, stage] of stagesOf(experiment)) {
    if (stage.kind !== 'rl') continue;
    const { algorithm } = stage;
    const at = (...rest: Path): Path => ['curriculum', name, 'algorithm', ...rest];
    for (const field of ['preset', 'gamma', 'information_gain'] as const) {
      if (algorithm[field] !== undefined && algorithm.name !== 'igpo')
        warn('NO_EFFECT', at(field), `\`${field}\` is about igpo, and the algorithm is ${algorithm.name}`);
    }
    const { overlong, information_gain: gain } = algorithm;
    if (overlong && overlong.buffer >= stage.context_length)
      report('RANGE', at('overlong', 'buffer'), `it is within the context of ${stage.context_length} tokens`);
    const { tools } = agentOf(experiment, stage);
    if (algorithm.name === 'igpo' && gain?.scope && !gain.scope.some((tool) => tools.includes(tool)))
      report('REF', at('information_gain', 'scope'), `the agent has none of these tools, only ${tools.join(', ')}`);
    if (algorithm.name === 'igpo' && gain?.beliefs === 'engine' && stage.rollout.temperature !== 1)
      report(
        'RANGE',
        at('information_gain', 'beliefs'),
        `engines score prompts at temperature 1, and this stage samples at ${stage.rollout.temperature}: let the trainer`,
      );
    const reference = algorithm.kl ? algorithm.kl.reference : undefined;
    const other = reference === undefined ? null : stageNamed(reference);
    if (other !== null && !trains(experiment.curriculum[other]))
      report(
        'REF',
        at('kl', 'reference'),
        `there are no weights of a stage ${quoted(other)}`,
        didYouMean(other, Object.keys(experiment.curriculum)),
      );
  }
}

function checkBands(stage: Extract<Stage, { kind: 'sft' }>, at: (...rest: Path) => Path, report: Report): void {
  const bands = stage.trajectories.resample?.bands ?? [];
  for (const [index, { up_to }] of bands.entries()) {
    const last = index === bands.length - 1;
    const below = bands[index - 1]?.up_to ?? 0;
    const path = at('trajectories', 'resample', 'bands', index);
    if (last && up_to !== undefined) report('RANGE', [...path, 'up_to'], 'the last band has no end: leave `up_to` out');
    if (!last && up_to === undefined) report('REQUIRED', path, 'only the last band may be without `up_to`');
    if (!last && up_to !== undefined && up_to <= below)
      report('RANGE', [...path, 'up_to'], `bands rise; ${up_to} comes after ${below}`);
  }
}

/** Room for the prompt, one whole turn, and the forced answer that is reserved from the start. */
function checkContext({ experiment, limits, report, warn }: Check): void {
  const check = (context: number, agent: Experiment['agent'], path: Path, isOwn = true): void => {
    const field = path.join('.');
    const needed = PROMPT_TOKENS + FORCED_ANSWER_TOKENS + 2 * agent.max_turn_tokens;
    if (context < needed) {
      report(
        'CONTEXT',
        path,
        `${field}: ${context} tokens do not hold a prompt (about ${PROMPT_TOKENS}), one turn and the forced answer (${agent.max_turn_tokens} each): at least ${needed}`,
      );
    }
    if (isOwn && limits.policyContext !== null && context > limits.policyContext) {
      report(
        'CONTEXT',
        path,
        `${field}: ${context} tokens are more than ${quoted(experiment.policy.base)} takes (${limits.policyContext})`,
      );
    }
  };
  for (const [name, stage] of stagesOf(experiment)) {
    const path = ['curriculum', name, 'context_length'];
    check(stage.context_length, agentOf(experiment, stage), path);
    const parent = parentOf(stage);
    const before = parent === null ? undefined : experiment.curriculum[parent];
    if (before && before.kind === 'rl' && before.context_length > stage.context_length) {
      warn(
        'CONTEXT',
        path,
        `the context shrinks from ${before.context_length} in ${quoted(parent)} to ${stage.context_length}`,
      );
    }
  }
  for (const [name, benchmark] of benchmarksOf(experiment)) {
    const [, protocol] = protocolsOf(name, benchmark)[0] as [string, Protocol];
    const context = benchmarkContext(experiment, benchmark);
    if (context === null)
      report(
        'REQUIRED',
        ['benchmarks', name],
        `\`benchmarks.${name}.context_length\` is missing, and there is no stage to take it from`,
      );
    else
      check(
        context,
        benchmarkAgent(experiment, protocol),
        ['benchmarks', name, ...(benchmark.context_length === undefined ? [] : ['context_length'])],
        benchmark.context_length !== undefined,
      );
  }
}

/** Every machine starts equally many processes, one a GPU, and every group that shares a sequence is whole. */
function checkResources({ experiment, report }: Check): void {
  for (const [name, { resources }] of stagesOf(experiment)) {
    if (!resources) continue;
    const { gpu, nodes, context_parallel } = resources;
    const refuse = (key: string, message: string): void =>
      report('RANGE', ['curriculum', name, 'resources', key], `curriculum.${name}.resources.${key}: ${message}`);
    if (gpu % nodes !== 0 || (gpu === 0 && nodes > 1))
      refuse('nodes', `${gpu} GPUs cannot be spread evenly over ${nodes} machines`);
    if (Math.max(1, gpu) % context_parallel !== 0)
      refuse('context_parallel', `${gpu} GPUs cannot be cut into groups of ${context_parallel} that share a sequence`);
  }
}

function checkIndex({ experiment: { index }, limits, report }: Check): void {
  const { tokens, overlap } = index.chunk;
  if (overlap >= tokens)
    report(
      'RANGE',
      ['index', 'chunk', 'overlap'],
      `an overlap of ${overlap} leaves nothing new in a chunk of ${tokens} tokens`,
    );
  if (limits.embedderTokens !== null && tokens > limits.embedderTokens) {
    report(
      'RANGE',
      ['index', 'chunk', 'tokens'],
      `${quoted(index.embedder.model)} reads at most ${limits.embedderTokens} tokens`,
    );
  }
}

function checkDemonstrations({ experiment, report }: Check): void {
  const hasGenerated = Object.values(experiment.tasks.sources).some(({ kind }) => kind === 'generated');
  for (const [name, stage] of stagesOf(experiment)) {
    if (stage.kind !== 'sft' || stage.trajectories.source !== 'demonstrations') continue;
    const path = ['curriculum', name, 'trajectories'];
    if (!hasGenerated)
      report(
        'REF',
        [...path, 'source'],
        'demonstrations are made on generated tasks, and there is no source of kind generated',
      );
    if (stage.trajectories.count === undefined)
      report('REQUIRED', path, `\`${path.join('.')}.count\` is missing: how many demonstrations`);
  }
}

/** Only weights are taken from a run. */
function checkReuse({ experiment: { reuse = {}, curriculum }, reportKey }: Check): void {
  for (const path of Object.keys(reuse)) {
    const stage = path.slice('stages.'.length);
    if (!trains(curriculum[stage]))
      reportKey(
        'REF',
        ['reuse', path],
        `there are no weights of a stage ${quoted(stage)}`,
        didYouMean(stage, Object.keys(curriculum)),
      );
  }
}

function checkCapabilities({ experiment: { tasks, judge }, report }: Check): void {
  for (const [name, source] of Object.entries(tasks.sources)) {
    if (source.kind === 'generated' || source.capability === undefined || !isJudged(source)) continue;
    const path = ['tasks', 'sources', name, 'capability'];
    if ('column' in source.capability) report('VALUE', path, 'is found by the judge or by a column, not by both');
    else if (judge === undefined) report('REF', [...path, 'judge'], 'there is no section `judge`');
  }
}

function checkJudge({ experiment, report }: Check): void {
  const { judge } = experiment;
  const uses: [Path, string | undefined][] = [
    [['reward', 'outcome'], experiment.reward.outcome],
    ...stagesOf(experiment).map(([name, stage]): [Path, string | undefined] => [
      ['curriculum', name, 'reward', 'outcome'],
      stage.reward?.outcome,
    ]),
    ...benchmarksOf(experiment).map(([name, { reward }]): [Path, string | undefined] => [
      ['benchmarks', name, 'reward', 'outcome'],
      reward?.outcome,
    ]),
  ];
  for (const [path, outcome] of uses) {
    if (outcome === 'judge' && judge === undefined) report('REF', path, 'there is no section `judge`');
  }
  if (typeof judge?.url === 'string') {
    const reason = badUrl(judge.url);
    if (reason !== null) report('URL', ['judge', 'url'], `the address ${reason}`);
  }
}

/** Addresses that a spec may not make a worker call. The address itself is not repeated: it may hold a password. */
function badUrl(text: string): string | null {
  if (!URL.canParse(text)) return 'is not a URL';
  const { protocol, username, password, hostname } = new URL(text);
  if (protocol !== 'http:' && protocol !== 'https:') return 'is neither http nor https';
  if (username !== '' || password !== '') return 'holds credentials; write { env: NAME }';
  if (/^(169\.254\.|\[fe[89ab]|\[::ffff:a9fe|metadata\.google\.internal$|0\.0\.0\.0$)/i.test(hostname))
    return 'is a link-local or metadata address';
  return null;
}
