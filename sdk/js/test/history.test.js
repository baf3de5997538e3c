// A client's position in the user's history: resume, acknowledgements, and both across page loads.
import assert from 'node:assert/strict';
import test from 'node:test';
import { Tidings } from '../tidings.js';
import { FakeSocket, page, START, start, startLive } from './support.js';

const EPOCH = '00000000000000aa';
const at = (number, ms = 1_000, epoch = EPOCH) => `${epoch}-${ms}-${number}`;
const event = (number, more) => ({ type: 'event', event: 'notification', data: number, id: at(number), ts: 1, ...more });
const asked = (socket, name = 'resume') => new URL(socket.url).searchParams.get(name);
const acks = (socket) => socket.sent.filter(({ type }) => type === 'ack').map(({ id }) => id);
const KEY = 'tidings wss://gateway.test/ws';

/** A browser's storage, for as long as the test runs. */
function browser(t, kept = {}, broken = () => {}) {
  const items = new Map(Object.entries(kept));
  const storage = {
    getItem: (key) => (broken('get'), items.get(key) ?? null),
    setItem: (key, value) => (broken('set'), void items.set(key, value)),
  };
  const had = Object.getOwnPropertyDescriptor(globalThis, 'localStorage');
  Object.defineProperty(globalThis, 'localStorage', { value: storage, configurable: true });
  t.after(() => (had ? Object.defineProperty(globalThis, 'localStorage', had) : delete globalThis.localStorage));
  return items;
}

const claims = (sub) => Buffer.from(JSON.stringify({ sub, exp: START / 1000 + 3600 })).toString('base64url');
const tokenOf = (sub) => `${Buffer.from('{"alg":"HS256"}').toString('base64url')}.${claims(sub)}.x`;

test('ack() sends the last durable event that listeners received, once per turn', async (t) => {
  const { client, pass, last } = await startLive(t);
  client.on('notification', () => client.ack());
  for (const number of [1, 2, 3]) last().frame(event(number));
  assert.deepEqual(acks(last()), []);
  await pass(0);
  last().frame({ type: 'event', event: 'notification', data: 'stored nowhere' });
  await pass(100);
  assert.deepEqual(last().sent, [{ type: 'ack', id: at(3) }]);
});

test('acks in quick succession are sent at intervals, the last one always', async (t) => {
  const { client, pass, last } = await startLive(t);
  for (let number = 1; number <= 20; number += 1) {
    client.ack(at(number));
    await pass(10);
  }
  assert.equal(acks(last()).length, 2);
  await pass(100);
  assert.deepEqual(acks(last()), [at(1), at(11), at(20)]);
});

test('an ack never goes back', async (t) => {
  const { client, pass, last } = await startLive(t);
  client.ack(at(10));
  client.ack(at(9));
  client.ack(at(12, 900));
  await pass(0);
  assert.deepEqual(acks(last()), [at(10)]);
  client.ack(at(1, 2_000)); // A history that has ended begins again, later.
  await pass(100);
  assert.equal(acks(last()).at(-1), at(1, 2_000));
});

test('ack() without an event does nothing, and an invalid id is refused', async (t) => {
  const { client, pass, last } = await startLive(t);
  client.ack();
  client.ack(null);
  client.ack(client.cursor);
  await pass(100);
  assert.deepEqual(last().sent, []);
  assert.throws(() => client.ack(7), TypeError);
  assert.throws(() => client.ack({ id: at(1) }), TypeError);
});

test('an ack while disconnected is sent after the next welcome, the furthest only', async (t) => {
  const { client, pass, last } = await startLive(t);
  last().frame(event(5));
  last().drop(1006);
  client.ack();
  client.ack(at(3));
  await pass(250);
  assert.deepEqual(acks(last()), []);
  last().welcome({ cursor: at(5), recovered: true });
  assert.deepEqual(acks(last()), []);
  await pass(0);
  assert.deepEqual(acks(last()), [at(5)]);
});

test('an ack is sent again after each welcome: the connection that accepted it may have been dead', async (t) => {
  const { client, pass, last } = await startLive(t);
  last().frame(event(5));
  client.ack();
  for (const welcome of [{ cursor: at(5), recovered: true }, { cursor: null }]) {
    await pass(0);
    last().drop(1006);
    await pass(1_000);
    last().welcome(welcome);
    await pass(100);
    assert.deepEqual(acks(last()), [at(5)]);
  }
});

test('a pending ack is sent before the client closes or the page unloads', async (t) => {
  const { fire } = page(t);
  const { client, last } = await startLive(t);
  client.ack(at(1));
  await fire('visibilitychange');
  assert.deepEqual(acks(last()), [at(1)]);
  const socket = last();
  client.ack(at(2));
  client.close();
  assert.deepEqual(acks(socket), [at(1), at(2)]);
});

test('an ack in an earlier epoch, or of another user, is dropped', async (t) => {
  for (const welcome of [{ cursor: at(1, 2_000, 'ffff000000000000') }, { user: '43', cursor: at(5) }]) {
    const { client, pass, last } = await startLive(t);
    client.ack(at(5));
    await pass(0);
    last().drop(1006);
    await pass(250);
    last().welcome(welcome);
    await pass(1_000);
    assert.deepEqual(acks(last()), []);
    client.close();
  }
});

test('the cursor moves after the listeners of an event have run, even if one of them throws', async (t) => {
  globalThis.reportError = () => {};
  t.after(() => delete globalThis.reportError);
  const kept = browser(t);
  const { client, last } = await startLive(t, { storageKey: 'tidings' });
  const seen = [];
  client.on('event', () => {
    seen.push([client.cursor, kept.get(`${KEY} 42`)]);
    throw new Error('thrown');
  });
  last().frame(event(1));
  last().frame(event(2));
  assert.deepEqual(seen, [[null, undefined], [at(1), at(1)]]);
  assert.deepEqual([client.cursor, kept.get(`${KEY} 42`)], [at(2), at(2)]);
});

test('an event that arrives again while its listeners run is a duplicate', async (t) => {
  const { client, received, last } = await startLive(t);
  client.on('event', () => received.event.length < 5 && last().frame(event(1)));
  last().frame(event(1));
  assert.deepEqual(received.event, [1]);
});

test('a welcome without a cursor keeps the cursor, and is a gap after a resume', async (t) => {
  const { client, received, last } = await start(t, { cursor: at(4) });
  last().welcome({ cursor: null });
  assert.equal(client.cursor, at(4));
  assert.deepEqual(received.gap, [{ since: at(4), cursor: at(4) }]);
});

for (const [code, delay] of [[4102, 250], [4205, 500]]) {
  test(`a close with ${code} resumes from the cursor`, async (t) => {
    const { client, received, pass, last } = await startLive(t);
    last().frame(event(7));
    last().drop(code);
    assert.equal(client.state.retryInMs, delay);
    await pass(delay);
    assert.equal(asked(last()), at(7));
    last().drop(code); // Before any welcome.
    await pass(1_000);
    assert.equal(asked(last()), at(7));
    last().welcome({ cursor: at(7), recovered: true });
    assert.deepEqual(received.gap, []);
  });
}

test('the unread count of the welcome is passed to listeners', async (t) => {
  const { client, last } = await start(t);
  last().welcome({ unread: 3 });
  assert.equal(client.welcome.unread, 3);
});

test('a device is named in the URL, and a name that the gateway would refuse is refused here', async (t) => {
  const { sockets } = await start(t, { device: 'work & home', url: 'wss://gateway.test/ws?a=1' });
  assert.deepEqual([asked(sockets[0], 'device'), asked(sockets[0], 'a')], ['work & home', '1']);
  const options = { token: () => null, autoConnect: false, WebSocket: FakeSocket };
  for (const device of ['', 'a\u0000', 'a\u0085', 'x'.repeat(65), 'ä'.repeat(33), 7]) {
    assert.throws(() => new Tidings('wss://gateway.test/ws', { ...options, device }), /1 to 64 bytes/);
  }
  for (const device of ['x'.repeat(64), 'ä'.repeat(32)]) new Tidings('wss://gateway.test/ws', { ...options, device });
});

test('resume acked starts after the read position of the device, and continues from the cursor', async (t) => {
  const { client, received, pass, last } = await start(t, { resume: 'acked' });
  assert.equal(asked(last()), 'acked');
  last().drop(1006);
  await pass(250);
  assert.equal(asked(last()), 'acked');
  last().welcome({ cursor: at(3), recovered: true });
  assert.equal(client.cursor, at(3)); // Where the replay begins.
  last().frame(event(4));
  last().drop(1006);
  await pass(1_000);
  assert.equal(asked(last()), at(4));
  assert.deepEqual(received.gap, []);
});

test('resume acked that is not recovered is a gap without a start', async (t) => {
  const { client, received, last } = await start(t, { resume: 'acked' });
  last().welcome({ cursor: at(9) });
  assert.deepEqual(received.gap, [{ since: null, cursor: at(9) }]);
  assert.equal(client.cursor, at(9));
  assert.throws(() => new Tidings('wss://h/ws', { token: () => null, resume: at(9) }), /options.resume/);
});

test('the next page of the same user resumes from the stored cursor', async (t) => {
  const kept = browser(t);
  const first = await start(t, { storageKey: 'tidings' });
  assert.equal(asked(first.last()), null);
  first.last().welcome({ cursor: at(0) });
  assert.deepEqual(Object.fromEntries(kept), { [`${KEY} 42`]: at(0) });
  first.last().frame(event(1));
  first.client.close();

  const next = await start(t, { storageKey: 'tidings', url: 'wss://gateway.test/ws?secret=1#x' });
  assert.equal(asked(next.last()), at(1));
  next.last().welcome({ cursor: at(1), recovered: true });
  assert.deepEqual([next.received.gap, next.client.cursor], [[], at(1)]);
  assert.equal(kept.size, 1);
  for (const other of [{ url: 'wss://gateway.test/other' }, { storageKey: 'mine' }, { token: () => tokenOf('43') }, {}]) {
    const { last } = await start(t, { storageKey: other.url || other.token ? 'tidings' : undefined, ...other });
    assert.equal(asked(last()), null);
  }
});

test('a user id that is a number or contains non-ASCII letters finds its cursor', async (t) => {
  for (const [sub, user] of [[7, '7'], ['Grüße €', 'Grüße €']]) {
    browser(t, { [`${KEY} ${user}`]: at(4) });
    const { client, sockets, pass, last } = await start(t, { storageKey: 'tidings', token: () => tokenOf(sub) });
    assert.deepEqual([asked(last()), client.cursor], [at(4), at(4)]);
    last().welcome({ user, cursor: at(4), recovered: true });
    await pass(1_000);
    assert.equal(sockets.length, 1);
  }
});

test('another user\'s cursor is not a gap for a page that received no event', async (t) => {
  const kept = browser(t, { [`${KEY} 42`]: at(4) });
  const { client, received, sockets, last } = await start(t, { storageKey: 'tidings' }); // Its token says 42.
  assert.equal(asked(last()), at(4));
  last().welcome({ user: '43', cursor: at(9, 1, 'bb') });
  assert.deepEqual([received.gap, received.welcome.length, sockets.length], [[], 1, 1]);
  assert.equal(client.cursor, at(9, 1, 'bb'));
  last().frame(event(10, { id: at(10, 1, 'bb') }));
  assert.deepEqual(Object.fromEntries(kept), { [`${KEY} 42`]: at(4), [`${KEY} 43`]: at(10, 1, 'bb') });
});

for (const guessed of [undefined, '42']) {
  test(`a user known only from the welcome resumes from the right cursor, not ${guessed}'s`, async (t) => {
    const kept = browser(t, { [`${KEY} 42`]: at(4), [`${KEY} 43`]: at(9, 1, 'bb'), [`${KEY} undefined`]: at(1) });
    const { client, received, sockets, pass, last } = await start(t, {
      storageKey: 'tidings', token: () => tokenOf(guessed),
    });
    assert.equal(asked(sockets[0]), guessed ? at(4) : null);
    sockets[0].welcome({ user: '43', cursor: at(20, 1, 'bb') });
    assert.ok(sockets[0].closedByClient);
    sockets[0].frame(event(21));
    await pass(0);
    assert.equal(asked(last()), at(9, 1, 'bb'));
    last().welcome({ user: '43', cursor: at(9, 1, 'bb'), recovered: true });
    last().frame(event(10, { id: at(10, 1, 'bb') }));
    assert.deepEqual([received.welcome.length, received.notification, received.gap, received.error], [1, [10], [], []]);
    assert.equal(client.cursor, at(10, 1, 'bb'));
    assert.equal(kept.get(`${KEY} 42`), at(4));
  });
}

test('a token callback that alternates between users is not called in a tight loop', async (t) => {
  browser(t, { [`${KEY} 1`]: at(1, 1, 'a1'), [`${KEY} 2`]: at(2, 2, 'a2') });
  const { sockets, pass, last } = await start(t, { storageKey: 'tidings', token: () => tokenOf('1') });
  const waits = [];
  for (const user of ['2', '1', '2', '1', '2']) {
    const before = sockets.length;
    last().welcome({ user });
    let waited = 0;
    for (; sockets.length === before; waited += 250) await pass(waited === 0 ? 0 : 250);
    waits.push(waited);
  }
  assert.deepEqual(waits, [250, 750, 1_250, 2_250, 4_250]);
});

test('a switch of user keeps no state of the other user', async (t) => {
  const { client, received, pass, last } = await startLive(t);
  last().frame(event(5));
  last().drop(1006);
  await pass(250);
  assert.equal(asked(last()), at(5));
  last().welcome({ user: '43', cursor: null });
  assert.deepEqual([received.gap, client.cursor], [[], null]);
  client.ack();
  await pass(100);
  assert.deepEqual(acks(last()), []);
});

test('a switch of user with resume acked begins where that user has acked', async (t) => {
  const { received, pass, last } = await start(t, { resume: 'acked' });
  last().welcome({ cursor: at(1), recovered: true });
  await pass(5_000);
  last().drop(1006);
  await pass(250);
  last().welcome({ user: '43', cursor: at(9, 1, 'bb') });
  await pass(500); // backoff(1)
  assert.equal(asked(last()), 'acked');
  last().welcome({ user: '43', cursor: at(7, 1, 'bb'), recovered: true });
  assert.deepEqual([received.gap, received.welcome.length], [[], 2]);
});

test('tabs that share a cursor never move it back', async (t) => {
  const kept = browser(t);
  const ahead = await startLive(t, { storageKey: 'tidings' });
  const behind = await startLive(t, { storageKey: 'tidings' });
  ahead.last().frame(event(9));
  behind.last().frame(event(8));
  assert.equal(kept.get(`${KEY} 42`), at(9));
  assert.equal(behind.client.cursor, at(8)); // A reconnect of that tab misses nothing.
  behind.last().frame(event(10));
  assert.equal(kept.get(`${KEY} 42`), at(10));
  ahead.last().frame(event(1, { id: at(1, 2_000) }));
  assert.equal(kept.get(`${KEY} 42`), at(1, 2_000));
  ahead.last().frame(event(2, { id: at(2, 900, 'another epoch') }));
  assert.equal(kept.get(`${KEY} 42`), at(2, 900, 'another epoch'));
});

test('an invalid stored cursor is sent, reported as a gap, and replaced', async (t) => {
  const kept = browser(t, { [`${KEY} 42`]: 'garbage' });
  const { received, last } = await start(t, { storageKey: 'tidings' });
  assert.equal(asked(last()), 'garbage');
  last().welcome({ cursor: at(3) });
  assert.deepEqual(received.gap, [{ since: 'garbage', cursor: at(3) }]);
  assert.equal(kept.get(`${KEY} 42`), at(3));
});

for (const part of ['get', 'set']) {
  test(`a storage that cannot ${part} is reported once and affects nothing else`, async (t) => {
    const full = new Error('full');
    browser(t, {}, (doing) => {
      if (doing === part) throw full;
    });
    const { client, received, pass, last } = await start(t, { storageKey: 'tidings' });
    last().welcome({ cursor: at(0) });
    for (const number of [1, 2, 3]) last().frame(event(number));
    assert.deepEqual(received.error.map(({ code, cause }) => [code, cause]), [['storage_failed', full]]);
    assert.deepEqual([received.notification, client.cursor, client.state.name], [[1, 2, 3], at(3), 'live']);
    last().drop(1006);
    await pass(1_000);
    assert.equal(asked(last()), at(3));
  });
}

test('a browser that forbids its storage counts as failing storage', async (t) => {
  browser(t);
  Object.defineProperty(globalThis, 'localStorage', { get: () => { throw new Error('denied'); }, configurable: true });
  const { received, last } = await startLive(t, { storageKey: 'tidings' });
  last().frame(event(1));
  assert.deepEqual(received.error.map(({ cause }) => cause.message), ['denied']);
});

test('without a storage key nothing is stored, and a given cursor takes precedence over a stored one', async (t) => {
  const kept = browser(t, { [`${KEY} 42`]: at(4) });
  const plain = await startLive(t);
  plain.last().frame(event(9));
  assert.equal(kept.get(`${KEY} 42`), at(4));
  const { last } = await start(t, { storageKey: 'tidings', cursor: at(2) });
  assert.equal(asked(last()), at(2));
});
