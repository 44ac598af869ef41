/** A model as one who says what a question asks for: what it is asked, and what its reply means. Pure. */
import { CAPABILITIES, type Capability } from '../../../schemas/task.ts';

/** The slot is filled once: what a question holds is never read as one. */
export const capabilityPrompt = (template: string, question: string): string =>
  template.replace('{question}', () => question);

const NAMES = CAPABILITIES.map((name) => name.replace('_', '[ _-]')).join('|');
const SAID = new RegExp(`\\bcapability\\W*:\\W*(${NAMES}|\\w+)`, 'gi');

/** Null when the reply decides nothing. The last `capability: NAME` counts: a model may repeat the instruction. */
export function readCapability(reply: string): Capability | null {
  const said = reply.replace(/^[\s\S]*<\/think>/, '');
  const last = [...said.matchAll(SAID)].at(-1)?.[1]?.toLowerCase().replace(/[ -]/, '_');
  return CAPABILITIES.find((name) => name === last) ?? null;
}
