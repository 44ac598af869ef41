/** The picture of a run: a frame for a terminal, lines for a pipe. Pure functions from state to text. */
import {
  type ArmState,
  type GateState,
  isOpen,
  type NodeState,
  type NodeStatus,
  type RunPause,
  type RunState,
  spendLine,
  toldGates,
} from './run-state.ts';
import {
  armsText,
  type NodeSection,
  nodeName,
  nodeSections,
  type SharedNodeState,
  sharedNodes,
} from './shared-nodes.ts';
import { clock, count, padTo, paint, plainAscii, progressBar, type Terminal, textWidth, truncate } from './terminal.ts';

type Look = { unicode: string; ascii: string; colour: Parameters<typeof paint>[1] };

/** No symbol that some terminals draw as an emoji of two columns. */
const LOOKS: Record<NodeStatus | 'budget', Look> = {
  waiting: { unicode: '·', ascii: '.', colour: 'dim' },
  running: { unicode: '◐', ascii: '>', colour: 'cyan' },
  paused: { unicode: '‖', ascii: 'P', colour: 'yellow' },
  done: { unicode: '✓', ascii: '+', colour: 'green' },
  reused: { unicode: '↺', ascii: '=', colour: 'blue' },
  failed: { unicode: '✗', ascii: 'x', colour: 'red' },
  gate_failed: { unicode: '▲', ascii: '!', colour: 'yellow' },
  cancelled: { unicode: '■', ascii: '#', colour: 'yellow' },
  budget: { unicode: '▲', ascii: '!', colour: 'yellow' },
  skipped: { unicode: '○', ascii: '-', colour: 'dim' },
};
const SPINNER = ['◐', '◓', '◑', '◒'];
const ASCII_SPINNER = ['|', '/', '-', '\\'];

export interface Frame {
  now: Date;
  /** Counts refreshes; turns the spinner. */
  tick: number;
  /** Set while the reader cannot reach a service. */
  trouble?: string | null;
  /** The line below the picture; absent in a final frame. */
  hint?: string | null;
}

/** The whole picture, no line wider than the terminal and no more lines than it has rows. */
export function renderFrame(state: RunState, terminal: Terminal, frame: Frame): string[] {
  const header = renderHeader(state, terminal, frame);
  const trouble = frame.trouble ?? state.trouble;
  const footer = [
    ...(trouble ? [paint(terminal, 'yellow', fitLine(terminal, `! ${trouble}`))] : []),
    ...(frame.hint ? ['', paint(terminal, 'dim', fitLine(terminal, frame.hint))] : []),
  ];
  const layout = measure(state, terminal);
  const room = terminal.rows - 1 - header.length - footer.length - 1;
  const sections = nodeSections(state);
  const render = (some: readonly NodeSection[]): string[] => renderSections(some, state, { terminal, layout, frame });
  const body = render(sections);
  const shown = body.length <= room ? body : render(collapse(sections, body.length - room));
  return [...header, '', ...shown.slice(0, Math.max(1, room)), ...footer];
}

function renderHeader(state: RunState, terminal: Terminal, { now }: Frame): string[] {
  const elapsed = clock(((state.ended_at ?? now).getTime() - state.created_at.getTime()) / 1000);
  const left = terminal.unicode ? '≈' : '~';
  const eta = state.eta_seconds === null ? '' : `  ${left}${clock(state.eta_seconds)} left`;
  const shown = state.paused ? 'paused' : state.status;
  const status = shown.replace('_', ' ');
  const look = LOOKS[shown];
  const nodes = sharedNodes(state);
  const ended = nodes.filter((node) => !isOpen(node.status)).length;
  const facts = `  ${status}  ${elapsed}${eta}  ${ended}/${nodes.length} nodes`;
  const title = truncate(state.run, Math.max(8, terminal.columns - textWidth(facts)), terminal.unicode ? '…' : '...');
  const line = truncate(facts, Math.max(0, terminal.columns - textWidth(title)), '');
  const painted = line.replace(`  ${status}`, () => `  ${paint(terminal, look.colour, status)}`);
  return [
    paint(terminal, 'bold', title) + painted,
    ...(state.paused ? pauseLines(state.paused, state.run) : []).map((line) =>
      paint(terminal, 'yellow', fitLine(terminal, line)),
    ),
    ...(isSpent(state) ? [paint(terminal, 'dim', fitLine(terminal, spendLine(state.spend)))] : []),
    ...(state.mlflow_url ? [paint(terminal, 'dim', fitLine(terminal, `MLflow ${state.mlflow_url}`))] : []),
    ...(state.arms.length > 1 ? ['', ...renderArms(state.arms, terminal)] : []),
  ];
}

const isSpent = ({ spend }: RunState): boolean => spend.spent.tokens > 0 || Object.keys(spend.bounds).length > 0;

/** On a line of its own what to type, so that a narrow terminal does not cut it off. */
function pauseLines({ reason, since, over_budget }: RunPause, run: string): [string, string] {
  const remedy = over_budget ? `exp budget ${run} ${reason.split(' ')[1]}=N` : `exp continue ${run}`;
  return [`paused since ${since.slice(0, 19)}Z: ${reason}`, `to go on: ${remedy}`];
}

const ARM_LINES = 4;

/** Arms with their status, as many to a line as fit; those that find no room are counted. */
function renderArms(arms: readonly ArmState[], terminal: Terminal): string[] {
  const lines: { text: string; painted: string }[] = [{ text: '', painted: '' }];
  for (const [at, arm] of arms.entries()) {
    const { text, painted } = armCell(arm, terminal);
    const last = lines.at(-1) as (typeof lines)[number];
    const isFull = last.text !== '' && textWidth(last.text) + 2 + textWidth(text) > terminal.columns;
    if (isFull && lines.length === ARM_LINES) return [...lines.map((line) => line.painted), countArms(arms.slice(at))];
    if (isFull) lines.push({ text, painted });
    else {
      last.text += last.text === '' ? text : `  ${text}`;
      last.painted += last.painted === '' ? painted : `  ${painted}`;
    }
  }
  return lines.map((line) => line.painted);
}

function armCell({ arm, status, nodes }: ArmState, terminal: Terminal): { text: string; painted: string } {
  const ended = nodes.filter((node) => !isOpen(node.status)).length;
  const [word, share] = [status.replace('_', ' '), `${ended}/${nodes.length}`];
  const name = truncate(arm, Math.max(8, terminal.columns - word.length - share.length - 2));
  const look = status === 'waiting' ? LOOKS.waiting : LOOKS[status];
  return {
    text: `${name} ${word} ${share}`,
    painted: `${paint(terminal, 'bold', name)} ${paint(terminal, look.colour, word)} ${paint(terminal, 'dim', share)}`,
  };
}

function countArms(arms: readonly ArmState[]): string {
  const counts = new Map<string, number>();
  for (const { status } of arms) counts.set(status, (counts.get(status) ?? 0) + 1);
  return `and ${arms.length} more: ${[...counts].map(([status, found]) => `${found} ${status.replace('_', ' ')}`).join(', ')}`;
}

interface Layout {
  id: number;
  kind: number;
  status: number;
  bar: number;
  count: number;
  detail: number;
  time: number;
}

const TIME_WIDTH = 7;
const STATUS_WIDTH = 9;

/** Share the width out: what the reader needs most (name, state, time) first, the rest as there is room. */
function measure(state: RunState, terminal: Terminal): Layout {
  const nodes = sharedNodes(state);
  const widest = (texts: string[]): number => Math.max(0, ...texts.map(textWidth));
  const { columns } = terminal;
  const id = Math.min(widest(nodes.map((node) => node.id)), Math.floor(columns * 0.34));
  const kind = columns >= 90 ? widest(nodes.map((node) => node.kind)) + 2 : 0;
  const counts = columns >= 72 ? widest(nodes.map(counted)) : 0;
  const bar = columns >= 140 ? 20 : columns >= 90 ? 12 : columns >= 56 ? 8 : 0;
  const used = 2 + id + 2 + kind + STATUS_WIDTH + 2 + (bar ? bar + 2 : 0) + (counts ? counts + 2 : 0) + TIME_WIDTH + 1;
  return { id, kind, status: STATUS_WIDTH, bar, count: counts, detail: Math.max(0, columns - used), time: TIME_WIDTH };
}

interface Canvas {
  terminal: Terminal;
  layout: Layout;
  frame: Frame;
}

/** With several arms, each group of nodes stands below the arms that need it. */
function renderSections(sections: readonly NodeSection[], state: RunState, canvas: Canvas): string[] {
  const { terminal, layout, frame } = canvas;
  const total = state.arms.length;
  const nodes = sections.flatMap((section, position) => [
    ...(total > 1 ? [...(position > 0 ? [''] : []), sectionTitle(section, total, terminal)] : []),
    ...section.nodes.flatMap((node) => renderNode(node, terminal, layout, frame)),
  ]);
  const gates = toldGates(state).flatMap((gate) => renderGate(gate, state, terminal));
  return [...nodes, ...(total > 1 && gates.length > 0 ? [''] : []), ...gates];
}

function sectionTitle({ arms }: NodeSection, total: number, terminal: Terminal): string {
  return paint(terminal, ['bold', 'underline'], fitLine(terminal, armsText(arms, total)));
}

function renderNode(node: NodeState, terminal: Terminal, layout: Layout, frame: Frame): string[] {
  const look = LOOKS[node.status];
  const moving = node.status === 'running';
  const spinner = terminal.unicode ? SPINNER : ASCII_SPINNER;
  const symbol = moving
    ? (spinner[frame.tick % spinner.length] as string)
    : terminal.unicode
      ? look.unicode
      : look.ascii;
  const showBar =
    node.total > 0 && (moving || node.status === 'paused' || node.status === 'failed' || node.status === 'cancelled');
  const cells = [
    `${paint(terminal, look.colour, symbol)} `,
    `${padTo(terminal, node.id, layout.id)}  `,
    layout.kind ? paint(terminal, 'dim', padTo(terminal, node.kind, layout.kind)) : '',
    `${paint(terminal, look.colour, padTo(terminal, statusWord(node), layout.status))}  `,
    layout.bar
      ? `${showBar ? paint(terminal, look.colour, progressBar(terminal, node.done, node.total, layout.bar)) : ' '.repeat(layout.bar)}  `
      : '',
    layout.count ? `${padTo(terminal, counted(node), layout.count, 'right')}  ` : '',
    paint(terminal, 'dim', padTo(terminal, details(node, terminal), layout.detail)),
    ` ${padTo(terminal, nodeClock(node, frame.now), layout.time, 'right')}`,
  ];
  const line = cells.join('').trimEnd();
  if (node.error === null) return [line];
  const mark = terminal.unicode ? '└ ' : '\\ ';
  return [
    line,
    `  ${paint(terminal, 'red', fitLine({ ...terminal, columns: terminal.columns - 2 }, mark + node.error))}`,
  ];
}

const GATE_LOOKS: Record<GateState['status'], Look | null> = {
  waiting: null,
  asks: { unicode: '?', ascii: '?', colour: 'yellow' },
  passed: LOOKS.done,
  failed: LOOKS.gate_failed,
  skipped: null,
  cancelled: null,
};

function renderGate(gate: GateState & { arm: string }, { run, arms }: RunState, terminal: Terminal): string[] {
  const look = GATE_LOOKS[gate.status];
  if (!look) return [];
  const symbol = terminal.unicode ? look.unicode : look.ascii;
  const ofArm = arms.length > 1 ? `${gate.arm}: ` : '';
  return [paint(terminal, look.colour, fitLine(terminal, `${symbol} ${ofArm}${gateText(gate, run)}`))];
}

function gateText({ name, status, reason }: GateState, run: string): string {
  const words = status === 'asks' ? `waits for approval: exp approve ${run} ${name}` : status;
  return `gate after ${name} ${[words, reason].filter(Boolean).join('; ')}`;
}

function statusWord(node: NodeState): string {
  return node.status === 'gate_failed' ? 'gate' : node.status;
}

function counted(node: NodeState): string {
  return node.total > 0 ? `${count(node.done)}/${count(node.total)}` : '';
}

function details(node: NodeState, terminal: Terminal): string {
  const parts = [
    node.shared ? 'shared with another run' : '',
    node.attempts > 1 && node.status === 'running' ? `attempt ${node.attempts}` : '',
    node.detail,
  ].filter(Boolean);
  const text = parts.join(' · ');
  return terminal.unicode ? text : plainAscii(text);
}

function nodeClock(node: NodeState, now: Date): string {
  const seconds = nodeSeconds(node, now);
  return seconds === null ? '' : clock(seconds);
}

/** How long a node has run, or ran; null where it did not run. */
export function nodeSeconds(node: Pick<NodeState, 'started_at' | 'ended_at'>, now: Date): number | null {
  if (!node.started_at) return null;
  return Math.max(0, ((node.ended_at ?? now).getTime() - node.started_at.getTime()) / 1000);
}

function fitLine(terminal: Terminal, text: string): string {
  return truncate(terminal.unicode ? text : plainAscii(text), terminal.columns, terminal.unicode ? '…' : '...');
}

/** Too many lines for the terminal: fold nodes that need no watching, those that succeeded first. */
function collapse(sections: readonly NodeSection[], excess: number): NodeSection[] {
  let left = excess;
  const fold = (section: NodeSection): NodeSection => {
    let { nodes } = section;
    for (const quiet of [
      ['done', 'reused'],
      ['waiting', 'skipped'],
    ] as const) {
      const quietNodes = nodes.filter((node) => (quiet as readonly string[]).includes(node.status) && !node.error);
      if (left <= 0 || quietNodes.length < 2) continue;
      const folded = new Set(quietNodes.slice(0, Math.min(quietNodes.length, left + 1)));
      left -= folded.size - 1;
      nodes = withSummary(nodes, folded);
    }
    return { ...section, nodes };
  };
  return sections.map(fold);
}

/** One line in the place of the first folded node. */
function withSummary(nodes: readonly SharedNodeState[], folded: ReadonlySet<SharedNodeState>): SharedNodeState[] {
  const [first] = folded;
  if (!first) return [...nodes];
  const summary: SharedNodeState = {
    ...first,
    id: `${folded.size} nodes`,
    kind: '',
    shared: false,
    attempts: 0,
    done: 0,
    total: 0,
    detail: '',
    started_at: null,
    ended_at: null,
  };
  return nodes.flatMap((node) => (node === first ? [summary] : folded.has(node) ? [] : [node]));
}

/** What changed between two looks, one line each, for a pipe. The first look tells what is not waiting. */
export function renderChanges(before: RunState | null, after: RunState, now: Date): string[] {
  const known = new Map(before ? sharedNodes(before).map((node) => [`${node.id} ${node.key}`, node]) : []);
  const ofNodes = sharedNodes(after).flatMap((node) => {
    const was = known.get(`${node.id} ${node.key}`);
    const same = was ? was.status === node.status && was.error === node.error : node.status === 'waiting';
    return same ? [] : [stampedLine(now, `${nodeName(node, after.arms.length)} ${describeNode(node, now)}`)];
  });
  const lines = [...ofNodes, ...armChanges(before, after, now)];
  const told = new Map((before ? toldGates(before) : []).map((gate) => [`${gate.arm}/${gate.name}`, gate.status]));
  for (const gate of toldGates(after)) {
    if (told.get(`${gate.arm}/${gate.name}`) === gate.status || !GATE_LOOKS[gate.status]) continue;
    lines.push(stampedLine(now, `${after.arms.length > 1 ? `${gate.arm}: ` : ''}${gateText(gate, after.run)}`));
  }
  if (before && before.paused?.reason !== after.paused?.reason && after.status === 'running')
    lines.push(
      stampedLine(now, after.paused ? pauseLines(after.paused, after.run).join('; ') : `run ${after.run} goes on`),
    );
  const runChanged = before?.status !== after.status;
  const elapsed = clock(((after.ended_at ?? now).getTime() - after.created_at.getTime()) / 1000);
  const ofRun = stampedLine(
    now,
    `run ${after.run} ${after.status}${after.status === 'running' ? '' : ` after ${elapsed}`}`,
  );
  if (!runChanged) return lines;
  return after.status === 'running' ? [ofRun, ...lines] : [...lines, ofRun];
}

/** With several arms, how each goes on is told too. */
function armChanges(before: RunState | null, after: RunState, now: Date): string[] {
  if (after.arms.length < 2) return [];
  const known = new Map(before?.arms.map(({ arm, status }) => [arm, status]));
  return after.arms
    .filter(({ arm, status }) => status !== (known.get(arm) ?? 'waiting'))
    .map(({ arm, status }) => stampedLine(now, `arm ${arm} ${status}`));
}

/** One line of progress over all nodes that run; empty when none reports any. */
export function renderProgress(state: RunState, now: Date): string[] {
  return sharedNodes(state)
    .filter((node) => node.status === 'running' && (node.total > 0 || node.detail))
    .map((node) => stampedLine(now, `${nodeName(node, state.arms.length)} ${describeNode(node, now)}`));
}

/** A line of a pipe: the time, in UTC and without milliseconds, then the text. */
export function stampedLine(now: Date, text: string): string {
  return `${now.toISOString().slice(0, 19)}Z ${text}`;
}

function describeNode(node: NodeState, now: Date): string {
  const seconds = nodeSeconds(node, now);
  const facts = [
    counted(node),
    node.shared ? 'shared with another run' : '',
    node.error ?? node.detail,
    seconds === null || node.status === 'waiting' ? '' : clock(seconds),
  ].filter(Boolean);
  return [node.status, ...facts].join('  ');
}
