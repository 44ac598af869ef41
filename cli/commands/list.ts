import { parseArgs } from 'node:util';
import type { Command } from '../command.ts';
import { withStack } from '../open-stack.ts';
import { listRuns, type RunRow } from '../run-state.ts';
import { clock, detectTerminal, renderTable } from '../terminal.ts';

export const command: Command = {
  name: 'list',
  summary: 'List the runs, newest first.',
  usage: 'list [--active] [--profile P] [--json]',
  async run(argv, io) {
    const { values } = parseArgs({
      args: [...argv],
      options: {
        active: { type: 'boolean', default: false },
        profile: { type: 'string' },
        json: { type: 'boolean', default: false },
      },
    });
    const runs = await withStack(values.profile, ({ pool }) => listRuns(pool, { active: values.active }));
    if (values.json) {
      io.out(JSON.stringify({ runs: runs.map(toJson) }));
      return 0;
    }
    if (runs.length === 0) {
      io.out(values.active ? 'no run is active' : 'no run yet; `exp submit SPEC` makes one');
      return 0;
    }
    const columns = [
      { title: 'run' },
      { title: 'status' },
      { title: 'begun' },
      { title: 'took', align: 'right' as const },
    ];
    for (const line of renderTable(detectTerminal(io), columns, runs.map(toCells))) io.out(line);
    return 0;
  },
};

function toJson({ id, name, profile, status, created_at, ended_at, mlflow_url }: RunRow) {
  return { run: id, name, profile, status, created_at, ended_at, mlflow_url };
}

function toCells({ id, status, created_at, ended_at }: RunRow): string[] {
  const took = ((ended_at ?? new Date()).getTime() - created_at.getTime()) / 1000;
  return [id, status, `${created_at.toISOString().slice(0, 16).replace('T', ' ')} UTC`, clock(took)];
}
