import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import type { EngineLease } from '../../activities/adapters/engine.ts';
import type { Branches, TurnRecord } from '../../environments/deep-research/agent-loop.ts';
import type { Tokenizer, ToolName } from '../../environments/deep-research/prompt.ts';
import type { World } from '../../environments/environment.ts';
import type { Checkpoint } from '../../schemas/checkpoint.ts';
import { ExitCode, ExpError } from '../../schemas/errors.ts';
import type { Profile } from '../../schemas/profile.ts';
import { home, python, repoRoot } from '../../services/home.ts';
import { actingNode, agentOf, findCheckpoint, findRunArm, type RunReference } from '../ask-reference.ts';
import type { Command, CommandIo } from '../command.ts';
import { findWorld, openNamedWorld } from '../named-worlds.ts';
import { type Stack, withStack } from '../open-stack.ts';
import { oneLine } from '../terminal.ts';
import { LiveTrace } from '../trajectory-trace.ts';

export const command: Command = {
  name: 'ask',
  summary: 'Ask a checkpoint one question, with a live trace.',
  usage: 'ask --checkpoint REF [options] "question"',
  help: [
    '--checkpoint REF   base, or a stage, node id or key of the run',
    '--run RUN          the run whose checkpoints, world and agent are meant; the latest one when absent',
    '--arm NAME         one of its arms; the first when absent',
    "--world NAME       a world made by `exp world build`, in the place of the run's",
    "--max-turns N --temperature T --seed N   in the place of the run's",
    '--json             the trajectory as one JSON document',
    '--profile P',
    '',
    'exp ask --checkpoint stage1 "What licence has the package zod?"',
  ].join('\n'),
  async run(argv, io) {
    const { values, positionals } = parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: {
        checkpoint: { type: 'string' },
        run: { type: 'string' },
        arm: { type: 'string' },
        world: { type: 'string' },
        'max-turns': { type: 'string' },
        temperature: { type: 'string', default: '0.7' },
        seed: { type: 'string', default: '0' },
        profile: { type: 'string' },
        json: { type: 'boolean', default: false },
      },
    });
    const [question, ...more] = positionals;
    if (values.checkpoint === undefined)
      throw new ExpError('USAGE', 'exp ask', 'needs --checkpoint REF: base, or a stage of a run');
    if (question === undefined || question.trim() === '' || more.length > 0)
      throw new ExpError('USAGE', 'exp ask', 'wants one question, in quotes');
    const options = {
      maxTurns: values['max-turns'] === undefined ? undefined : numberOf('--max-turns', values['max-turns'], 1, 1000),
      temperature: numberOf('--temperature', values.temperature, 0, 10),
      seed: numberOf('--seed', values.seed, 0, Number.MAX_SAFE_INTEGER),
    };
    return withStack(values.profile, async (stack, profile) => {
      const run = await findRunArm(stack, values.run, values.arm);
      const checkpoint = await findCheckpoint(stack, profile, run, values.checkpoint as string);
      const asked: Asked = {
        ...options,
        question,
        checkpoint,
        label: values.checkpoint as string,
        run,
        world: values.world,
      };
      const branches = await ask(stack, profile, asked, values.json ? null : new LiveTrace(io), io);
      if (values.json) io.out(JSON.stringify(toJson(branches)));
      return ExitCode.done;
    });
  },
};

interface Asked {
  question: string;
  checkpoint: Checkpoint;
  label: string;
  run: RunReference | null;
  world: string | undefined;
  maxTurns: number | undefined;
  temperature: number;
  seed: number;
}

/** Lease an engine, run one trajectory, give the engine back, whatever happens. */
async function ask(
  stack: Stack,
  profile: Profile,
  asked: Asked,
  trace: LiveTrace | null,
  io: CommandIo,
): Promise<Branches> {
  const [{ EnginePool }, { MergedWeights }, { loadTokenizer }, { modelPath }, { default: pg }] = await Promise.all([
    import('../../activities/adapters/engine.ts'),
    import('../../activities/adapters/merged-weights.ts'),
    import('../../environments/deep-research/prompt.ts'),
    import('../../services/programs.ts'),
    import('pg'),
  ]);
  // The stack's own connections give up after seconds; loading weights takes longer.
  const pool = new pg.Pool({ connectionString: stack.connections.postgres.url, max: 4, application_name: 'exp ask' });
  const baseDir = (model: string) => modelPath(profile, model);
  const merged = new MergedWeights({
    store: stack.store,
    cache: join(home(), 'cache', 'merged'),
    python: python(),
    packageDir: join(repoRoot(), 'trainer'),
    baseDir,
    dtype: 'bfloat16',
  });
  const engines = new EnginePool({ pool, engines: stack.connections.engines, merged });
  const holder = `ask/${randomUUID()}`;
  const { world, close } = await openWorldOf(stack, profile, asked);
  let renewing: NodeJS.Timeout | undefined;
  try {
    trace?.wait(`waiting for the engine at checkpoint ${asked.label}`);
    const lease = await engines.acquire(asked.checkpoint, holder, {
      signal: io.signal,
      onWait: (other) => trace?.wait(`waiting for the engine; ${oneLine(other)} has it`),
    });
    renewing = setInterval(() => void lease.renew().catch(() => {}), 20_000);
    trace?.begin({
      question: asked.question,
      checkpoint: `${asked.label} (${asked.checkpoint.digest.slice(0, 12)})`,
      engine: lease.engine,
      world: asked.world ?? asked.run?.id ?? '',
    });
    return await sample(asked, {
      world,
      lease,
      tokenizer: await loadTokenizer(baseDir(asked.checkpoint.model)),
      trace,
      signal: io.signal,
    });
  } finally {
    trace?.wait('');
    clearInterval(renewing);
    await engines.release(holder).catch(() => {}); // it runs out by itself
    await Promise.allSettled([close(), engines.close(), pool.end()]);
  }
}

interface Scene {
  world: World;
  lease: EngineLease;
  tokenizer: Tokenizer;
  trace: LiveTrace | null;
  signal: AbortSignal;
}

async function sample(asked: Asked, { world, lease, tokenizer, trace, signal }: Scene): Promise<Branches> {
  const { runTrajectory } = await import('../../environments/deep-research/agent-loop.ts');
  const { agent, contextLength } = agentOf(asked.run);
  const tools = agent.tools as ToolName[];
  const branches = await runTrajectory({
    trajectory_id: 'ask',
    group_id: 'ask',
    sample_index: 0,
    checkpoint: asked.checkpoint.digest,
    task: {
      task_id: 'ask',
      question: asked.question,
      answer: '',
      aliases: [],
      capability: 'unknown',
      split: '',
      source: 'ask',
      evidence: [],
      deny_urls: [],
    },
    world,
    sample: lease.sampler(tokenizer.stopIds, { signal, onTokens: (count) => trace?.tokens(count) }),
    tokenizer,
    tools,
    limits: {
      maxTurns: asked.maxTurns ?? agent.max_turns,
      maxTurnTokens: agent.max_turn_tokens,
      observationTokens: agent.observation_tokens,
      searchResults: agent.search_results,
      contextLength,
    },
    contextManagement: agent.context_management,
    faults: agent.faults,
    sampling: { temperature: asked.temperature, top_p: 1, seed: asked.seed },
    reward: { outcome: 'exact_match', format_penalty: 0 },
    onTurn: async (record: TurnRecord) => trace?.turn(record, tokenizer, tools),
    signal,
  });
  trace?.end(branches);
  return branches;
}

/** The named world, or the run's. */
async function openWorldOf(
  stack: Stack,
  profile: Profile,
  { world: name, run }: Asked,
): Promise<{ world: World; close(): Promise<void> }> {
  if (name !== undefined) return openNamedWorld(stack.pool, stack.connections, await findWorld(stack.pool, name));
  const node = run === null ? null : actingNode(run);
  if (node === null)
    throw new ExpError(
      'USAGE',
      'exp ask',
      run === null
        ? 'needs --world NAME: there is no run whose world it could use'
        : `needs --world NAME: run ${run.id} has no world`,
    );
  const [{ Worlds, Embedders }, { PlanReader }, { connectMilvus }, { modelPath }] = await Promise.all([
    import('../../activities/worlds.ts'),
    import('../../activities/plan-reader.ts'),
    import('../../environments/world/milvus.ts'),
    import('../../services/programs.ts'),
  ]);
  const milvus = connectMilvus(stack.connections.milvus);
  const embedders = new Embedders((model) => modelPath(profile, model, 'embedders'));
  const worlds = new Worlds({ plans: new PlanReader(stack.store), pool: stack.pool, milvus, embedders });
  const close = async (): Promise<void> => {
    await Promise.allSettled([worlds.close(), embedders.close(), milvus.closeConnection()]);
  };
  try {
    return { world: await worlds.open(node), close };
  } catch (error) {
    await close();
    throw error;
  }
}

/** Spans count within their branch; the question is said once. */
function toJson(branches: Branches) {
  const [{ answer, termination, checkpoint }] = branches;
  return {
    answer,
    termination,
    checkpoint,
    tokens: branches.reduce((sum, { token_ids }) => sum + token_ids.length, 0),
    spans: branches.flatMap(({ spans, branch }) => spans.map((span) => ({ branch, ...span }))),
    messages: branches.flatMap(({ messages, branch }) => messages.slice(branch === 0 ? 0 : 1)),
  };
}

function numberOf(option: string, text: string, least: number, most: number): number {
  const value = Number(text);
  if (text.trim() === '' || !(value >= least && value <= most))
    throw new ExpError('USAGE', option, `must be a number from ${least} to ${most}`);
  return value;
}
