// A planned reconnect: the new connection is made before the old one is left.
import assert from 'node:assert/strict';
import test from 'node:test';
import { jwt, settled, start, startLive } from './support.js';

const plain = (data, more) => ({ type: 'event', event: 'notification', data, ...more });
const stored = (number) => plain(number, { id: `k-${number}`, ts: 1 });

/** A live client whose instance drains, up to the new socket. */
async function drained(t, options) {
  const it = await startLive(t, options);
  it.last().frame({ type: 'reconnect', after_ms: 1_000 });
  await it.pass(1_000);
  const [old, next] = it.sockets;
  return { ...it, old, next };
}

test('a drain is followed after after_ms, and the old connection delivers until the new one is welcomed', async (t) => {
  let give;
  const token = () => new Promise((resolve) => (give = resolve));
  const { client, sockets, received, pass, last } = await start(t, { token });
  give(jwt('first'));
  await settled();
  last().welcome();
  await pass(5_000);
  const [old] = sockets;
  old.frame({ type: 'reconnect', after_ms: 7_000 });
  assert.equal(received.reconnect[0].after_ms, 7_000);
  give = null;
  await pass(6_999);
  assert.equal(give, null);
  await pass(1);
  old.frame(plain('while the token is fetched'));
  give(jwt('second'));
  await settled();
  assert.equal(sockets.length, 2);
  old.frame(plain('during the handshake'));
  assert.equal(old.closedByClient, false);
  sockets[1].welcome({ connection: 'c2' });
  old.frame(plain('under way at the welcome'));
  sockets[1].frame(plain('after the welcome'));
  assert.equal(received.notification.length, 3);
  old.frame(plain('after the welcome'));
  assert.ok(old.closedByClient);
  assert.deepEqual(received.notification, [
    'while the token is fetched', 'during the handshake', 'under way at the welcome', 'after the welcome',
  ]);
  assert.deepEqual(received.state.map(({ name }) => name), ['connecting', 'live']);
  assert.deepEqual([client.welcome.connection, received.welcome.length, received.error], ['c2', 2, []]);
  old.frame(plain('from the past'));
  assert.equal(received.notification.length, 4);
});

test('an event that reaches both connections is delivered once, in order', async (t) => {
  const { received, old, next } = await drained(t);
  for (const data of ['a', 'b', 'c']) old.frame(plain(data)); // c, d: since the registration of the new one.
  next.welcome();
  for (const data of ['c', 'd', 'e']) next.frame(plain(data));
  assert.ok(old.closedByClient);
  old.frame(plain('d'));
  next.frame(plain('f'));
  assert.deepEqual(received.notification, ['a', 'b', 'c', 'd', 'e', 'f']);
});

test('an event that is late on the old connection is waited for, and comes before those of the new one', async (t) => {
  const { received, old, next, pass } = await drained(t);
  next.welcome();
  for (const data of ['c', 'd']) next.frame(plain(data));
  await pass(900);
  for (const data of ['a', 'b', 'c']) old.frame(plain(data));
  next.frame(plain('e'));
  assert.deepEqual(received.notification, ['a', 'b', 'c', 'd', 'e']);
});

test('a stored event that reaches both connections is delivered once, and the newest cursor is kept', async (t) => {
  const { client, received, sockets, pass, last } = await startLive(t);
  const [old] = sockets;
  old.frame(stored(1));
  old.frame({ type: 'reconnect', after_ms: 0 });
  await pass(0);
  assert.equal(new URL(last().url).searchParams.get('resume'), 'k-1');
  old.frame(stored(2));
  old.frame(plain('plain'));
  last().welcome({ cursor: 'k-1', recovered: true });
  for (const number of [2, 3]) last().frame(stored(number));
  old.frame(stored(3));
  await pass(1_000);
  last().frame(stored(4));
  assert.deepEqual(received.notification, [1, 2, 'plain', 3, 4]);
  assert.deepEqual([client.cursor, received.gap], ['k-4', []]);
});

test('equal events that were published apart are all delivered', async (t) => {
  const { received, old, next, pass } = await drained(t);
  old.frame(plain('tick'));
  await pass(700);
  next.welcome();
  await pass(700);
  for (let count = 0; count < 3; count += 1) next.frame(plain('tick'));
  await pass(1_000);
  assert.deepEqual(received.notification, ['tick', 'tick', 'tick', 'tick']);
});

test('an old connection that has ended, or does not answer, is not waited for long', async (t) => {
  const ends = await drained(t);
  ends.next.welcome();
  ends.next.frame(plain('ended'));
  ends.old.drop(4200);
  assert.deepEqual(ends.received.notification, ['ended']);
  assert.deepEqual([ends.client.state.name, ends.received.error], ['live', []]);

  const mute = await drained(t);
  mute.next.welcome();
  mute.next.frame(plain('mute'));
  mute.next.frame({ type: 'ping' });
  assert.deepEqual(mute.next.sent, [{ type: 'pong' }]);
  await mute.pass(1_000);
  assert.deepEqual(mute.received.notification, ['mute']);
  assert.ok(mute.old.closedByClient);
});

test('an attempt that fails leaves the old connection alone, and is repeated', async (t) => {
  const { client, sockets, received, old, next, pass, last } = await drained(t);
  next.drop(1006);
  assert.deepEqual([client.state.name, received.error.map(({ code }) => code)], ['live', [1006]]);
  old.frame(plain('still here'));
  await pass(500); // backoff(1)
  assert.equal(sockets.length, 3);
  last().drop(4004, 'too many'); // With the old connection counted.
  old.frame(plain('and here'));
  old.drop(4200);
  assert.deepEqual([client.state.name, client.state.retryInMs], ['waiting', 1_000]);
  await pass(1_000);
  last().welcome();
  assert.deepEqual([client.state.name, received.notification], ['live', ['still here', 'and here']]);
});

test('an old connection that ends before the new one is welcomed is reported as connecting', async (t) => {
  const { client, sockets, received, old, next } = await drained(t);
  for (const data of ['a', 'b', 'c']) old.frame(plain(data)); // b, c: since the registration of the new one.
  old.drop(4200);
  assert.deepEqual([client.state.name, sockets.length, received.error], ['connecting', 2, []]);
  next.welcome();
  for (const data of ['b', 'c', 'd']) next.frame(plain(data));
  assert.deepEqual([client.state.name, received.notification], ['live', ['a', 'b', 'c', 'd']]);
});

test('an event that the old connection delivered before the new one was dialled may come on that one, too', async (t) => {
  const { received, sockets, pass, last } = await startLive(t);
  const [old] = sockets;
  old.frame({ type: 'reconnect', after_ms: 100 });
  old.frame(plain('a'));
  await pass(100);
  old.frame(plain('b'));
  last().welcome();
  for (const data of ['a', 'b', 'c']) last().frame(plain(data));
  assert.deepEqual(received.notification, ['a', 'b', 'c']);
});

test('events that the new connection delivers behind the old one are no second ones', async (t) => {
  const { received, old, next } = await drained(t);
  for (const data of ['a', 'b', 'c', 'd']) old.frame(plain(data));
  next.welcome();
  for (const data of ['b', 'c', 'd', 'e']) next.frame(plain(data));
  assert.ok(old.closedByClient);
  assert.deepEqual(received.notification, ['a', 'b', 'c', 'd', 'e']);
});

test('4004 for the older connection does not end a handover, an operator (4011) does', async (t) => {
  const replaced = await drained(t);
  replaced.old.drop(4004);
  replaced.next.welcome();
  assert.equal(replaced.client.state.name, 'live');
  const disconnected = await drained(t);
  disconnected.old.drop(4011, 'by an operator');
  assert.deepEqual(disconnected.client.state, { name: 'closed', code: 4011, reason: 'by an operator' });
  assert.ok(disconnected.next.closedByClient);
});

test('a new connection of another user takes over at once', async (t) => {
  const { client, received, old, next } = await drained(t);
  old.frame(plain('a'));
  next.welcome({ user: '43' });
  assert.ok(old.closedByClient);
  next.frame(plain('a'));
  assert.deepEqual([client.welcome.user, received.notification], ['43', ['a', 'a']]);
});

test('close() during a handover closes both connections', async (t) => {
  const { client, received, old, next, pass } = await drained(t);
  next.welcome();
  next.frame(plain(1));
  client.close();
  assert.ok(old.closedByClient && next.closedByClient);
  await pass(60_000);
  assert.deepEqual([received.notification, client.state.name], [[], 'closed']);
});
