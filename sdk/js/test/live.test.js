import assert from 'node:assert/strict';
import test, { mock } from 'node:test';
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
  const { received, last } = await startLive(t);
  const states = received.state.length;
  for (const name of ['state', 'error', 'welcome', 'reconnect', 'gap', 'event']) last().frame(event(1, { event: name }));
  assert.equal(received.state.length, states);
  assert.deepEqual([received.error, received.reconnect, received.gap], [[], [], []]);
  assert.equal(received.event.length, 6);
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
  const { client, received, last } = await startLive(t);
  const listeners = new Set([() => { throw new Error('thrown'); }, async () => { throw new Error('rejected'); }]);
  for (const listener of listeners) client.on('notification', listener);
  client.on('notification', () => received.state.push('after'));
  last().frame(event(1));
  assert.equal(received.state.at(-1), 'after');
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
  const { client, received, last } = await startLive(t);
  last().frame({ type: 'error', code: 4101, message: 'slow down' });
  assert.deepEqual([received.error[0].code, received.error[0].message], [4101, 'slow down']);
  assert.equal(client.state.name, 'live');
});

test('an invalid frame is reported as an error, a frame of an unknown type is ignored', async (t) => {
  const { client, received, last } = await startLive(t);
  last().frame('not json');
  last().frame('null');
  last().onmessage({ data: new ArrayBuffer(2) });
  last().frame({ type: 'from a newer gateway' });
  assert.deepEqual(received.error.map((error) => error.code), ['bad_frame', 'bad_frame', 'bad_frame']);
  assert.equal(client.state.name, 'live');
});

test('a silent gateway is disconnected after the heartbeat and a grace period', async (t) => {
  const { client, sockets, received, pass, last } = await start(t);
  last().welcome({ heartbeat_ms: 25_000 });
  await pass(39_999);
  last().frame({ type: 'ping' });
  await pass(39_999);
  assert.equal(client.state.name, 'live');
  await pass(1);
  assert.deepEqual([client.state.name, client.state.code, received.error[0].code], ['waiting', 'silent', 'silent']);
  assert.ok(sockets[0].closedByClient);
  await pass(client.state.retryInMs);
  assert.equal(sockets.length, 2);
});

test('the 4200 close after a reconnect frame neither lengthens nor shortens its wait', async (t) => {
  const { client, sockets, received, pass, last } = await startLive(t, { random: () => 0.99 });
  last().frame({ type: 'reconnect', after_ms: 300 });
  await pass(100);
  last().drop(4200);
  assert.deepEqual([client.state.name, client.state.retryInMs], ['waiting', 200]);
  assert.deepEqual(received.error, []);
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
    sockets.at(-2)?.drop(4200);
    last().frame({ type: 'reconnect', after_ms: 0 });
    if (wait > 0) await pass(wait - 1);
    assert.equal(sockets.length, before);
    await pass(1);
    assert.equal(sockets.length, before + 1);
  }
});

test('a token is replaced at 80% of what is left of it, 10 s before its end, or at half of a short one', () => {
  assert.equal(refreshDelay(3_600_000), 2_880_000);
  assert.equal(refreshDelay(40_000), 30_000);
  assert.equal(refreshDelay(12_000), 6_000);
  for (const left of [1_000, -1_000, null, undefined]) assert.equal(refreshDelay(left), null);
});

test('a fresh token is sent before the old one expires, and then the next refresh is planned', async (t) => {
  const { sockets, pass, last } = await start(t);
  last().welcome({ heartbeat_ms: 0, expires_in_ms: 100_000 });
  await pass(79_999);
  assert.deepEqual(last().auths, []);
  await pass(1);
  assert.deepEqual(last().auths, [jwt('token-2')]);
  last().authenticated(50_000);
  await pass(39_999);
  assert.equal(last().auths.length, 1);
  await pass(1);
  assert.equal(last().auths.length, 2);
  assert.equal(sockets.length, 1);
});

for (const minutes of [-10, 10]) {
  test(`a device whose clock is ${minutes} minutes off keeps one connection, and refreshes in time`, async (t) => {
    let tokens = 0;
    const gatewayNow = () => Date.now() - minutes * 60_000;
    const token = () => jwt(`t${(tokens += 1)}`, 300_000, gatewayNow());
    const { client, sockets, pass, last } = await start(t, { token });
    last().welcome({ heartbeat_ms: 0, expires_in_ms: 300_000 });
    for (let refreshes = 1; refreshes <= 3; refreshes += 1) {
      await pass(239_000);
      assert.equal(last().auths.length, refreshes - 1);
      await pass(1_000);
      assert.equal(last().auths.length, refreshes);
      last().authenticated(300_000);
    }
    assert.deepEqual([sockets.length, tokens, client.state.name], [1, 4, 'live']);
  });
}

test('a refresh that fails or is refused is tried again while the old token lasts', async (t) => {
  let calls = 0;
  const token = () => {
    calls += 1;
    if (calls === 2) throw new Error('offline');
    return jwt(`t${calls}`);
  };
  const { client, received, pass, last } = await start(t, { token });
  last().welcome({ heartbeat_ms: 0, expires_in_ms: 100_000 });
  await pass(80_000);
  assert.equal(received.error[0].code, 'token_failed');
  await pass(10_000); // half of the 20 s left
  assert.equal(last().auths.length, 1);
  last().frame({ type: 'error', code: 4003, message: 'another user' });
  await pass(5_000);
  assert.equal(last().auths.length, 2);
  assert.equal(client.state.name, 'live');
});

test('a token that expires beyond the range of a timer overflows no timer', async (t) => {
  const countable = 2 ** 31 - 1;
  const { token, last } = await start(t);
  last().welcome({ heartbeat_ms: 0, expires_in_ms: 40 * 24 * 3_600_000 });
  const pass = async (ms) => {
    mock.timers.tick(ms);
    await settled();
  };
  await pass(countable - 1);
  assert.equal(token.mock.callCount(), 1);
  await pass(1);
  assert.equal(token.mock.callCount(), 2);
});

test('a gap that the gateway reports is passed on, with its duration', async (t) => {
  const { client, received, last } = await startLive(t);
  last().frame(event(1, { id: 'k-1' }));
  last().frame({ type: 'gap', since_ms: 4_200 });
  assert.deepEqual(received.gap, [{ since: 'k-1', cursor: 'k-1', since_ms: 4_200 }]);
  assert.equal(client.state.name, 'live');
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
  const { client, received, pass, last } = await start(t, { cursor: 'k-1' });
  assert.match(last().url, /resume=k-1/);
  last().welcome({ cursor: 'k-9', recovered: true });
  assert.equal(client.cursor, 'k-1');
  last().frame(event(2, { id: 'k-2' }));
  last().drop(1006);
  await pass(1_000);
  assert.match(last().url, /resume=k-2/);
  assert.deepEqual(received.gap, []);
});

test('a resume that was not recovered is a gap, and goes on from the new cursor', async (t) => {
  const { client, received, last } = await start(t, { cursor: 'k-1' });
  last().welcome({ cursor: 'k-9', recovered: false });
  assert.deepEqual(received.gap, [{ since: 'k-1', cursor: 'k-9' }]);
  assert.equal(client.cursor, 'k-9');
});

test('a first connection is not a gap', async (t) => {
  const { received } = await startLive(t);
  assert.deepEqual(received.gap, []);
});

test('an event is delivered once per id, and the remembered ids are bounded', async (t) => {
  const { received, last } = await startLive(t, { rememberedIds: 2 });
  for (const id of ['a', 'a', 'b', 'a', 'c', 'a']) last().frame(event(id, { id }));
  assert.deepEqual(received.notification, ['a', 'b', 'c', 'a']); // `a` was forgotten for `c`.
});

test('ids are remembered per user: another one may be sent the same', async (t) => {
  const { received, pass, last } = await start(t);
  last().welcome({ user: '42' });
  last().frame(event('mine', { id: 'a' }));
  last().drop(1006);
  await pass(1_000);
  last().welcome({ user: '43' });
  last().frame(event('theirs', { id: 'a' }));
  assert.deepEqual(received.notification, ['mine', 'theirs']);
});

test('events without an id are never taken for duplicates', async (t) => {
  const { received, last } = await startLive(t);
  last().frame(event(1));
  last().frame(event(1));
  assert.deepEqual(received.notification, [1, 1]);
});
