// The clients' own backend: it creates their tokens, and serves the page of the browsers under test.
import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';

import { WebSocketServer } from 'ws';

export const SECRET = 'a secret of the client tests, and of nothing else';
const PAGE = new URL('page.html', import.meta.url);

const base64url = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');

/** A token as backends create it; `claims` may have a `jti`. */
export function mint(user, seconds = 3600, claims = {}) {
  const exp = Math.floor(Date.now() / 1000) + seconds;
  const signed = `${base64url({ alg: 'HS256', typ: 'JWT' })}.${base64url({ sub: user, exp, ...claims })}`;
  return `${signed}.${createHmac('sha256', SECRET).update(signed).digest('base64url')}`;
}

export class Backend {
  #answers = new Map(); // the token's path → a function that returns the token
  #pages = new Map(); // a browser's name → what resolves with its WebSocket
  #server = createServer(async (request, response) => {
    const { pathname } = new URL(request.url, 'http://here');
    const token = this.#answers.get(pathname);
    if (token) return response.end(token());
    return response.setHeader('Content-Type', 'text/html').end(await readFile(PAGE));
  });

  static async start() {
    const backend = new Backend();
    new WebSocketServer({ server: backend.#server }).on('connection', (socket, { url }) => {
      backend.#pages.get(new URL(url, 'http://here').searchParams.get('browser'))(socket);
    });
    backend.#server.listen(0, '127.0.0.1');
    await once(backend.#server, 'listening');
    return backend;
  }

  get url() {
    return `http://127.0.0.1:${this.#server.address().port}`;
  }

  /** The URL where a client gets its token, which `token` creates at each request. */
  answer(name, token) {
    const path = `/token/${name}`;
    this.#answers.set(path, token);
    return this.url + path;
  }

  /** The URL of a browser's page, and a promise of the WebSocket over which the page is controlled. */
  page(browser) {
    assert.ok(!this.#pages.has(browser));
    const socket = new Promise((resolve) => this.#pages.set(browser, resolve));
    return { url: `${this.url}/?browser=${browser}`, socket };
  }

  close() {
    this.#server.closeAllConnections();
    this.#server.close();
  }
}
