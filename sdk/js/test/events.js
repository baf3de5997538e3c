// A gateway's event streams, in place of `fetch`, that tests control; and what browsers have for tabs.
import { FakeSocket, jwt, settled, start } from './support.js';
import '../tidings-sse.js'; // The client's own import is then immediate.

export class FakeStream {
  aborted = false;
  #controller;

  constructor(url, { headers, signal }) {
    Object.assign(this, { url, headers });
    this.response = new Promise((resolve, reject) => {
      Object.assign(this, { respond: resolve, reject });
      signal.addEventListener('abort', () => {
        this.aborted = true;
        const reason = new DOMException('aborted', 'AbortError');
        reject(reason);
        this.#controller?.error(reason);
      });
    });
  }

  /** The actions of the gateway. */
  async open() {
    const body = new ReadableStream({ start: (controller) => (this.#controller = controller) });
    this.respond(new Response(body, { headers: { 'Content-Type': 'text/event-stream' } }));
    await settled();
  }

  async refuse(status, code) {
    this.respond(Response.json({ error: { code, message: `because of ${code}` } }, { status }));
    await settled();
  }

  async text(text) {
    if (!this.#controller) await this.open();
    if (!this.aborted) this.#controller.enqueue(new TextEncoder().encode(text));
    await settled();
  }

  frame(frame) {
    return this.text(`data: ${JSON.stringify(frame)}\n\n`);
  }

  /** Without a heartbeat or an expiry, unless a test is about these. */
  welcome(more = {}) {
    const welcome = { connection: 'c1', user: '42', instance: 'i1', cursor: null, recovered: false, unread: 0 };
    return this.frame({ type: 'welcome', ...welcome, expires_in_ms: null, heartbeat_ms: 0, ...more });
  }

  async end() {
    this.#controller.close();
    await settled();
  }

  /** The network's: a stream that is open breaks, too. */
  async fail() {
    const failure = new TypeError('network');
    this.reject(failure);
    this.#controller?.error(failure);
    await settled();
  }
}

/** Replaces `fetch`; returns the streams that were requested. */
export function gateway(t) {
  const streams = [];
  const { fetch } = globalThis;
  globalThis.fetch = (url, options) => {
    streams.push(new FakeStream(url, options));
    return streams.at(-1).response;
  };
  t.after(() => (globalThis.fetch = fetch));
  return streams;
}

/** A client whose two attempts at a WebSocket did not open, up to its first attempt at a stream. */
export async function blocked(t, options = {}) {
  const streams = gateway(t);
  const it = await start(t, { events: undefined, ...options });
  const drop = async () => {
    it.last().drop(1006);
    await it.pass(it.client.state.retryInMs);
    await settled();
  };
  await drop();
  await drop();
  return { ...it, streams, stream: () => streams.at(-1) };
}

/** The same, live on a stream for long enough to count as stable. */
export async function streaming(t, { welcome, ...options } = {}) {
  const it = await blocked(t, options);
  await it.stream().welcome(welcome);
  await it.pass(5_000);
  return it;
}

export { FakeSocket, jwt, settled };
