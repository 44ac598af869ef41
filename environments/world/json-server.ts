/** JSON over HTTP, POST only: the part that every tool server shares. */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { ExpError } from '../../schemas/errors.ts';

/** A request that cannot be answered, by no fault of ours: its status says why. */
export class BadRequest extends Error {
  override readonly name = 'BadRequest';
  readonly status: 400 | 404;

  constructor(status: 400 | 404, message: string) {
    super(message);
    this.status = status;
  }
}

/** What the path after the route's own holds is `rest`: '' or an id. */
export type Route = (body: Record<string, unknown>, rest: string) => Promise<object>;

export interface JsonServer {
  port: number;
  close(): Promise<void>;
}

const MAX_BODY = 2 ** 25;

/** Routes by their first path segment. Throws SERVE when the address cannot be listened on. */
export async function serveJson(
  routes: Readonly<Record<string, Route>>,
  { host, port }: { host: string; port: number },
): Promise<JsonServer> {
  const server = createServer((request, response) => void answer(routes, request, response));
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause) => reject(new ExpError('SERVE', `${host}:${port}`, cause.message, { cause })));
    server.listen({ host, port }, resolve);
  });
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

async function answer(
  routes: Readonly<Record<string, Route>>,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const [, name = '', ...rest] = (request.url ?? '').split('?')[0]?.split('/') ?? [];
  try {
    const route = Object.hasOwn(routes, name) ? routes[name] : undefined;
    if (!route || request.method !== 'POST')
      throw new BadRequest(404, `there is POST /${Object.keys(routes).join(', POST /')}`);
    send(response, 200, await route(await readBody(request), decodeURIComponent(rest.join('/'))));
  } catch (error) {
    const status = error instanceof BadRequest ? error.status : 500;
    send(response, status, { error: error instanceof Error ? error.message : String(error) });
  }
}

function send(response: ServerResponse, status: number, body: object): void {
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(JSON.stringify(body));
}

async function readBody(request: IncomingMessage): Promise<Record<string, unknown>> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > MAX_BODY) throw new BadRequest(400, `a body has at most ${MAX_BODY} bytes`);
    chunks.push(chunk);
  }
  let body: unknown;
  try {
    body = JSON.parse(Buffer.concat(chunks).toString('utf8'));
  } catch {
    throw new BadRequest(400, 'the body is not JSON');
  }
  if (typeof body !== 'object' || body === null || Array.isArray(body))
    throw new BadRequest(400, 'the body is not a JSON object');
  return body as Record<string, unknown>;
}
