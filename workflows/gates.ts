import { ApplicationFailure, condition, defineUpdate, isCancellation, setHandler } from '@temporalio/workflow';
import type { NodeOutcome, NodeSkeleton } from '../activities/index.ts';
import type { PlanGate } from '../schemas/plan.ts';
import { ledger } from './activity-proxies.ts';

/** `asks`: a person decides. `skipped`: what it is about was never made or measured. */
export type GateStatus = 'waiting' | 'asks' | 'passed' | 'failed' | 'skipped' | 'cancelled';

export interface GateState {
  /** The stage it stands after. */
  name: string;
  status: GateStatus;
  metric: string | null;
  value: number | null;
  /** In words: why it is as it is. */
  reason: string;
}

export interface Decision {
  gate: string;
  approved: boolean;
}

/** A person's word about a gate that asks. */
export const approveUpdate = defineUpdate<GateState, [Decision]>('approve');

type Outcomes = ReadonlyMap<string, Promise<NodeOutcome>>;

/** The gates of an arm, each to be passed once; `outcomes` is read when one is. */
export class Gates {
  readonly states: GateState[];
  readonly #gates: PlanGate[];
  readonly #outcomes: Outcomes;
  readonly #decisions = new Map<string, boolean>();
  readonly #passing = new Map<string, Promise<GateState>>();

  constructor(nodes: readonly NodeSkeleton[], outcomes: Outcomes) {
    this.#gates = nodes.flatMap(({ gate }) => gate ?? []);
    this.#outcomes = outcomes;
    this.states = this.#gates.map(({ name, metric }) => ({
      name,
      status: 'waiting',
      metric: metric?.name ?? null,
      value: null,
      reason: '',
    }));
    setHandler(
      approveUpdate,
      ({ gate, approved }) => {
        this.#decisions.set(gate, approved);
        return this.#state(gate);
      },
      { validator: ({ gate }) => this.#refuseUnasked(gate) },
    );
  }

  /** How a gate ended, once it has. */
  pass(name: string): Promise<GateState> {
    const passing = this.#passing.get(name) ?? this.#decide(name);
    this.#passing.set(name, passing);
    return passing;
  }

  /** Also those that nothing waits for: a bar that was not met is told. */
  passAll(): Promise<GateState[]> {
    return Promise.all(this.#gates.map(({ name }) => this.pass(name)));
  }

  async #decide(name: string): Promise<GateState> {
    const gate = this.#gates.find((candidate) => candidate.name === name) as PlanGate;
    const state = this.#state(name);
    try {
      state.status = await this.#judge(gate, state);
    } catch (error) {
      if (!isCancellation(error)) throw error;
      state.status = 'cancelled';
    }
    return state;
  }

  async #judge({ name, metric, on_fail, approve }: PlanGate, state: GateState): Promise<GateStatus> {
    const [stage, benchmark] = await Promise.all(
      [name, ...(metric ? [metric.benchmark] : [])].map((id) => this.#outcomes.get(id) as Promise<NodeOutcome>),
    );
    const missing = [stage, benchmark].find((outcome) => outcome && outcome.status !== 'done');
    if (missing) {
      state.reason = `${missing.id} ${missing.status}`;
      return missing.status === 'cancelled' ? 'cancelled' : 'skipped';
    }
    if (metric && benchmark?.artifact) {
      state.value = await ledger.readMetric({ artifact: benchmark.artifact, metric: metric.name });
      const { holds, words } = compare(metric, state.value);
      state.reason = words;
      if (!holds) return on_fail === 'ask' ? this.#ask(state) : 'failed';
    }
    return approve ? this.#ask(state) : 'passed';
  }

  async #ask(state: GateState): Promise<GateStatus> {
    state.status = 'asks';
    await condition(() => this.#decisions.has(state.name));
    const approved = this.#decisions.get(state.name) === true;
    state.reason = [state.reason, approved ? 'approved' : 'rejected'].filter(Boolean).join('; ');
    return approved ? 'passed' : 'failed';
  }

  #state(name: string): GateState {
    return this.states.find((state) => state.name === name) as GateState;
  }

  #refuseUnasked(name: string): void {
    const state = this.states.find((candidate) => candidate.name === name);
    if (state?.status === 'asks' && !this.#decisions.has(name)) return;
    const names = this.states.map((known) => known.name).join(', ') || 'none';
    throw ApplicationFailure.nonRetryable(
      state ? `the gate ${name} asks nothing: ${state.status}` : `there is no gate ${name}; there is ${names}`,
      'GATE',
    );
  }
}

function compare(
  { name, at_least, at_most }: NonNullable<PlanGate['metric']>,
  value: number | null,
): { holds: boolean; words: string } {
  if (value === null) return { holds: false, words: `${name} was not measured` };
  const shown = Number(value.toPrecision(4));
  if (at_least !== null && value < at_least) return { holds: false, words: `${name} is ${shown}, below ${at_least}` };
  if (at_most !== null && value > at_most) return { holds: false, words: `${name} is ${shown}, above ${at_most}` };
  return { holds: true, words: `${name} is ${shown}` };
}
