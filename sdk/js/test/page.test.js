// What a page, a device or a worker does: offline and online, sleep, the back/forward cache, storage, no window.
import assert from 'node:assert/strict';
import test from 'node:test';
import { Tidings } from '../tidings.js';
import { FakeSocket, jwt, page, start, startLive } from './support.js';

const LISTENED = ['online', 'offline', 'visibilitychange', 'pagehide', 'pageshow'];

test('a network that returns ends a wait at once', async (t) => {
  const { fire } = page(t);
  const { client, sockets, last } = await startLive(t);
  last().drop(1006);
  await fire('visibilitychange');
  assert.equal(sockets.length, 1);
  await fire('online');
  assert.equal(sockets.length, 2);
  client.close();
  await fire('online', 'pageshow');
  assert.equal(sockets.length, 2);
});

test('a network that returns replaces an attempt that was held back', async (t) => {
  const { fire } = page(t);
  const { client, sockets, last } = await start(t);
  await fire('offline', 'online');
  assert.equal(sockets.length, 2);
  assert.ok(sockets[0].closedByClient);
  last().open();
  await fire('online');
  assert.equal(sockets.length, 2); // It has been answered.
  last().welcome();
  assert.equal(client.state.name, 'live');
});

test('offline and online are part of the state', async (t) => {
  const { fire } = page(t, { navigator: { onLine: false } });
  const { client, received, last } = await start(t);
  assert.deepEqual(client.state, { name: 'connecting', attempt: 0, offline: true });
  await fire('online');
  assert.deepEqual(client.state, { name: 'connecting', attempt: 0 });
  last().welcome();
  await fire('offline');
  assert.deepEqual(client.state, { name: 'live', transport: 'websocket', offline: true });
  assert.equal(received.state.at(-1), client.state);
  last().frame({ type: 'event', event: 'notification', data: 'still connected' });
  assert.deepEqual(received.notification, ['still connected']);
  last().drop(1006);
  assert.deepEqual([client.state.name, client.state.offline], ['waiting', true]);
  await fire('online');
  assert.deepEqual(client.state, { name: 'connecting', attempt: 1 });
});

test('a network that returns probes the connection: a dead one is replaced within 5 s, a live one kept', async (t) => {
  const { fire } = page(t);
  const { client, sockets, received, pass, last } = await startLive(t);
  await fire('offline', 'online');
  assert.deepEqual(last().auths, [jwt('token-1')]);
  last().authenticated();
  await pass(5_000);
  assert.deepEqual([sockets.length, client.state.name], [1, 'live']);
  await fire('offline', 'online');
  await pass(1_000);
  last().frame({ type: 'event', event: 'notification', data: 'any frame will do' });
  await pass(5_000);
  assert.equal(sockets.length, 1);
  await fire('offline', 'online');
  await pass(2_000);
  await pass(client.state.retryInMs); // At most 500 ms.
  assert.equal(sockets.length, 2);
  assert.ok(sockets[0].closedByClient);
  assert.equal(received.error[0].code, 'silent');
  last().welcome();
  assert.equal(client.state.name, 'live');
});

for (const event of ['visibilitychange', 'a timer']) {
  test(`after a sleep of the machine, at ${event}, a dead connection is replaced within 5 s`, async (t) => {
    const { fire, sleep } = page(t);
    const { client, sockets, pass, last } = await startLive(t);
    await fire('visibilitychange');
    assert.deepEqual(last().auths, []); // No sleep.
    sleep(20_000);
    if (event === 'a timer') await pass(1);
    else await fire(event);
    assert.equal(last().auths.length, 1);
    await pass(2_000);
    await pass(client.state.retryInMs);
    assert.equal(sockets.length, 2);
    last().welcome();
    assert.equal(client.state.name, 'live');
  });
}

test('the delayed timers of a hidden page are no sleep', async (t) => {
  const { sleep } = page(t, { document: { hidden: true } });
  const { sockets, pass, last } = await startLive(t);
  last().welcome({ heartbeat_ms: 0 });
  sleep(60_000);
  await pass(1);
  assert.deepEqual([sockets.length, last().auths], [1, []]);
});

test('a page that is left closes its socket, and comes back without an error', async (t) => {
  const { fire } = page(t);
  const { client, sockets, received, pass, last } = await startLive(t);
  last().frame({ type: 'event', event: 'notification', data: 1, id: 'k-1' });
  client.ack();
  const [left] = sockets;
  await fire('pagehide');
  assert.ok(left.closedByClient);
  assert.deepEqual(left.sent, [{ type: 'ack', id: 'k-1' }]);
  assert.equal(client.state.name, 'idle');
  left.drop(1006); // Some browsers report the close only after the page was shown again.
  await pass(60_000);
  assert.equal(sockets.length, 1);
  await fire('pageshow');
  left.drop(1001, 'suspended');
  assert.match(last().url, /resume=k-1/);
  last().welcome({ cursor: 'k-1', recovered: true });
  assert.deepEqual([client.state.name, sockets.length, received.error], ['live', 2, []]);
});

test('a page that comes back does not wait for what failed before it was left', async (t) => {
  const { fire } = page(t);
  const { client, sockets, last } = await start(t, { baseDelayMs: 20_000 });
  last().drop(1006);
  assert.equal(client.state.name, 'waiting');
  await fire('pagehide', 'pageshow');
  assert.equal(sockets.length, 2);
  client.close();
  await fire('pagehide', 'pageshow');
  assert.equal(sockets.length, 2);
});

test('a page that comes back is offline only if the device still is', async (t) => {
  const navigator = { onLine: true };
  const { fire } = page(t, { navigator });
  const { client } = await startLive(t);
  await fire('offline');
  for (const onLine of [false, true]) {
    await fire('pagehide'); // From now on, the page gets no events.
    navigator.onLine = onLine;
    await fire('pageshow');
    assert.deepEqual([client.state.name, client.state.offline === true], ['connecting', !onLine]);
  }
});

test('the first pageshow of a page changes nothing', async (t) => {
  const { fire } = page(t);
  const { sockets, last } = await start(t);
  await fire('pageshow');
  last().welcome();
  await fire('pageshow');
  assert.deepEqual([sockets.length, last().sent], [1, []]);
});

test('a closed client leaves no listener', async (t) => {
  const { calls } = page(t);
  const { client, last } = await startLive(t);
  assert.deepEqual([calls('addEventListener'), calls('removeEventListener')], [LISTENED, []]);
  last().drop(4011);
  assert.deepEqual(calls('removeEventListener'), LISTENED);
  client.connect();
  client.close();
  assert.deepEqual(calls('removeEventListener'), [...LISTENED, ...LISTENED]);
});

test('a worker takes a storage in place of localStorage', async (t) => {
  page(t);
  const kept = new Map([['tidings wss://gateway.test/ws 42', 'k-1']]);
  const storage = { getItem: (key) => kept.get(key) ?? null, setItem: (key, value) => kept.set(key, value) };
  const { received, last } = await start(t, { storageKey: 'tidings', storage });
  assert.match(last().url, /resume=k-1/);
  last().welcome({ cursor: 'k-1', recovered: true });
  last().frame({ type: 'event', event: 'notification', data: 1, id: 'k-2' });
  assert.deepEqual([...kept.values(), received.error], ['k-2', []]);
});

test('where there is no localStorage, a storage key is reported once, and nothing is thrown', async (t) => {
  assert.equal(globalThis.localStorage, undefined);
  const { client, received, last } = await start(t, { storageKey: 'tidings' });
  last().welcome({ cursor: 'k-1' });
  assert.deepEqual([client.state.name, received.error.map(({ code }) => code)], ['live', ['storage_failed']]);
});

test('a page rendered on a server may construct a client: what is missing there counts at connect()', async (t) => {
  assert.equal(globalThis.location, undefined);
  const had = Object.getOwnPropertyDescriptor(globalThis, 'WebSocket');
  delete globalThis.WebSocket;
  t.after(() => had && Object.defineProperty(globalThis, 'WebSocket', had));
  const client = new Tidings('/ws', { autoConnect: false });
  assert.equal(client.state.name, 'idle');
  assert.throws(() => client.connect(), /options.token must be a function/);
  assert.throws(() => new Tidings('/ws', { token: () => null, autoConnect: false }).connect(), /no WebSocket here/);
  assert.throws(() => new Tidings('/ws', { token: () => null, WebSocket: FakeSocket }), TypeError);
  assert.equal(client.state.name, 'idle');
  client.close();
});
