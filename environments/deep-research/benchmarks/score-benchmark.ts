/** From graded samples of questions to a benchmark's numbers. Pure. */
import type { Task } from '../../../schemas/task.ts';
import type { Span, Trajectory } from '../../../schemas/trajectory.ts';
import { isExactMatch } from '../answer.ts';
import { isRight } from '../judge.ts';
import { averageOf, bootstrapMean, type Estimate, meanOf, passAtK, type Tally } from './statistics.ts';

export type Sample = Pick<Trajectory, 'score' | 'judge' | 'spans' | 'termination' | 'answer' | 'sample'>;

/** Answers of one question by means that use no policy. */
export interface RuleAnswers {
  answer_from_first_result: string;
  most_frequent_answer: string;
}

/** Everything known of one question; one line of `results.jsonl`. */
export interface QuestionResult {
  task_id: string;
  question: string;
  answer: string;
  capability: string;
  template: string | null;
  /** Whether training showed questions of this wording; null where a task has no template. */
  seen_template: boolean | null;
  samples: number;
  correct: number;
  masked: number;
  unfinished: number;
  f1: number;
  answer_in_observation: number;
  answers: (string | null)[];
  /** Right (1) or wrong (0) of each baseline; null where it could not be asked. */
  baselines: Record<string, number | null>;
}

const isBroken = ({ termination }: Sample): boolean => termination === 'failed';

/** An answer that never came counts as wrong; a sample that something outside the policy broke counts as nothing. */
export function resultOf(
  task: Task,
  {
    samples,
    closedBook,
    rules,
    seenTemplates,
  }: {
    samples: readonly Sample[];
    closedBook: readonly Sample[];
    /** Empty where no baselines are asked. */
    rules: Partial<RuleAnswers>;
    seenTemplates: ReadonlySet<string>;
  },
): QuestionResult {
  const counted = samples.filter((sample) => !isBroken(sample)).toSorted((a, b) => a.sample - b.sample);
  const asked = closedBook.filter((sample) => !isBroken(sample));
  return {
    task_id: task.task_id,
    question: task.question,
    answer: task.answer,
    capability: task.capability,
    template: task.template ?? null,
    seen_template: task.template === undefined ? null : seenTemplates.has(task.template),
    samples: counted.length,
    correct: counted.filter(isRight).length,
    masked: samples.length - counted.length,
    unfinished: counted.filter(({ answer }) => answer === null).length,
    f1: meanOf(counted.map(({ score }) => score.f1)),
    answer_in_observation: meanOf(counted.map(({ score }) => (score.answer_in_observation ? 1 : 0))),
    answers: counted.map(({ answer }) => answer),
    baselines: {
      closed_book: asked.length === 0 ? null : meanOf(asked.map((sample) => (isRight(sample) ? 1 : 0))),
      ...Object.fromEntries(Object.entries(rules).map(([name, answer]) => [name, isExactMatch(answer, task) ? 1 : 0])),
    },
  };
}

export interface BenchmarkScores {
  results: Record<string, Estimate>;
  baselines: Record<string, Estimate>;
  groups: Record<string, Estimate & { questions: number }>;
  answer_in_observation: number;
  unfinished: number;
  masked: number;
}

/**
 * `avg@k` and `pass@k` over questions. Every estimate of one benchmark resamples the same questions in the same
 * way, so results of different checkpoints can be compared.
 */
export function scoreQuestions(
  questions: readonly QuestionResult[],
  options: { benchmark: string; samples: number; metrics: readonly string[] },
): BenchmarkScores {
  const { benchmark } = options;
  const asked = questions.filter(({ samples }) => samples > 0);
  const metrics = options.metrics.map((metric) => metricOf(metric, options.samples));
  const main = (metrics.find(({ name }) => name.startsWith('avg_')) ?? metrics[0] ?? metricOf('avg@k', options.samples))
    .of;
  const estimate = (members: readonly QuestionResult[], of: (tally: Tally) => number | null): Estimate =>
    bootstrapMean(
      members.map(of).filter((value) => value !== null),
      benchmark,
    );
  return {
    results: Object.fromEntries(metrics.map(({ name, of }) => [name, estimate(asked, of)])),
    baselines: Object.fromEntries(
      baselineNames(questions).map((name) => {
        const values = questions
          .map(({ baselines }) => baselines[name])
          .filter((value) => value !== null && value !== undefined);
        return [name, bootstrapMean(values, benchmark)];
      }),
    ),
    groups: Object.fromEntries(
      [...groupsOf(asked)].map(([name, members]) => [name, { questions: members.length, ...estimate(members, main) }]),
    ),
    answer_in_observation: meanOf(asked.map((question) => question.answer_in_observation)),
    unfinished: questions.reduce((sum, { unfinished }) => sum + unfinished, 0),
    masked: questions.reduce((sum, { masked }) => sum + masked, 0),
  };
}

/** `avg@k`, `pass@k`, `pass@4`; k stands for the number of samples. A question with fewer samples than k has no pass@k. */
function metricOf(metric: string, samples: number): { name: string; of: (tally: Tally) => number | null } {
  const match = /^(avg|pass)@(k|\d+)$/.exec(metric);
  if (!match) throw new RangeError(`no metric ${metric}`);
  const k = match[2] === 'k' ? samples : Number(match[2]);
  if (match[1] === 'avg') return { name: `avg_at_${k}`, of: averageOf };
  return { name: `pass_at_${k}`, of: (tally) => (tally.samples < k ? null : passAtK(tally, k)) };
}

function baselineNames(questions: readonly QuestionResult[]): string[] {
  return Object.keys(questions[0]?.baselines ?? {}).filter((name) =>
    questions.some(({ baselines }) => baselines[name] !== null),
  );
}

function groupsOf(questions: readonly QuestionResult[]): Map<string, QuestionResult[]> {
  const groups = new Map<string, QuestionResult[]>();
  const add = (name: string, question: QuestionResult) => groups.set(name, [...(groups.get(name) ?? []), question]);
  for (const question of questions) {
    add(`capability/${question.capability}`, question);
    if (question.seen_template !== null) add(question.seen_template ? 'template/seen' : 'template/unseen', question);
  }
  return new Map([...groups].sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** How the policy used its tools: means over samples. */
export class ToolUse {
  #samples = 0;
  #actions = 0;
  readonly #sums = new Map<string, number>();

  add(sample: Sample): void {
    if (isBroken(sample)) return;
    const actions = sample.spans.filter(({ kind }) => kind === 'action');
    this.#samples += 1;
    this.#actions += actions.length;
    this.#count(`termination/${sample.termination}`, 1);
    this.#count('turns', actions.length);
    this.#count(
      'tokens',
      sample.spans.reduce((sum, { start, end }) => sum + end - start, 0),
    );
    this.#count(
      'action_tokens',
      actions.reduce((sum, { start, end }) => sum + end - start, 0),
    );
    for (const action of actions) this.#countAction(action);
    for (const { kind, status, denied } of sample.spans) {
      if (kind === 'observation' && status === 'tool_error') this.#count('tool_errors', 1);
      if (status.startsWith('fault_')) this.#count(`faults/${status.slice('fault_'.length)}`, 1);
      if (denied > 0) this.#count('denied_pages', denied);
    }
  }

  #countAction({ tool, status }: Span): void {
    if (status === 'malformed') this.#count('malformed', 1);
    else if (tool === 'summary') this.#count('summaries', 1);
    else if (tool !== null && tool !== 'answer') this.#count(`calls/${tool}`, 1);
  }

  #count(name: string, amount: number): void {
    this.#sums.set(name, (this.#sums.get(name) ?? 0) + amount);
  }

  /** `malformed` is a share of actions; everything else is by sample. */
  means(): Record<string, number> {
    const { malformed = 0, ...others } = Object.fromEntries(this.#sums);
    const means = Object.entries(others).map(([name, sum]) => [name, sum / this.#samples] as const);
    return Object.fromEntries(
      [...means, ['malformed', this.#actions === 0 ? 0 : malformed / this.#actions] as const].sort(([a], [b]) =>
        a < b ? -1 : 1,
      ),
    );
  }
}
