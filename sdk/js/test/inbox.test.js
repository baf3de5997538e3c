// What a page knows of the user's inbox: the unread count, what was read elsewhere or taken back, and pages of history.
import assert from 'node:assert/strict';
import test from 'node:test';
import { TidingsError } from '../tidings.js';
import { page, settled, start, startLive } from './support.js';

const at = (number, epoch = '00000000000000aa') => `${epoch}-1000-${number}`;
const event = (number, more) => ({ type: 'event', event: 'notification', data: number, id: at(number), ts: 1, ...more });
const read = (number, unread) => ({ type: 'read', device: 'default', id: at(number), unread });
const retracted = (number) => ({ type: 'retracted', id: at(number) });
const stored = (...numbers) => numbers.map((number) => ({ id: at(number), event: 'notification', data: number, ts: 1 }));
const requests = (socket) => socket.sent.filter(({ type }) => type === 'history');

async function counting(t, unread, newest, options) {
  const it = await start(t, options);
  it.last().welcome({ cursor: at(newest), unread });
  await it.pass(5_000);
  return it;
}

test('unread is null until the welcome, which counts it', async (t) => {
  const { client, received, last } = await start(t);
  assert.equal(client.unread, null);
  last().welcome({ cursor: at(9), unread: 4 });
  assert.deepEqual([client.unread, received.unread], [4, [4]]);
});

test('unread stays null while the history cannot be read', async (t) => {
  const { client, received, last } = await start(t);
  last().welcome({ cursor: null, unread: null });
  last().frame(event(1));
  assert.deepEqual([client.unread, received.unread], [null, []]);
});

test('a new stored event is unread, one that is not stored is not', async (t) => {
  const { client, received, last } = await counting(t, 4, 9);
  last().frame(event(10));
  last().frame({ type: 'event', event: 'notification', data: 'stored nowhere' });
  last().frame(event(10));
  assert.deepEqual([client.unread, received.unread], [5, [4, 5]]);
});

test('listeners of an event see it counted, and one that acks each is never told of an unread one', async (t) => {
  const { client, received, last } = await counting(t, 0, 9);
  const seen = [];
  client.on('event', () => {
    seen.push(client.unread);
    client.ack();
  });
  last().frame(event(10));
  last().frame(event(11));
  assert.deepEqual([seen, client.unread, received.unread], [[1, 1], 0, [0]]);
});

test('replayed events are counted by the welcome alone', async (t) => {
  const { client, last, pass } = await counting(t, 4, 9);
  last().drop(1006);
  await pass(250);
  last().welcome({ cursor: at(9), recovered: true, unread: 7 });
  for (const number of [10, 11, 12]) last().frame(event(number, { replayed: true }));
  assert.equal(client.unread, 7);
  last().frame(event(13));
  assert.equal(client.unread, 8);
});

test('an event that comes on both connections of a handover is counted once', async (t) => {
  const { client, last, sockets, pass } = await counting(t, 4, 9);
  last().frame({ type: 'reconnect', after_ms: 100 });
  await pass(100);
  const [old, next] = sockets;
  // The new connection's welcome has counted the tenth, and the old one delivers all three.
  next.welcome({ cursor: at(9), recovered: true, unread: 5 });
  for (const number of [10, 11]) old.frame(event(number));
  next.frame(event(10, { replayed: true }));
  for (const number of [11, 12]) next.frame(event(number));
  await pass(1_000);
  assert.ok(old.closedByClient);
  assert.equal(client.unread, 7);
});

test('an ack of the newest leaves none unread, one of an older leaves those after it', async (t) => {
  const { client, received, last } = await counting(t, 4, 9);
  client.ack(at(7));
  assert.equal(client.unread, 2);
  client.ack(at(3)); // It never goes back.
  assert.equal(client.unread, 2);
  last().frame(event(10));
  assert.equal(client.unread, 3);
  client.ack(client.cursor);
  assert.deepEqual([client.unread, received.unread], [0, [4, 2, 3, 0]]);
});

test('an ack before the read position changes nothing', async (t) => {
  const { client } = await counting(t, 1, 9);
  client.ack(at(5));
  assert.equal(client.unread, 1);
});

test('an ack while events are replayed leaves those that still follow', async (t) => {
  const { client, last } = await start(t, { resume: 'acked' });
  last().welcome({ cursor: at(6), recovered: true, unread: 3 });
  last().frame(event(7, { replayed: true }));
  client.ack();
  last().frame(event(8, { replayed: true }));
  last().frame(event(9, { replayed: true }));
  assert.equal(client.unread, 2);
});

test('an ack that the next welcome does not include yet still counts', async (t) => {
  const { client, last, pass } = await counting(t, 4, 9);
  last().drop(1006);
  client.ack(at(8));
  await pass(250);
  last().welcome({ cursor: at(9), recovered: true, unread: 4 });
  assert.equal(client.unread, 1);
});

test('what is read elsewhere sets the count, also back', async (t) => {
  const { client, received, last, pass } = await counting(t, 4, 9);
  last().frame(read(7, 2));
  assert.deepEqual([client.unread, received.read], [2, [read(7, 2)]]);
  client.ack(at(9));
  await pass(0);
  await pass(2_000);
  last().frame(read(5, 4)); // A backend has marked some unread.
  assert.equal(client.unread, 4);
  const { length } = last().sent;
  last().drop(1006);
  await pass(500);
  last().welcome({ cursor: at(9), recovered: true, unread: 4 });
  await pass(1_000);
  assert.deepEqual([client.unread, last().sent], [4, []]); // Our ack is not repeated.
  assert.equal(length, 1);
});

test('what is read elsewhere does not undo an ack that is on its way', async (t) => {
  const { client, last } = await counting(t, 4, 9);
  client.ack(at(9));
  last().frame(read(7, 2));
  assert.equal(client.unread, 0);
});

test('an unread one that is retracted is not unread any more, one that was read changes nothing', async (t) => {
  const { client, received, last } = await counting(t, 4, 9);
  last().frame(retracted(5));
  assert.equal(client.unread, 4);
  last().frame(retracted(6));
  assert.equal(client.unread, 3);
  last().frame(retracted(9));
  assert.equal(client.unread, 2);
  client.ack(at(7));
  assert.equal(client.unread, 1); // The eighth.
  last().frame(retracted(7));
  assert.equal(client.unread, 1);
  assert.deepEqual(received.retracted, [5, 6, 9, 7].map(retracted));
});

test('one that replaces another through its collapse key counts once', async (t) => {
  const { client, last } = await counting(t, 1, 9);
  last().frame(retracted(9));
  last().frame(event(10, { collapse: 'build' }));
  assert.equal(client.unread, 1);
});

test('a page of history shows which numbers are gone', async (t) => {
  const { client, last } = await counting(t, 2, 9);
  const asked = client.history();
  await settled();
  last().frame({ type: 'history', ref: requests(last())[0].ref, notifications: stored(9, 5, 4), next: null });
  await asked;
  client.ack(at(4));
  assert.equal(client.unread, 2);
  last().frame(retracted(5));
  assert.equal(client.unread, 1);
});

test('an erased history has no unread ones, and the next is the first', async (t) => {
  const { client, received, last } = await counting(t, 4, 9);
  client.ack(at(7));
  last().frame({ type: 'retracted', all: true });
  assert.deepEqual([client.unread, received.retracted], [0, [{ type: 'retracted', all: true }]]);
  last().frame(event(1, { id: at(1, 'ff00000000000000') }));
  assert.equal(client.unread, 1);
  client.ack();
  assert.equal(client.unread, 0);
});

test('another user begins with a count of their own', async (t) => {
  const { client, last, pass } = await counting(t, 4, 9);
  client.ack(at(9));
  last().drop(1006);
  await pass(500);
  last().welcome({ user: '43', cursor: at(20, 'bb00000000000000'), unread: 6 });
  assert.equal(client.unread, 6);
});

test('history() asks for a page, and answers are told apart by their ref', async (t) => {
  const { client, last, received } = await startLive(t);
  const [first, second] = [client.history(), client.history({ before: at(5), limit: 2 })];
  await settled();
  const [one, other] = requests(last());
  assert.deepEqual([Object.keys(one), { ...other, ref: 0 }], [['type', 'ref'], { type: 'history', before: at(5), limit: 2, ref: 0 }]);
  assert.ok(typeof one.ref === 'string' && one.ref !== other.ref);
  last().frame({ type: 'history', ref: other.ref, notifications: stored(4, 3), next: at(3) });
  last().frame({ type: 'history', ref: one.ref, notifications: [], next: null });
  assert.deepEqual(await second, { notifications: stored(4, 3), next: at(3) });
  assert.deepEqual(await first, { notifications: [], next: null });
  assert.deepEqual(received.error, []);
  client.history({ before: null }).catch(() => {}); // The `next` of the last page.
  await settled();
  assert.ok(!('before' in requests(last()).at(-1)));
});

test('history() rejects with the code of an error that has its ref; any other error is an event', async (t) => {
  const { client, last, received } = await startLive(t);
  const asked = client.history({ before: 'x' });
  await settled();
  const [{ ref }] = requests(last());
  last().frame({ type: 'error', code: 4000, message: 'of something else' });
  last().frame({ type: 'error', code: 4000, message: 'not a cursor', ref });
  await assert.rejects(asked, (error) => error instanceof TidingsError && error.code === 4000 && error.message === 'not a cursor');
  assert.deepEqual(received.error.map(({ message }) => message), ['of something else']);
});

test('history() passes on what is no cursor, and rejects with the refusal', async (t) => {
  const { client, last } = await startLive(t);
  const asked = client.history({ before: 5 });
  await settled();
  const [{ before, ref }] = requests(last());
  last().frame({ type: 'error', code: 4000, message: 'not a cursor', ref });
  await assert.rejects(asked, (error) => error instanceof TidingsError && error.code === 4000);
  assert.equal(before, 5);
});

test('history() rejects when its connection ends, and where none is live', async (t) => {
  const { client, last, pass } = await startLive(t);
  const asked = client.history();
  await settled();
  last().drop(1006);
  await assert.rejects(asked, { code: 'no_history' });
  await assert.rejects(client.history(), { code: 'no_history' });
  await pass(500);
  last().welcome();
  const left = client.history();
  await settled();
  client.close();
  await assert.rejects(left, { code: 'no_history' });
});

test('once() calls its listener for one event', async (t) => {
  const { client, last } = await startLive(t);
  const got = [];
  client.once('notification', (data, frame) => got.push([data, frame.replayed]));
  client.once('notification', () => got.push('never'))();
  last().frame(event(1, { replayed: true }));
  last().frame(event(2));
  assert.deepEqual(got, [[1, true]]);
});

test('a published event cannot pass as one of the client', async (t) => {
  const { client, received, last } = await counting(t, 0, 9);
  for (const name of ['unread', 'read', 'retracted']) last().frame({ type: 'event', event: name, data: 7 });
  const { unread, read, retracted, event } = received;
  assert.deepEqual([client.unread, unread, read, retracted, event], [0, [0], [], [], [7, 7, 7]]);
});

test('an ack that a listener of unread makes is sent', async (t) => {
  const { client, last, pass } = await counting(t, 0, 9);
  client.on('unread', (unread) => unread > 0 && client.ack());
  last().frame(event(10));
  await pass(100);
  assert.deepEqual(last().sent, [{ type: 'ack', id: at(10) }]);
  assert.equal(client.unread, 0);
});

test('a page that comes back counts again', async (t) => {
  const { fire } = page(t);
  const { client, last } = await counting(t, 3, 9);
  await fire('pagehide', 'pageshow');
  last().welcome({ cursor: at(9), recovered: true, unread: 1 });
  await settled();
  assert.equal(client.unread, 1);
});
