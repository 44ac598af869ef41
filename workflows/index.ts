/** Everything the workflow bundle registers. Types are the names in the table of docs/architecture.md. */
export { arm } from './arm.ts';
export { node } from './node.ts';
export { rl_stage } from './rl-stage.ts';
export { rollouts } from './rollouts.ts';
export { run } from './run.ts';
export { sft_stage } from './sft-stage.ts';
