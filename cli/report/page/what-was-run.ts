/** What was run: the spec, the plan with its lineage, licences, versions, cost. */
import type { CostLine, ReportedNode, RunReport } from '../document.ts';
import { type Child, el, lazily, link, section, table } from './dom.ts';
import { count, duration, number, shortHash, time, words } from './format.ts';

export function whatWasRun(report: RunReport): HTMLElement {
  const { run, notes } = report;
  return section(
    'run',
    'What was run',
    run.description === '' ? null : el('p', {}, run.description),
    notes.length === 0
      ? null
      : el('div', { class: 'notes', role: 'note' }, el('ul', {}, ...notes.map((note) => el('li', {}, note)))),
    facts([
      ['run', el('code', {}, run.id)],
      ['status', words(run.status)],
      ['spec', el('code', {}, run.spec_path)],
      ['profile', run.profile],
      ['began', `${time(run.created_ms)} UTC`],
      ...(run.ended_ms === null
        ? []
        : [['took', duration((run.ended_ms - run.created_ms) / 1000)] satisfies [string, Child]]),
      ['run key', el('code', {}, run.run_key)],
      ...(run.mlflow_url === null ? [] : [['MLflow', link(run.mlflow_url)] satisfies [string, Child]]),
    ]),
    report.arms.length > 1 ? armsTable(report) : null,
    planTable(report),
    costTable(report),
    licencesTable(report),
    versionsTable(report.nodes),
    lazily('The resolved spec', () => [el('pre', { tabindex: 0, 'aria-label': 'The resolved spec' }, run.spec)]),
  );
}

export function facts(pairs: readonly [string, Child][]): HTMLElement {
  return el('dl', { class: 'facts' }, ...pairs.flatMap(([name, value]) => [el('dt', {}, name), el('dd', {}, value)]));
}

function armsTable({ arms }: RunReport): HTMLElement {
  return table('Arms: what sets each apart', {
    head: ['arm', 'seed', 'status', 'changes'],
    rows: arms.map(({ name, seed, status, changes }) => [
      name,
      seed,
      words(status),
      Object.entries(changes)
        .map(([path, value]) => `${path} = ${value}`)
        .join('; '),
    ]),
    numbers: [1],
  });
}

function planTable({ nodes, arms }: RunReport): HTMLElement {
  const several = arms.length > 1;
  const armsOf = (node: ReportedNode): string => (node.arms.length === arms.length ? 'all' : node.arms.join(', '));
  return table('Plan and lineage: each node once, with what it reads', {
    head: ['node', 'kind', 'status', 'took', 'begun', 'reads', 'key', 'artifact', ...(several ? ['arms'] : [])],
    rows: nodes.map((node) => [
      node.name,
      `${node.kind} v${node.kind_version}`,
      node.error === null ? words(node.status) : `${words(node.status)}: ${node.error}`,
      secondsOf(node) === null ? '' : duration(secondsOf(node) as number),
      node.attempts > 1 ? `${node.attempts} times` : '',
      node.inputs.join(', '),
      el('code', { title: node.key }, shortHash(node.key)),
      node.artifact === null
        ? ''
        : el(
            'code',
            { title: node.artifact.digest },
            `${shortHash(node.artifact.digest)}${node.artifact.generation > 1 ? ` (generation ${node.artifact.generation})` : ''}`,
          ),
      ...(several ? [armsOf(node)] : []),
    ]),
    numbers: [3],
  });
}

/** A reused node took no time here. */
export function secondsOf({ started_ms, ended_ms, status }: ReportedNode): number | null {
  return status === 'reused' || started_ms === null || ended_ms === null ? null : (ended_ms - started_ms) / 1000;
}

function costTable({ cost, currency }: RunReport): HTMLElement {
  const sum = (of: (line: CostLine) => number): number => cost.reduce((total, line) => total + of(line), 0);
  const line = (name: string, one: Omit<CostLine, 'node' | 'gpus'>, gpuHours: number): Child[] => [
    name,
    count(one.trajectories),
    count(one.tokens),
    count(one.action_tokens),
    count(one.tool_calls),
    duration(one.seconds),
    number(gpuHours),
    number(one.price),
  ];
  const gpuHours = ({ gpus, seconds }: CostLine): number => (gpus * seconds) / 3600;
  const total = {
    trajectories: sum(({ trajectories }) => trajectories),
    tokens: sum(({ tokens }) => tokens),
    action_tokens: sum(({ action_tokens }) => action_tokens),
    tool_calls: sum(({ tool_calls }) => tool_calls),
    seconds: sum(({ seconds }) => seconds),
    price: sum(({ price }) => price),
  };
  return table('Cost of what this run did itself, at the prices of the profile; reused nodes cost nothing', {
    head: ['node', 'trajectories', 'tokens', 'sampled tokens', 'tool calls', 'time', 'GPU-hours', `price, ${currency}`],
    rows: [...cost.map((one) => line(one.node, one, gpuHours(one))), line('all', total, sum(gpuHours))],
    numbers: [1, 2, 3, 4, 5, 6, 7],
  });
}

function licencesTable({ licences }: RunReport): HTMLElement {
  return table('Licences', {
    head: ['used as', 'name', 'licence', 'provenance'],
    rows: licences.map(({ used_as, name, licence, provenance }) => [used_as, name, licence, provenance]),
  });
}

/** Versions that made the artifacts; a reused artifact may have been made with others. */
function versionsTable(nodes: readonly ReportedNode[]): HTMLElement {
  const users = new Map<string, string[]>();
  for (const { name, artifact } of nodes) {
    for (const [what, version] of Object.entries(artifact?.made_with ?? {})) {
      const id = `${what}\n${version}`;
      users.set(id, [...(users.get(id) ?? []), name]);
    }
  }
  return table('Versions: made with', {
    head: ['what', 'version', 'nodes'],
    rows: [...users].sort().map(([id, names]) => {
      const [what = '', version = ''] = id.split('\n');
      return [what, version, names.length === nodes.length ? 'all' : names.join(', ')];
    }),
  });
}
