// A fake WebSocket that tests control, and tokens for it.
import { mock } from 'node:test';
import { Tidings } from '../tidings.js';

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

  close() {
    this.closedByClient = true;
    this.readyState = 2;
  }

  /** The actions of the gateway. */
  frame(frame) {
    this.readyState = 1;
    this.onmessage?.({ data: typeof frame === 'string' ? frame : JSON.stringify(frame) });
  }

  welcome(more = {}) {
    const welcome = { connection: 'c1', user: '42', instance: 'i1', cursor: null, recovered: false };
    this.frame({ type: 'welcome', ...welcome, heartbeat_ms: 25_000, ...more });
  }

  drop(code = 1006, reason = '') {
    this.readyState = 3;
    this.onclose?.({ code, reason });
  }
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
  const client = new Tidings(url, { WebSocket: Socket, random: () => 0.5, ...rest, token });
  t.after(() => {
    client.close();
    mock.timers.reset();
    mocking = false;
  });
  const heard = { state: [client.state], error: [], notification: [], event: [], welcome: [], reconnect: [], gap: [] };
  for (const name of Object.keys(heard)) client.on(name, (value) => heard[name].push(value));
  await settled();
  const pass = async (ms) => {
    mock.timers.tick(ms);
    await settled();
  };
  return { client, sockets, token, heard, pass, last: () => sockets.at(-1) };
}

/** A client that is live and has been for long enough to count as stable. */
export async function startLive(t, options) {
  const it = await start(t, options);
  it.last().welcome();
  await it.pass(5_000);
  return it;
}
