// A fake WebSocket that tests control, and tokens for it.
import { mock } from 'node:test';
import { Tidings } from '../tidings.js';
// Loaded now, so that no test waits for a disk.
import '../tidings-history.js';
import '../tidings-storage.js';

export const START = 1_800_000_000_000;

/** Resolves after all pending promises have been processed (setImmediate is never mocked). */
export const settled = () => new Promise((resolve) => setImmediate(resolve));

/** An unsigned JWT: the client never verifies one. `name` makes tokens distinct. */
export function jwt(name = 'a', lifeMs = 3_600_000, now = START) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  return `${part({ alg: 'HS256' })}.${part({ sub: '42', jti: name, exp: (now + lifeMs) / 1000 })}.sig`;
}

export class FakeSocket {
  readyState = 0;
  sent = [];
  closedByClient = false;

  constructor(url, protocols) {
    this.url = url;
    this.protocols = protocols;
    this.constructor.all.push(this);
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  get auths() {
    return this.sent.filter(({ type }) => type === 'auth').map(({ token }) => token);
  }

  close() {
    this.closedByClient = true;
    this.readyState = 2;
  }

  /** The actions of the gateway. */
  open() {
    this.readyState = 1;
    this.onopen?.();
  }

  frame(frame) {
    if (this.readyState === 0) this.open();
    this.onmessage?.({ data: typeof frame === 'string' ? frame : JSON.stringify(frame) });
  }

  welcome(more = {}) {
    const welcome = { connection: 'c1', user: '42', instance: 'i1', cursor: null, recovered: false };
    this.frame({ type: 'welcome', ...welcome, expires_in_ms: 3_600_000, heartbeat_ms: 25_000, ...more });
  }

  authenticated(leftMs = 3_600_000) {
    this.frame({ type: 'authenticated', expires: (Date.now() + leftMs) / 1000, expires_in_ms: leftMs });
  }

  drop(code = 1006, reason = '') {
    this.readyState = 3;
    this.onclose?.({ code, reason });
  }
}

const STEP_MS = 4_000;

/** Makes this process a page, or a worker, whose events a test fires. */
export function page(t, names = {}) {
  const target = new EventTarget();
  const methods = ['addEventListener', 'removeEventListener'];
  for (const name of methods) globalThis[name] = t.mock.fn(target[name].bind(target));
  Object.assign(globalThis, names);
  t.after(() => [...methods, ...Object.keys(names)].forEach((name) => delete globalThis[name]));
  return {
    fire: async (...types) => {
      for (const type of types) target.dispatchEvent(new Event(type));
      await settled();
    },
    /** The clock goes on while no timer fires. */
    sleep: (ms) => mock.timers.setTime(Date.now() + ms),
    calls: (name) => globalThis[name].mock.calls.map((call) => call.arguments[0]),
  };
}

let mocking = false;

/** Mocked timers and clock, a client on fake sockets, and a record of its events. */
export async function start(t, options = {}) {
  if (!mocking) mock.timers.enable({ apis: ['setTimeout', 'Date'], now: START });
  mocking = true;
  const sockets = [];
  class Socket extends FakeSocket {
    static all = sockets;
  }
  let tokens = 0;
  const token = t.mock.fn(options.token ?? (() => jwt(`token-${(tokens += 1)}`)));
  const { url = 'wss://gateway.test/ws', ...rest } = options;
  const client = new Tidings(url, { WebSocket: Socket, random: () => 0.5, events: null, ...rest, token });
  t.after(() => {
    client.close();
    mock.timers.reset();
    mocking = false;
  });
  const received = { state: [client.state] };
  const names = ['state', 'error', 'notification', 'event', 'welcome', 'reconnect', 'gap', 'unread', 'read', 'retracted'];
  for (const name of names) {
    received[name] ??= [];
    client.on(name, (value) => received[name].push(value));
  }
  await settled();
  // In steps: the mocked clock jumps to the end of a step before any timer fires, as if the machine had slept.
  const pass = async (ms) => {
    for (let left = ms; left > 0 || ms === 0; left -= STEP_MS) {
      mock.timers.tick(Math.min(left, STEP_MS));
      await settled();
      if (ms === 0) break;
    }
  };
  return { client, sockets, token, received, pass, last: () => sockets.at(-1) };
}

/** A client that is live and has been for long enough to count as stable. */
export async function startLive(t, options) {
  const it = await start(t, options);
  it.last().welcome();
  await it.pass(5_000);
  return it;
}
