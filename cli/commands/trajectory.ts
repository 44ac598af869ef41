import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import type { ImportReport } from '../../activities/import-tally.ts';
import type { TrajectoryImportOptions } from '../../activities/import-trajectories.ts';
import { ExitCode, ExpError } from '../../schemas/errors.ts';
import { TRAJECTORY_FORMATS } from '../../schemas/experiment.ts';
import type { ResampleParameters } from '../../schemas/node-parameters.ts';
import { modelPath } from '../../services/programs.ts';
import type { Command, CommandIo } from '../command.ts';
import { openProfile } from '../open-stack.ts';
import { detectTerminal, renderTable } from '../terminal.ts';

type Parameters = TrajectoryImportOptions['parameters'];

const OPTIONS = {
  format: { type: 'string' },
  clean: { type: 'boolean', default: false },
  'any-answer': { type: 'boolean', default: false },
  verdict: { type: 'string' },
  bands: { type: 'string' },
  'context-length': { type: 'string', default: '65536' },
  model: { type: 'string', default: 'smollm2-135m-instruct' },
  out: { type: 'string' },
  profile: { type: 'string' },
  json: { type: 'boolean', default: false },
} as const;

export const command: Command = {
  name: 'trajectory',
  summary: 'See what an import of trajectories would train on.',
  usage: 'trajectory import FILE|FOLDER|GLOB [options]',
  help: [
    `--format F           ${TRAJECTORY_FORMATS.join(', ')}; found out from the first record when absent`,
    '--clean              drop and prune as `clean: {}` of a spec does',
    '--any-answer         with --clean: keep wrong answers too (`require_correct: false`)',
    '--verdict COLUMN     with --clean: a column with a verdict on the answer',
    '--bands 50:1,100:2,:5  copies by turns: 1 up to 50, 2 up to 100, 5 beyond',
    '--context-length N   longer ones are dropped (65536)',
    '--model NAME         whose tokens are counted (smollm2-135m-instruct)',
    '--out FOLDER         also write trajectories.parquet and report.json',
    '--profile P, --json',
    '',
    'What a spec does with the same file is what is shown here; nothing of it is stored.',
  ].join('\n'),
  async run(argv, io) {
    const { values, positionals } = parseArgs({ args: [...argv], allowPositionals: true, options: OPTIONS });
    const [verb, path, ...more] = positionals;
    if (verb !== 'import' || path === undefined || more.length > 0)
      throw new ExpError('USAGE', 'exp trajectory', 'say: exp trajectory import FILE|FOLDER|GLOB');
    const [{ TrajectoryImport }, { loadTokenizer }, { writeTrajectories }] = await Promise.all([
      import('../../activities/import-trajectories.ts'),
      import('../../environments/deep-research/prompt.ts'),
      import('../../activities/write-trajectories.ts'),
    ]);
    const imported = new TrajectoryImport({
      path,
      source: path,
      seed: 0,
      parameters: parametersOf(values),
      tokenizer: await loadTokenizer(modelPath(openProfile(values.profile).profile, values.model)),
      moved: progress(io),
    });
    if (values.out === undefined) {
      for await (const _ of imported.trajectories('file')); // only counted
    } else {
      await mkdir(values.out, { recursive: true });
      await writeTrajectories(values.out, imported.trajectories('file'));
      await writeFile(join(values.out, 'report.json'), `${JSON.stringify(imported.report(), null, 2)}\n`);
    }
    if (values.json) io.out(JSON.stringify(imported.report()));
    else show(imported.tally.report(), imported.tally.inWords(), io);
    return ExitCode.done;
  },
};

interface Values {
  format?: string | undefined;
  clean: boolean;
  'any-answer': boolean;
  verdict?: string | undefined;
  bands?: string | undefined;
  'context-length': string;
}

function parametersOf(values: Values): Parameters {
  const format = TRAJECTORY_FORMATS.find((name) => name === values.format) ?? null;
  if (values.format !== undefined && format === null)
    throw new ExpError('USAGE', '--format', `must be one of: ${TRAJECTORY_FORMATS.join(', ')}`);
  if (!values.clean && (values['any-answer'] || values.verdict !== undefined))
    throw new ExpError('USAGE', '--clean', '--any-answer and --verdict say how to clean');
  const tools = ['search', 'visit'];
  return {
    format,
    count: null,
    resample: values.bands === undefined ? null : bandsOf(values.bands),
    clean: values.clean
      ? {
          tools,
          drop_repeated_calls: true,
          require_valid_format: true,
          require_correct: !values['any-answer'],
          verdict: values.verdict ?? null,
        }
      : null,
    context_length: whole('--context-length', values['context-length']),
    licence: 'unknown',
    provenance: 'unknown',
    agent: { tools },
  };
}

/** `50:1,100:2,:5` */
function bandsOf(text: string): ResampleParameters {
  const bands = text.split(',').map((band) => {
    const [, upTo, weight] = /^(\d*):(\d+)$/.exec(band) ?? [];
    if (weight === undefined) throw new ExpError('USAGE', '--bands', 'must look like 50:1,100:2,:5');
    return { up_to: upTo === '' ? null : whole('--bands', upTo as string), weight: Number(weight) };
  });
  const rises = bands.every(({ up_to }, at) =>
    at === bands.length - 1 ? up_to === null : up_to !== null && up_to > (bands[at - 1]?.up_to ?? 0),
  );
  if (!rises) throw new ExpError('USAGE', '--bands', 'bands rise, and only the last has no end: 50:1,100:2,:5');
  return { by: 'turns', bands };
}

function whole(option: string, text: string): number {
  const value = Number(text);
  if (Number.isSafeInteger(value) && value > 0) return value;
  throw new ExpError('USAGE', option, 'must be a whole number above 0');
}

/** On stderr, every two seconds at most; a Ctrl-C ends it between two records. */
function progress(io: CommandIo): TrajectoryImportOptions['moved'] {
  let saidAt = performance.now();
  return (tally) => {
    io.signal.throwIfAborted();
    if (performance.now() - saidAt < 2000) return;
    saidAt = performance.now();
    io.err(tally.inWords());
  };
}

function show(report: ImportReport, inWords: string, io: CommandIo): void {
  const { turns, tokens_histogram, removed_turns, rewritten_turns } = report;
  const range = ({ from, to }: { from: number; to: number | null }): string =>
    to === null ? `${from} and more` : to === from + 1 ? `${from}` : `${from} to ${to - 1}`;
  const right = { align: 'right' } as const;
  const byTurns = turns.before.flatMap((bucket, at) => {
    const counts = [bucket.count, turns.after[at]?.count ?? 0, turns.instances[at]?.count ?? 0];
    return counts.every((count) => count === 0) ? [] : [[range(bucket), ...counts.map(String)]];
  });
  const byTokens = tokens_histogram.filter(({ count }) => count > 0);
  const removed = [
    ...Object.entries(removed_turns.other_tools).map(([tool, times]) => `${times} of the tool ${tool}`),
    `${removed_turns.repeated_calls} of repeated calls`,
    ...(removed_turns.unreadable > 0 ? [`${removed_turns.unreadable} that could not be read`] : []),
  ];
  const terminal = detectTerminal(io);
  io.out(inWords);
  io.out(`turns taken out: ${removed.join(', ')}; actions put into our form: ${rewritten_turns}`);
  io.out('');
  const turnColumns = ['turns', 'read', 'kept', 'instances'].map((title, at) =>
    at === 0 ? { title } : { title, ...right },
  );
  for (const line of renderTable(terminal, turnColumns, byTurns)) io.out(line);
  io.out('');
  const tokenColumns = [{ title: 'tokens' }, { title: 'kept', ...right }];
  for (const line of renderTable(
    terminal,
    tokenColumns,
    byTokens.map((bucket) => [range(bucket), String(bucket.count)]),
  ))
    io.out(line);
}
