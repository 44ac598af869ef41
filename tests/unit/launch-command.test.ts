import { hostname } from 'node:os';
import { expect, test } from 'vitest';
import { cancelCommand, type Launch, launchCommand } from '../../activities/adapters/launch-command.ts';
import { loadProfile } from '../../plan/profile.ts';
import { ROOT } from './plan-fixture.ts';

const { launchers } = loadProfile('cluster', `${ROOT}/profiles`);
const local = { command: ['{{command}}'] };

const launch = (count: number, machines = 1): Launch => ({
  python: '/env/python',
  socket: '/run/t.sock',
  processes: { count, machines },
  job: 'stage-1',
  port: 29500,
});

test('one process is started as it is; several by torchrun, which needs no address on one machine', () => {
  expect(launchCommand(local, launch(1)).join(' ')).toBe('/env/python -m exp_trainer.server --socket /run/t.sock');
  expect(launchCommand(local, launch(4)).join(' ')).toBe(
    '/env/python -m torch.distributed.run --standalone --nproc-per-node=4 -m exp_trainer.server --socket /run/t.sock',
  );
  expect(cancelCommand(local, launch(4))).toBeNull();
});

test('Slurm runs torchrun once on each machine, and they meet at this one', () => {
  const srun = launchers['srun'] ?? local;
  expect(launchCommand(srun, launch(16, 2)).join(' ')).toBe(
    'srun --job-name=stage-1 --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --kill-on-bad-exit=1 ' +
      '/env/python -m torch.distributed.run --nnodes=2 --rdzv-backend=c10d --rdzv-id=stage-1 ' +
      `--rdzv-endpoint=${hostname()}:29500 --nproc-per-node=8 -m exp_trainer.server --address /run/t.sock`,
  );
  expect(cancelCommand(srun, launch(16, 2))).toEqual(['scancel', '--name=stage-1']);
});

test.each(Object.keys(launchers))('the example of %s leaves no name unfilled', (name) => {
  const launcher = launchers[name] ?? local;
  const filled = [...launchCommand(launcher, launch(8)), ...(cancelCommand(launcher, launch(8)) ?? [])];
  expect(filled.filter((argument) => argument.includes('{{'))).toEqual([]);
});

test('the overrides of a pod are JSON and ask for its GPUs', () => {
  const pod = launchCommand(launchers['kubectl'] ?? local, launch(8)).find((item) => item.startsWith('--overrides='));
  expect(JSON.parse(pod?.slice('--overrides='.length) ?? '')).toMatchObject({
    spec: { containers: [{ resources: { limits: { 'nvidia.com/gpu': 8 } } }] },
  });
});
