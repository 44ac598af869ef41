/** One trajectory as it happens: a line or two per turn; on a terminal also what is going on right now. */
import { createLogUpdate } from 'log-update';
import { type Branches, readAction, type TurnRecord } from '../environments/deep-research/agent-loop.ts';
import type { Tokenizer, ToolName } from '../environments/deep-research/prompt.ts';
import type { CommandIo } from './command.ts';
import { detectTerminal, oneLine, padTo, paint, type Terminal, truncate } from './terminal.ts';

const LABEL = 10;

export class LiveTrace {
  readonly #io: CommandIo;
  readonly #terminal: Terminal;
  readonly #live: ReturnType<typeof createLogUpdate> | null;
  #turnStarted = Date.now();
  #turnTokens = 0;
  #allTokens = 0;
  #sampledMs = 0;
  #waiting = '';

  constructor(io: CommandIo) {
    this.#io = io;
    this.#terminal = detectTerminal(io);
    this.#live = io.isTTY ? createLogUpdate(process.stderr) : null;
  }

  /** What is waited for; '' when nothing is. */
  wait(what: string): void {
    if (what === this.#waiting) return;
    this.#waiting = what;
    if (this.#live === null) {
      if (what !== '') this.#io.err(what);
    } else if (what === '') this.#live.clear();
    else this.#live(paint(this.#terminal, 'dim', truncate(what, this.#terminal.columns)));
  }

  begin({
    question,
    checkpoint,
    engine,
    world,
  }: {
    question: string;
    checkpoint: string;
    engine: string;
    world: string;
  }): void {
    this.wait('');
    this.#line('question', question);
    this.#line('policy', `${checkpoint} on engine ${engine}${world === '' ? '' : `, world of ${world}`}`);
    this.#turnStarted = Date.now();
  }

  /** Tokens arrived. */
  tokens(count: number): void {
    this.#turnTokens += count;
    this.#live?.(
      paint(
        this.#terminal,
        'dim',
        `${' '.repeat(LABEL)}${this.#turnTokens} tokens, ${this.#rate(this.#turnTokens, Date.now() - this.#turnStarted)}`,
      ),
    );
  }

  turn(record: TurnRecord, tokenizer: Tokenizer, tools: readonly ToolName[]): void {
    this.#live?.clear();
    const count = record.token_ids.length;
    this.#allTokens += count;
    this.#sampledMs += record.latency_ms;
    const cost = `${count} tokens, ${this.#rate(count, record.latency_ms)}`;
    const action = readAction(tokenizer, record.token_ids, tools);
    const text = tokenizer.decode(record.token_ids);
    const thought = /<think>([\s\S]*?)<\/think>/.exec(text)?.[1];
    this.#line(`turn ${record.turn + 1}`, thought ?? cost, 'dim');
    if (action.kind === 'tool_call') this.#line(action.tool, `${JSON.stringify(action.args)}  (${cost})`, 'cyan');
    if (record.tool === 'summary') this.#line('summary', truncate(oneLine(text.replaceAll('\n', ' ')), 400), 'cyan');
    else if (action.kind === 'malformed')
      this.#line('malformed', `${action.reason}: ${truncate(oneLine(text.replaceAll('\n', ' ')), 200)}`, 'yellow');
    if (record.branch) this.#line('context', 'full: the next turn begins in a new one', 'yellow');
    if (record.observation !== null) this.#observation(record.observation, tokenizer);
    this.#turnStarted = Date.now();
    this.#turnTokens = 0;
  }

  end(branches: Branches): void {
    const [{ answer, termination }] = branches;
    const turns = branches.flatMap(({ spans }) => spans).filter(({ kind }) => kind === 'action').length;
    const all = branches.reduce((sum, { token_ids }) => sum + token_ids.length, 0);
    const contexts = branches.length > 1 ? ` over ${branches.length} contexts` : '';
    this.#line('answer', answer ?? `none (${termination})`, answer === null ? 'yellow' : 'green');
    this.#line(
      '',
      `${turns} turns, ${this.#allTokens} tokens sampled at ${this.#rate(this.#allTokens, this.#sampledMs)}, ${all} in all${contexts}; ended by ${termination}`,
      'dim',
    );
  }

  #observation({ token_ids, status, latency_ms }: NonNullable<TurnRecord['observation']>, tokenizer: Tokenizer): void {
    const text = tokenizer.decode(token_ids);
    const inner = /<tool_response>\n([\s\S]*)\n<\/tool_response>/.exec(text)?.[1];
    if (status === 'summary') {
      this.#line('context', 'full: the next turn writes a summary', 'yellow');
      return;
    }
    if (inner === undefined) {
      this.#line('limit', 'no more turns: the next one must answer', 'yellow');
      return;
    }
    if (status === 'malformed') return;
    const lines = inner.split('\n').filter((line) => line.trim() !== '');
    const shown = lines.slice(0, 8);
    for (const [index, line] of shown.entries())
      this.#line(index === 0 ? `${Math.round(latency_ms)} ms` : '', line, status === 'ok' ? undefined : 'yellow');
    if (lines.length > shown.length) this.#line('', `… ${lines.length - shown.length} more lines`, 'dim');
  }

  #line(label: string, text: string, format?: Parameters<typeof paint>[1]): void {
    const room = this.#io.isTTY ? this.#terminal.columns - LABEL : Number.MAX_SAFE_INTEGER;
    const shown = truncate(
      text
        .split('\n')
        .map(oneLine)
        .filter((part) => part !== '')
        .join(' '),
      room,
    );
    this.#io.out(
      `${paint(this.#terminal, 'bold', padTo(this.#terminal, label, LABEL))}${format === undefined ? shown : paint(this.#terminal, format, shown)}`,
    );
  }

  #rate(tokens: number, ms: number): string {
    return `${(tokens / Math.max(0.001, ms / 1000)).toFixed(0)} tokens/s`;
  }
}
