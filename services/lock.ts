/** One process at a time, across processes. An abstract socket is held by the kernel: it cannot outlive its owner. */
import { createServer, type Server } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

export async function withLock<T>(name: string, onWait: () => void, work: () => Promise<T>): Promise<T> {
  let server = await tryLock(name);
  if (server === undefined) onWait();
  while (server === undefined) {
    await sleep(100);
    server = await tryLock(name);
  }
  try {
    return await work();
  } finally {
    server.close();
  }
}

function tryLock(name: string): Promise<Server | undefined> {
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => socket.destroy());
    server.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EADDRINUSE') resolve(undefined);
      else reject(error);
    });
    server.listen({ path: `\0exp-${process.getuid?.() ?? 0}-${name}`, exclusive: true }, () => resolve(server));
  });
}
