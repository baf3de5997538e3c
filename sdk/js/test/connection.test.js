import assert from 'node:assert/strict';
import test from 'node:test';
import { backoff, Tidings, TidingsError } from '../tidings.js';
import { FakeSocket, jwt, settled, start, startLive } from './support.js';

const names = (received) => received.state.map((state) => state.name);

test('connects at construction, offering the protocol and the token as subprotocols', async (t) => {
  const { sockets, received } = await start(t, { token: () => jwt('x') });
  assert.equal(sockets.length, 1);
  assert.equal(sockets[0].url, 'wss://gateway.test/ws');
  assert.deepEqual(sockets[0].protocols, ['tidings.v1', `bearer.${jwt('x')}`]);
  assert.deepEqual(names(received), ['connecting']);
});

test('with autoConnect false it is idle until connect()', async (t) => {
  const { client, sockets } = await start(t, { autoConnect: false });
  assert.equal(client.state.name, 'idle');
  assert.equal(sockets.length, 0);
  client.connect();
  await settled();
  assert.equal(sockets.length, 1);
});

test('an http URL becomes a ws URL, and a relative URL is resolved against the page', (t) => {
  const options = { token: () => null, WebSocket: FakeSocket };
  assert.throws(() => new Tidings('/ws', options), TypeError);
  assert.throws(() => new Tidings('ftp://host/ws', options), /no WebSocket address/);
  t.after(() => delete globalThis.location);
  const opened = async (url, page) => {
    if (page) globalThis.location = { href: page };
    class Socket extends FakeSocket {
      static all = [];
    }
    const client = new Tidings(url, { token: () => jwt(), WebSocket: Socket });
    await settled();
    client.close();
    return Socket.all[0].url;
  };
  return Promise.resolve()
    .then(async () => assert.equal(await opened('http://host:8080/ws#top'), 'ws://host:8080/ws'))
    .then(async () => assert.equal(await opened('https://host/ws?a=1'), 'wss://host/ws?a=1'))
    .then(async () => assert.equal(await opened('/ws', 'https://shop.test/cart'), 'wss://shop.test/ws'))
    .then(async () => assert.equal(await opened('ws', 'http://shop.test/a/b'), 'ws://shop.test/a/ws'));
});

test('is live after the welcome, and passes the welcome to listeners', async (t) => {
  const { client, received, last } = await start(t);
  assert.equal(client.welcome, null);
  last().welcome({ connection: 'c9' });
  assert.equal(client.state.name, 'live');
  assert.equal(client.welcome.connection, 'c9');
  assert.equal(received.welcome[0].instance, 'i1');
});

test('the wait is random below a ceiling that doubles and is capped', () => {
  const options = { baseDelayMs: 500, maxDelayMs: 30_000 };
  const at = (attempt, random) => backoff(attempt, { ...options, random: () => random });
  assert.equal(at(0, 0), 0);
  assert.equal(at(0, 0.5), 250);
  assert.equal(at(3, 0.5), 2_000);
  assert.equal(at(50, 0.5), 15_000);
  assert.equal(at(5_000, 0.5), 15_000);
});

test('a failed connect is retried, with longer waits, each time with a fresh token', async (t) => {
  const { received, sockets, token, pass, last } = await start(t);
  const waits = [];
  for (let attempt = 0; attempt < 9; attempt += 1) {
    last().drop(1006);
    const { name, retryInMs, retryAt, code } = received.state.at(-1);
    assert.deepEqual([name, code, retryAt], ['waiting', 1006, Date.now() + retryInMs]);
    waits.push(retryInMs);
    await pass(retryInMs);
  }
  assert.deepEqual(waits, [250, 500, 1_000, 2_000, 4_000, 8_000, 15_000, 15_000, 15_000]);
  assert.equal(sockets.length, 10);
  assert.equal(new Set(token.mock.calls.map(({ result }) => result)).size, 10);
  assert.equal(token.mock.callCount(), 10);
  assert.equal(received.error.length, 9);
  assert.ok(received.error[0] instanceof TidingsError);
  assert.equal(received.error[0].code, 1006);
});

test('attempts are counted from zero only after a connection has lasted', async (t) => {
  const { client, pass, last } = await start(t);
  const flap = async (liveMs) => {
    last().welcome();
    await pass(liveMs);
    last().drop(1006);
    const { retryInMs } = client.state;
    await pass(retryInMs);
    return retryInMs;
  };
  assert.deepEqual([await flap(0), await flap(100), await flap(4_999)], [250, 500, 1_000]);
  assert.equal(await flap(5_000), 250);
});

for (const code of [4003, 4004, 4011, 4012, 4042]) {
  test(`a close with ${code} is final and reports the reason`, async (t) => {
    const { client, sockets, received, pass, last } = await startLive(t);
    last().drop(code, 'because');
    assert.deepEqual(client.state, { name: 'closed', code, reason: 'because' });
    assert.deepEqual([received.error[0].code, received.error[0].message], [code, 'because']);
    await pass(600_000);
    assert.equal(sockets.length, 1);
  });
}

for (const code of [1000, 1001, 1006, 1009, 1011, 4100, 4101, 4102]) {
  test(`a close with ${code} backs off and retries`, async (t) => {
    const { client, sockets, pass, last } = await startLive(t);
    last().drop(code);
    assert.equal(client.state.retryInMs, 250);
    await pass(250);
    assert.equal(sockets.length, 2);
  });
}

for (const code of [4200, 4201, 4203, 4205, 4299]) {
  test(`a close with ${code} retries within a second, and backs off only if that fails`, async (t) => {
    const { client, pass, last } = await startLive(t);
    last().drop(code);
    assert.equal(client.state.retryInMs, 500);
    await pass(500);
    last().drop(code);
    assert.equal(client.state.retryInMs, 500); // backoff(1)
    await pass(500);
    last().drop(code);
    assert.equal(client.state.retryInMs, 1_000);
  });
}

test('an expired token (4010) is replaced by a fresh one, promptly', async (t) => {
  const { client, sockets, pass, last } = await startLive(t);
  last().drop(4010);
  assert.equal(client.state.retryInMs, 500);
  await pass(500);
  assert.notEqual(sockets[1].protocols[1], sockets[0].protocols[1]);
});

test('a refused token (4009) is retried once with a different one, then final', async (t) => {
  const { client, sockets, pass, last } = await startLive(t);
  last().drop(4009);
  await pass(500);
  assert.equal(sockets.length, 2);
  last().drop(4009, 'revoked');
  assert.deepEqual(client.state, { name: 'closed', code: 4009, reason: 'revoked' });
});

test('a refused token (4009) is final at once if the callback returns the same token', async (t) => {
  const { client, sockets, pass, last } = await startLive(t, { token: () => jwt('same') });
  last().drop(4009);
  await pass(500);
  assert.equal(client.state.name, 'closed');
  assert.equal(client.state.code, 4009);
  assert.equal(sockets.length, 1);
});

test('a missing welcome or token within the connect timeout is an ordinary failure', async (t) => {
  let hang = true;
  const { client, sockets, received, pass } = await start(t, { token: () => (hang ? new Promise(() => {}) : jwt()) });
  await pass(10_000);
  assert.deepEqual([client.state.name, client.state.code], ['waiting', 'connect_timeout']);
  assert.equal(received.error[0].code, 'connect_timeout');
  hang = false;
  await pass(client.state.retryInMs);
  assert.equal(sockets.length, 1);
  await pass(10_000);
  assert.ok(sockets[0].closedByClient);
  assert.equal(client.state.name, 'waiting');
});

test('a token callback that fails is retried, and its error is the cause', async (t) => {
  const failure = new Error('offline');
  let fail = true;
  const token = async () => {
    if (fail) throw failure;
    return jwt();
  };
  const { client, sockets, received, pass } = await start(t, { token });
  assert.equal(received.error[0].code, 'token_failed');
  assert.equal(received.error[0].cause, failure);
  fail = false;
  await pass(client.state.retryInMs);
  assert.equal(sockets.length, 1);
});

test('a token callback with no token closes the client', async (t) => {
  const { client, sockets } = await start(t, { token: async () => null });
  assert.deepEqual([client.state.name, client.state.code], ['closed', 'no_token']);
  assert.equal(sockets.length, 0);
});

test('an error of the WebSocket constructor ends in closed and does not carry the token', async (t) => {
  class Refusing {
    constructor(url, protocols) {
      throw new SyntaxError(`no ${protocols}`);
    }
  }
  const { client, received } = await start(t, { WebSocket: Refusing });
  assert.equal(client.state.code, 'refused_here');
  assert.match(received.error[0].message, /SyntaxError/);
  assert.doesNotMatch(received.error[0].message + received.error[0].cause + client.state.reason, /bearer/);
});

test('the client exposes the token nowhere', async (t) => {
  const { client } = await startLive(t, { token: () => jwt('secret') });
  const { inspect } = await import('node:util');
  assert.ok(!inspect(client, { depth: 9, showHidden: true }).includes(jwt('secret')));
});

test('close() is final, closes the socket, and nothing is delivered after it', async (t) => {
  const { client, sockets, received, pass, last } = await startLive(t);
  client.close();
  assert.deepEqual([client.state.name, client.state.code], ['closed', 1000]);
  assert.ok(last().closedByClient);
  last().frame({ type: 'event', event: 'notification', data: 1 });
  last().drop(1000);
  await pass(600_000);
  assert.equal(sockets.length, 1);
  assert.deepEqual([received.notification, received.error], [[], []]);
});

test('close() while the token is being fetched opens no socket', async (t) => {
  let give;
  const { client, sockets } = await start(t, { token: () => new Promise((resolve) => (give = resolve)) });
  client.close();
  give(jwt());
  await settled();
  assert.equal(sockets.length, 0);
  assert.equal(client.state.name, 'closed');
});

test('a listener may close the client as it becomes live, and receives no further events', async (t) => {
  const { client, received, last } = await start(t);
  client.on('state', ({ name }) => name === 'live' && client.close());
  last().welcome();
  assert.equal(client.state.name, 'closed');
  assert.deepEqual(received.welcome, []);
});

test('an option of undefined counts as missing', async (t) => {
  const { client, sockets } = await start(t, { cursor: undefined, autoConnect: undefined, baseDelayMs: undefined });
  assert.doesNotMatch(sockets[0].url, /resume/);
  sockets[0].drop(1006);
  assert.equal(client.state.retryInMs, 250);
});

test('connect() after closed starts over', async (t) => {
  const { client, sockets, last } = await startLive(t);
  last().drop(4011);
  client.connect();
  await settled();
  last().welcome();
  assert.equal(sockets.length, 2);
  assert.equal(client.state.name, 'live');
});

test('retryNow() ends a wait at once and changes nothing else', async (t) => {
  const { client, sockets, pass, last } = await startLive(t);
  client.retryNow();
  assert.equal(sockets.length, 1);
  last().drop(1006);
  client.retryNow();
  await settled();
  assert.equal(sockets.length, 2);
  await pass(5_000);
  assert.equal(sockets.length, 2); // The timer of the wait is gone.
});
