/**
 * Makes tasks from the facts of a corpus: drawn from a bounded sample of its pages, checked against the text of
 * every page in one pass, chosen so that the mix is as asked and no answer is common.
 */
import { createHash } from 'node:crypto';
import { ExpError } from '../../../schemas/errors.ts';
import { CAPABILITIES, type Capability, type Task } from '../../../schemas/task.ts';
import { checkEvidence, StatedValues } from './check-evidence.ts';
import { answerKey, type Candidate, drawCandidates, PackagePool } from './draw-candidates.ts';
import { type FactPage, FactPool, packageOf, siblingUrl, splitOfPackage } from './fact-pool.ts';
import { apportionTable } from './quotas.ts';
import { TEMPLATES, type Template } from './templates.ts';

/** A corpus as task generation reads it; each stream is in a fixed order. */
export interface FactCorpus {
  factPages(): AsyncIterable<FactPage>;
  factPagesAt(urls: readonly string[]): Promise<FactPage[]>;
  texts(): AsyncIterable<{ url: string; text: string }>;
}

export interface GenerateOptions {
  /** Name of the task source, as in the spec. */
  source: string;
  count: number;
  seed: number;
  mix: Readonly<Record<string, number>> | null;
  splits: Readonly<Record<string, number>>;
}

export interface MixReport {
  asked: Record<string, number>;
  realised: Record<string, number>;
}

export interface GenerationReport {
  candidates: number;
  dropped: Record<string, number>;
  splits: Record<
    string,
    MixReport & {
      templates: Record<string, number>;
      evidence_pages: number;
      /** By capability: the most frequent answer and its share. */
      most_frequent: Record<string, { answer: string; share: number }>;
    }
  >;
}

/** No answer may be that of more than this share of a capability's tasks in a split, or of more than one where there are few. */
const MAX_ANSWER_SHARE = 0.08;
/** Candidates drawn for each task wanted: some fail the checks or the cap. */
const SURPLUS = 3;
/** Packages kept in memory for each task wanted. */
const SAMPLE_PER_TASK = 8;
const MIN_SAMPLE = 2000;

export async function generateTasks(
  corpus: FactCorpus,
  options: GenerateOptions,
): Promise<{ tasks: Task[]; report: GenerationReport }> {
  const pools = await samplePools(corpus, options);
  const quotas = quotasOf(options);
  const candidates = new Map<string, Candidate[]>();
  for (const [split, pool] of pools) candidates.set(split, drawSplit(split, pool, quotas[split] ?? {}, options));

  const all = [...candidates.values()].flat();
  const stated = new StatedValues(all.flatMap(({ needs }) => needs));
  for await (const page of corpus.texts()) stated.read(page);

  const dropped: Record<string, number> = {};
  const tasks: Task[] = [];
  const report: GenerationReport = { candidates: all.length, dropped, splits: {} };
  for (const [split, drawn] of candidates) {
    const sound = drawn.filter((candidate) => isSound(candidate, stated, dropped));
    const chosen = choose(sound, quotas[split] ?? {}, dropped);
    tasks.push(...chosen.map((candidate) => taskOf(candidate, split, options.source)));
    report.splits[split] = reportOf(chosen, quotas[split] ?? {});
  }
  return { tasks, report };
}

/** A bounded sample of each split's packages, with the pages that their only dependencies lead to. */
async function samplePools(
  corpus: FactCorpus,
  { splits, seed, count, source }: GenerateOptions,
): Promise<Map<string, PackagePool>> {
  const samples = new Map(
    Object.keys(splits)
      .sort()
      .map((split) => [split, new FactPool(seed, Math.max(MIN_SAMPLE, SAMPLE_PER_TASK * count))]),
  );
  let pages = 0;
  for await (const page of corpus.factPages()) {
    const item = packageOf(page);
    if (item) samples.get(splitOfPackage(item.name, splits, seed))?.add(item);
    pages += item ? 1 : 0;
  }
  if (pages === 0) {
    throw new ExpError(
      'NO_FACTS',
      `tasks.sources.${source}`,
      'the corpus has no pages with facts to make tasks from; use a source of kind installed_packages, or import tasks',
    );
  }
  const pools = new Map<string, PackagePool>();
  for (const [split, sample] of samples) {
    const packages = sample.packages();
    const known = new Set(packages.map(({ url }) => url));
    const missing = packages.flatMap((item) => {
      const [only, ...others] = item.values.dependencies?.items ?? [];
      const url = only === undefined || others.length > 0 ? undefined : siblingUrl(item, only);
      return url === undefined || known.has(url) || splitOfPackage(only as string, splits, seed) !== split ? [] : [url];
    });
    const linked = (await corpus.factPagesAt([...new Set(missing)].sort()))
      .map(packageOf)
      .filter((item) => item !== null);
    pools.set(split, new PackagePool([...packages, ...linked]));
  }
  return pools;
}

/** Tasks wanted by split and capability. */
function quotasOf({ count, splits, mix }: GenerateOptions): Record<string, Record<string, number>> {
  const shares = mix ?? Object.fromEntries(CAPABILITIES.map((capability) => [capability, 1]));
  return apportionTable(count, splits, shares);
}

function drawSplit(
  split: string,
  pool: PackagePool,
  quota: Readonly<Record<string, number>>,
  options: GenerateOptions,
): Candidate[] {
  const uses = new Map<string, number>();
  return CAPABILITIES.flatMap((capability) => {
    const wanted = quota[capability] ?? 0;
    const templates = templatesOf(capability, split, options.splits);
    const share = Math.ceil(wanted / templates.length);
    return templates.flatMap((template) =>
      drawCandidates(template, pool, {
        name: `${options.seed}/${split}/${template.id}`,
        wanted: wanted === 0 ? 0 : SURPLUS * share + SURPLUS,
        maxPerAnswer: maxPerAnswer(wanted),
        uses,
      }),
    );
  });
}

function templatesOf(capability: Capability, split: string, splits: Readonly<Record<string, number>>): Template[] {
  const heldOut = 'held_out' in splits ? split === 'held_out' : split !== 'train';
  return TEMPLATES.filter((template) => template.capability === capability && (heldOut || !template.heldOutOnly));
}

function maxPerAnswer(wanted: number): number {
  return Math.max(1, Math.round(MAX_ANSWER_SHARE * wanted));
}

function isSound(
  { needs, packages, answer, template }: Candidate,
  stated: StatedValues,
  dropped: Record<string, number>,
): boolean {
  const names = packages.map(({ name }) => name);
  const verdict = checkEvidence(stated, needs, names, answer.text, template.derivation);
  if (verdict !== 'ok') dropped[verdict] = (dropped[verdict] ?? 0) + 1;
  return verdict === 'ok';
}

/** Fill each capability's quota, its templates in turn, no answer too often. */
function choose(
  candidates: readonly Candidate[],
  quota: Readonly<Record<string, number>>,
  dropped: Record<string, number>,
): Candidate[] {
  return Object.entries(quota).flatMap(([capability, wanted]) => {
    const queues = TEMPLATES.filter((template) => template.capability === capability)
      .map((template) => candidates.filter((candidate) => candidate.template === template))
      .filter((queue) => queue.length > 0);
    const answers = new Map<string, number>();
    const chosen: Candidate[] = [];
    for (let turn = 0; chosen.length < wanted && queues.some((queue) => queue.length > 0); turn += 1) {
      const next = takeNext(queues[turn % queues.length] as Candidate[], answers, maxPerAnswer(wanted), dropped);
      if (next) chosen.push(next);
    }
    return chosen;
  });
}

function takeNext(
  queue: Candidate[],
  answers: Map<string, number>,
  most: number,
  dropped: Record<string, number>,
): Candidate | null {
  for (let candidate = queue.shift(); candidate; candidate = queue.shift()) {
    const key = answerKey(candidate.answer);
    if ((answers.get(key) ?? 0) < most) {
      answers.set(key, (answers.get(key) ?? 0) + 1);
      return candidate;
    }
    dropped.answer_too_common = (dropped.answer_too_common ?? 0) + 1;
  }
  return null;
}

function taskOf({ template, question, answer, packages, ecosystem }: Candidate, split: string, source: string): Task {
  const eco = ecosystem === 'npm' ? 'npm' : 'Python';
  return {
    task_id: `${source}-${createHash('sha256').update(question).digest('hex').slice(0, 12)}`,
    question,
    answer: answer.text,
    aliases: answer.aliases,
    capability: template.capability,
    split,
    source,
    evidence: packages.map(({ url }) => url),
    deny_urls: [],
    template: template.id,
    lookups: packages.map(({ url, name }, slot) => ({
      query: `${name} ${eco}`,
      url,
      field: template.fields[slot] as string,
    })),
  };
}

function reportOf(
  chosen: readonly Candidate[],
  asked: Readonly<Record<string, number>>,
): GenerationReport['splits'][string] {
  const count = (items: readonly string[]) => {
    const counts: Record<string, number> = {};
    for (const item of items) counts[item] = (counts[item] ?? 0) + 1;
    return counts;
  };
  const capabilities = Object.keys(asked).filter((capability) =>
    chosen.some(({ template }) => template.capability === capability),
  );
  return {
    asked: { ...asked },
    realised: {
      ...Object.fromEntries(Object.keys(asked).map((name) => [name, 0])),
      ...count(chosen.map(({ template }) => template.capability)),
    },
    templates: count(chosen.map(({ template }) => template.id)),
    evidence_pages: new Set(chosen.flatMap(({ packages }) => packages.map(({ url }) => url))).size,
    most_frequent: Object.fromEntries(
      capabilities.map((capability) => {
        const answers = chosen
          .filter(({ template }) => template.capability === capability)
          .map(({ answer }) => answerKey(answer));
        const [answer, times] = Object.entries(count(answers)).sort(
          (a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1),
        )[0] as [string, number];
        return [capability, { answer, share: times / answers.length }];
      }),
    ),
  };
}
