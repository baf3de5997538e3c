import assert from 'node:assert/strict';
import test from 'node:test';
import { refreshDelay } from '../tidings.js';
import { jwt, settled, START, start, startLive } from './support.js';

const event = (data, more) => ({ type: 'event', event: 'notification', data, ...more });

test('an event reaches the listeners of its name and of `event`, with its frame', async (t) => {
  const { client, last } = await startLive(t);
  const got = [];
  client.on('order.paid', (data, frame) => got.push(['order.paid', data, frame.event]));
  client.on('event', (data, frame) => got.push(['event', data, frame.event]));
  last().frame(event({ n: 1 }, { event: 'order.paid' }));
  assert.deepEqual(got, [['order.paid', { n: 1 }, 'order.paid'], ['event', { n: 1 }, 'order.paid']]);
});

test('a published event cannot imitate an event of the client', async (t) => {
  const { heard, last } = await startLive(t);
  const states = heard.state.length;
  for (const name of ['state', 'error', 'welcome', 'reconnect', 'gap', 'event']) last().frame(event(1, { event: name }));
  assert.equal(heard.state.length, states);
  assert.deepEqual([heard.error, heard.reconnect, heard.gap], [[], [], []]);
  assert.equal(heard.event.length, 6);
});

test('on() returns a function that unsubscribes, off() unsubscribes too, also within a listener', async (t) => {
  const { client, last } = await startLive(t);
  const got = [];
  const second = () => got.push('second');
  const leave = client.on('notification', () => {
    got.push('first');
    leave();
  });
  client.on('notification', second);
  last().frame(event(1));
  client.off('notification', second);
  last().frame(event(2));
  assert.deepEqual(got, ['first', 'second']);
});

test('a listener that throws or rejects is reported and breaks nothing', async (t) => {
  const reported = [];
  globalThis.reportError = (error) => reported.push(error.message);
  t.after(() => delete globalThis.reportError);
  const { client, heard, last } = await startLive(t);
  const listeners = new Set([() => { throw new Error('thrown'); }, async () => { throw new Error('rejected'); }]);
  for (const listener of listeners) client.on('notification', listener);
  client.on('notification', () => heard.state.push('after'));
  last().frame(event(1));
  assert.equal(heard.state.at(-1), 'after');
  assert.deepEqual(reported, []); // Not within the delivery.
  await settled();
  assert.deepEqual(reported.sort(), ['rejected', 'thrown']);
  assert.equal(client.state.name, 'live');
});

test('a ping is answered with a pong', async (t) => {
  const { last } = await startLive(t);
  last().frame({ type: 'ping' });
  assert.deepEqual(last().sent, [{ type: 'pong' }]);
});

test('an error frame becomes an Error with its code, and the connection stays open', async (t) => {
  const { client, heard, last } = await startLive(t);
  last().frame({ type: 'error', code: 4101, message: 'slow down' });
  assert.deepEqual([heard.error[0].code, heard.error[0].message], [4101, 'slow down']);
  assert.equal(client.state.name, 'live');
});

test('an invalid frame is reported as an error, a frame of an unknown type is ignored', async (t) => {
  const { client, heard, last } = await startLive(t);
  last().frame('not json');
  last().frame('null');
  last().onmessage({ data: new ArrayBuffer(2) });
  last().frame({ type: 'from a newer gateway' });
  assert.deepEqual(heard.error.map((error) => error.code), ['bad_frame', 'bad_frame', 'bad_frame']);
  assert.equal(client.state.name, 'live');
});

test('a silent gateway is disconnected after the heartbeat and a grace period', async (t) => {
  const { client, sockets, heard, pass, last } = await start(t);
  last().welcome({ heartbeat_ms: 25_000 });
  await pass(39_999);
  last().frame({ type: 'ping' });
  await pass(39_999);
  assert.equal(client.state.name, 'live');
  await pass(1);
  assert.deepEqual([client.state.name, client.state.code, heard.error[0].code], ['waiting', 'silent', 'silent']);
  assert.ok(sockets[0].closedByClient);
  await pass(client.state.retryInMs);
  assert.equal(sockets.length, 2);
});

test('a reconnect frame is followed after after_ms, and never two connections deliver at once', async (t) => {
  const { client, sockets, heard, pass, last } = await startLive(t);
  const [old] = sockets;
  last().frame({ type: 'reconnect', after_ms: 7_000 });
  assert.equal(heard.reconnect[0].after_ms, 7_000);
  await pass(6_999);
  old.frame(event('before'));
  assert.equal(sockets.length, 1);
  await pass(1);
  assert.equal(sockets.length, 2);
  assert.ok(old.closedByClient);
  last().welcome();
  old.frame(event('twice'));
  last().frame(event('twice'));
  assert.deepEqual(heard.notification, ['before', 'twice']);
  assert.deepEqual(heard.error, []);
  assert.equal(client.state.name, 'live');
});

test('the 4200 close after a reconnect frame neither lengthens nor shortens its wait', async (t) => {
  const { client, sockets, heard, pass, last } = await startLive(t, { random: () => 0.99 });
  last().frame({ type: 'reconnect', after_ms: 300 });
  await pass(100);
  last().drop(4200);
  assert.deepEqual([client.state.name, client.state.retryInMs], ['waiting', 200]);
  assert.deepEqual(heard.error, []);
  await pass(199);
  assert.equal(sockets.length, 1);
  await pass(1);
  assert.equal(sockets.length, 2);
});

test('a close that is final stays final after a reconnect frame', async (t) => {
  const { client, sockets, pass, last } = await startLive(t);
  last().frame({ type: 'reconnect', after_ms: 300 });
  last().drop(4011);
  await pass(1_000);
  assert.equal(client.state.name, 'closed');
  assert.equal(sockets.length, 1);
});

test('a gateway that requests reconnects repeatedly is not reconnected to in a tight loop', async (t) => {
  const { sockets, pass, last } = await start(t);
  for (const wait of [0, 500, 1_000, 2_000, 4_000]) {
    const before = sockets.length;
    last().welcome();
    last().frame({ type: 'reconnect', after_ms: 0 });
    if (wait > 0) await pass(wait - 1);
    assert.equal(sockets.length, before);
    await pass(1);
    assert.equal(sockets.length, before + 1);
  }
});

test('a token is replaced at 80% of what is left of it, 10 s before its end, or at half of a short one', () => {
  const at = (lifeMs) => refreshDelay(jwt('a', lifeMs), START);
  assert.equal(at(3_600_000), 2_880_000);
  assert.equal(at(40_000), 30_000);
  assert.equal(at(12_000), 6_000);
  assert.equal(at(1_000), null);
  assert.equal(at(-1_000), null);
  assert.equal(refreshDelay('not.a.jwt', START), null);
  assert.equal(refreshDelay(`x.${Buffer.from('{"sub":"ä€"}').toString('base64url')}.x`, START), null);
});

test('a fresh token is sent before the old one expires, and then the next refresh is planned', async (t) => {
  let now = START;
  let count = 0;
  const token = () => jwt(`t${(count += 1)}`, 100_000, now);
  const { sockets, pass, last } = await start(t, { token });
  last().welcome({ heartbeat_ms: 0 });
  await pass(79_999);
  assert.deepEqual(last().sent, []);
  now += 80_000;
  await pass(1);
  assert.deepEqual(last().sent, [{ type: 'auth', token: jwt('t2', 100_000, now) }]);
  last().frame({ type: 'authenticated', expires: (now + 100_000) / 1000 });
  now += 80_000;
  await pass(79_999);
  assert.equal(last().sent.length, 1);
  await pass(1);
  assert.equal(last().sent.length, 2);
  assert.equal(sockets.length, 1);
});

test('a refresh that fails or is refused is tried again while the old token lasts', async (t) => {
  let calls = 0;
  const token = () => {
    calls += 1;
    if (calls === 2) throw new Error('offline');
    return jwt(`t${calls}`, 100_000);
  };
  const { client, heard, pass, last } = await start(t, { token });
  last().welcome({ heartbeat_ms: 0 });
  await pass(80_000);
  assert.equal(heard.error[0].code, 'token_failed');
  await pass(10_000); // half of the 20 s left
  assert.equal(last().sent.length, 1);
  last().frame({ type: 'error', code: 4003, message: 'another user' });
  await pass(5_000);
  assert.equal(last().sent.length, 2);
  assert.equal(client.state.name, 'live');
});

test('a token that expires beyond the range of a timer overflows no timer', async (t) => {
  const life = 40 * 24 * 3_600_000;
  const countable = 2 ** 31 - 1;
  const { token, pass, last } = await start(t, { token: () => jwt('old', life) });
  last().welcome({ heartbeat_ms: 0 });
  await pass(countable);
  await pass(life * 0.8 - countable - 1);
  assert.equal(token.mock.callCount(), 1);
  await pass(1);
  assert.equal(token.mock.callCount(), 2);
});

test('the cursor is kept, and a reconnect resumes from it', async (t) => {
  const { client, pass, last } = await start(t);
  assert.doesNotMatch(last().url, /resume/);
  last().welcome({ cursor: 'k-1' });
  assert.equal(client.cursor, 'k-1');
  last().frame(event(1, { id: 'k/2&', ts: START }));
  assert.equal(client.cursor, 'k/2&');
  last().drop(1006);
  await pass(1_000);
  assert.equal(new URL(last().url).searchParams.get('resume'), 'k/2&');
});

test('a recovered resume keeps the cursor until each event has arrived', async (t) => {
  const { client, heard, pass, last } = await start(t, { cursor: 'k-1' });
  assert.match(last().url, /resume=k-1/);
  last().welcome({ cursor: 'k-9', recovered: true });
  assert.equal(client.cursor, 'k-1');
  last().frame(event(2, { id: 'k-2' }));
  last().drop(1006);
  await pass(1_000);
  assert.match(last().url, /resume=k-2/);
  assert.deepEqual(heard.gap, []);
});

test('a resume that was not recovered is a gap, and goes on from the new cursor', async (t) => {
  const { client, heard, last } = await start(t, { cursor: 'k-1' });
  last().welcome({ cursor: 'k-9', recovered: false });
  assert.deepEqual(heard.gap, [{ since: 'k-1', cursor: 'k-9' }]);
  assert.equal(client.cursor, 'k-9');
});

test('a first connection is not a gap', async (t) => {
  const { heard } = await startLive(t);
  assert.deepEqual(heard.gap, []);
});

test('an event is delivered once per id, and the remembered ids are bounded', async (t) => {
  const { heard, last } = await startLive(t, { rememberedIds: 2 });
  for (const id of ['a', 'a', 'b', 'a', 'c', 'a']) last().frame(event(id, { id }));
  assert.deepEqual(heard.notification, ['a', 'b', 'c', 'a']); // `a` was forgotten for `c`.
});

test('ids are remembered per user: another one may be sent the same', async (t) => {
  const { heard, pass, last } = await start(t);
  last().welcome({ user: '42' });
  last().frame(event('mine', { id: 'a' }));
  last().drop(1006);
  await pass(1_000);
  last().welcome({ user: '43' });
  last().frame(event('theirs', { id: 'a' }));
  assert.deepEqual(heard.notification, ['mine', 'theirs']);
});

test('events without an id are never taken for duplicates', async (t) => {
  const { heard, last } = await startLive(t);
  last().frame(event(1));
  last().frame(event(1));
  assert.deepEqual(heard.notification, [1, 1]);
});

test('a network that returns ends a wait at once', async (t) => {
  globalThis.window = new EventTarget();
  t.after(() => delete globalThis.window);
  const { client, sockets, last } = await startLive(t);
  last().drop(1006);
  window.dispatchEvent(new Event('visibilitychange'));
  await settled();
  assert.equal(sockets.length, 1);
  window.dispatchEvent(new Event('online'));
  await settled();
  assert.equal(sockets.length, 2);
  client.close();
  window.dispatchEvent(new Event('online'));
  await settled();
  assert.equal(sockets.length, 2);
});

test('a closed client leaves no listener on the window', async (t) => {
  const target = new EventTarget();
  globalThis.window = target;
  t.after(() => delete globalThis.window);
  const added = t.mock.method(target, 'addEventListener');
  const removed = t.mock.method(target, 'removeEventListener');
  const { client, last } = await startLive(t);
  const three = ['online', 'visibilitychange', 'pageshow'];
  const names = (method) => method.mock.calls.map((call) => call.arguments[0]);
  assert.deepEqual([names(added), names(removed)], [three, []]);
  last().drop(4011);
  assert.deepEqual(names(removed), three);
  client.connect();
  client.close();
  assert.deepEqual([names(added), names(removed)], [[...three, ...three], [...three, ...three]]);
});

test('after a sleep of the machine, missed timers are made up for', async (t) => {
  globalThis.window = new EventTarget();
  t.after(() => delete globalThis.window);
  const { client, sockets, token, last } = await startLive(t);
  const { mock } = await import('node:test');
  const wakeAfter = async (ms) => {
    mock.timers.setTime(Date.now()); // Time goes on; no timer has fired.
    const now = Date.now() + ms;
    t.mock.method(Date, 'now', () => now);
    window.dispatchEvent(new Event('pageshow'));
    await settled();
  };
  await wakeAfter(1_000);
  assert.equal(client.state.name, 'live');
  await wakeAfter(60_000);
  assert.deepEqual([client.state.name, client.state.code], ['waiting', 'silent']);
  await wakeAfter(60_000);
  assert.equal(sockets.length, 2);
  last().welcome({ heartbeat_ms: 0 });
  const calls = token.mock.callCount();
  await wakeAfter(3_400_000);
  assert.equal(token.mock.callCount(), calls + 1);
});
