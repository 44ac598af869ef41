/** Trajectories lie gzipped in the page, some hundred to a chunk; a chunk is inflated when one of its own is opened. */
import { chunkId, type ShownTrajectory } from '../document.ts';

/** Inflated chunks that are kept: going back and forth should not inflate again, reading all should not fill memory. */
const KEPT = 8;

export class Chunks {
  readonly #size: number;
  readonly #inflated = new Map<number, Promise<ShownTrajectory[]>>();

  constructor(size: number) {
    this.#size = size;
  }

  async trajectory(position: number): Promise<ShownTrajectory> {
    const chunk = Math.floor(position / this.#size);
    const found = this.#inflated.get(chunk) ?? inflate(chunk);
    this.#inflated.delete(chunk);
    this.#inflated.set(chunk, found); // the last in the map is the last used
    for (const oldest of this.#inflated.keys()) {
      if (this.#inflated.size <= KEPT) break;
      this.#inflated.delete(oldest);
    }
    const trajectory = (await found)[position % this.#size];
    if (trajectory === undefined) throw new Error(`chunk ${chunk} holds no trajectory ${position}`);
    return trajectory;
  }
}

async function inflate(chunk: number): Promise<ShownTrajectory[]> {
  const element = document.getElementById(chunkId(chunk)) ?? (await whenRead(chunk));
  const bytes = Uint8Array.from(atob(element.textContent.trim()), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  return JSON.parse(await new Response(stream).text()) as ShownTrajectory[];
}

/** Chunks come last in the file: one that is wanted early may not have been read yet. */
async function whenRead(chunk: number): Promise<HTMLElement> {
  if (document.readyState === 'loading')
    await new Promise((resolve) => document.addEventListener('DOMContentLoaded', resolve, { once: true }));
  const element = document.getElementById(chunkId(chunk));
  if (element === null) throw new Error(`the file ends before chunk ${chunk}: it was cut off`);
  return element;
}
