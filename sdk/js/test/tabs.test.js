// The tabs of one user share one event stream.
import assert from 'node:assert/strict';
import test from 'node:test';
import { page } from './support.js';
import { browser } from './tabs.js';

const plain = (data) => ({ type: 'event', event: 'notification', data });
const stored = (number) => ({ ...plain(number), id: `k-1-${number}`, ts: 1 });
const at = (number, more) => ({ cursor: `k-1-${number}`, ...more });

/** A leader, and tabs that follow it. */
async function sharing(t, count = 1) {
  const it = browser(t);
  const leader = await it.tab(at(0));
  const followers = [];
  for (let number = 0; number < count; number += 1) followers.push(await it.tab(at(0)));
  await it.pass(1_000);
  return { ...it, leader, followers };
}

test('the tabs of a user share one stream, each with a welcome of its own', async (t) => {
  const { leader, followers, open } = await sharing(t, 2);
  assert.equal(open(), 1);
  assert.equal(leader.stream.aborted, false);
  await leader.stream.frame(plain('a'));
  await leader.stream.frame(stored(1));
  for (const tab of [leader, ...followers]) {
    assert.deepEqual(tab.frames.map(({ type }) => type), ['welcome', 'event', 'event']);
    assert.deepEqual([tab.got(), tab.closes], [['a', 1], []]);
  }
  followers[0].socket.close(1000);
  assert.equal(followers[0].socket.readyState, 3);
  await leader.stream.frame(plain('b'));
  assert.deepEqual([followers[0].got(), followers[1].got()], [['a', 1], ['a', 1, 'b']]);
});

test('tabs that begin at the same time share one stream, too', async (t) => {
  const { tab, pass, open } = browser(t);
  const tabs = await Promise.all([tab(null), tab(null), tab(null)]);
  await Promise.all(tabs.map(({ stream }) => stream.welcome(at(0))));
  await pass(1_000);
  assert.equal(open(), 1);
});

for (const [what, one, other] of [
  ['users', [at(0, { user: 'ada' })], [at(0, { user: 'linus' })]],
  ['devices', [at(0)], [at(0), { url: 'wss://gateway.test/ws?device=phone' }]],
  ['addresses', [at(0)], [at(0), { url: 'wss://other.test/ws' }]],
]) {
  test(`tabs of different ${what} share nothing`, async (t) => {
    const { tab, pass, open } = browser(t);
    const first = await tab(...one);
    const second = await tab(...other);
    await pass(20_000);
    await first.stream.frame(plain('private'));
    assert.deepEqual([open(), second.got()], [2, []]);
  });
}

test('tabs that resume from different positions share one stream', async (t) => {
  const { tab, pass, open } = browser(t);
  const leader = await tab(at(0));
  const other = await tab(at(0, { recovered: true }), { url: 'wss://gateway.test/ws?resume=k-1-0' });
  await pass(1_000);
  assert.equal(open(), 1);
  await leader.stream.frame(stored(1));
  assert.deepEqual(other.got(), [1]);
});

test('a tab follows only once it has caught up, and misses nothing by that', async (t) => {
  const { tab, pass, open } = browser(t);
  const leader = await tab(at(0));
  for (const number of [1, 2, 3]) await leader.stream.frame(stored(number));
  const late = await tab(at(0, { recovered: true }));
  await late.stream.frame(stored(1));
  await pass(1_000);
  assert.equal(open(), 2);
  await late.stream.frame(stored(2));
  await late.stream.frame(stored(3));
  await pass(5_000);
  await pass(1_000);
  assert.equal(open(), 1);
  await leader.stream.frame(stored(4));
  assert.deepEqual(late.got(), [1, 2, 3, 4]);
});

test('what comes on both streams while a tab begins to follow is delivered once, in order', async (t) => {
  const { tab, pass, open } = browser(t);
  const leader = await tab(at(0));
  const other = await tab(at(0));
  await other.stream.frame(plain('a')); // The leader's instance lags behind.
  await leader.stream.frame(plain('a'));
  await leader.stream.frame(stored(1));
  await leader.stream.frame(plain('b'));
  await leader.stream.frame(plain('b')); // Two that are equal.
  await other.stream.frame(stored(1));
  await other.stream.frame(plain('b'));
  await pass(1_000);
  assert.equal(open(), 1);
  await leader.stream.frame(plain('c'));
  assert.deepEqual(leader.got(), ['a', 1, 'b', 'b', 'c']);
  assert.deepEqual(other.got(), ['a', 1, 'b', 'b', 'c']);
});

test('a leader that replays its history does not repeat it to those that have it', async (t) => {
  const { tab, pass } = browser(t);
  const leader = await tab(at(0, { recovered: true }));
  const other = await tab(at(3));
  await pass(1_000);
  for (const number of [1, 2, 3, 4]) await leader.stream.frame(stored(number));
  assert.deepEqual([leader.got(), other.got()], [[1, 2, 3, 4], [4]]);
});

test('when the leading tab goes, the others are asked to reconnect, and one of them leads', async (t) => {
  const { leader, followers, tab, pass, open } = await sharing(t, 2);
  leader.socket.close();
  await pass(0);
  assert.equal(open(), 0);
  for (const follower of followers) {
    const { after_ms: wait } = follower.frames.find(({ type }) => type === 'reconnect');
    assert.ok(wait >= 0 && wait < 250);
  }
  const next = [];
  for (const { page } of followers) next.push(await tab(at(0, { recovered: true }), { page }));
  followers.forEach(({ socket }) => socket.close()); // As the client does once it has the next.
  await pass(1_000);
  assert.equal(open(), 1);
  await next[0].stream.frame(stored(1));
  assert.deepEqual(next.map((it) => it.got()), [[1], [1]]);
});

test('a stream that its tab has replaced still delivers to the others, until they have streams of their own', async (t) => {
  const { leader, followers: [follower], tab, pass, open } = await sharing(t);
  leader.socket.onmessage = null;
  leader.socket.close(1000);
  await leader.stream.frame(plain('a'));
  assert.deepEqual([follower.got(), follower.has('reconnect'), leader.stream.aborted], [['a'], true, false]);
  const next = await tab(at(0), { page: leader.page });
  const other = await tab(at(0), { page: follower.page });
  follower.socket.close(1000);
  await pass(1_000);
  await next.stream.frame(plain('b'));
  await leader.stream.frame(plain('b'));
  assert.deepEqual(other.got(), ['b']); // Of the streams of one page, it follows the one that leads.
  await pass(2_000);
  assert.deepEqual([leader.stream.aborted, open(), follower.closes, other.closes], [true, 1, [], []]);
});

test('a stream that no other tab follows ends as soon as it is replaced', async (t) => {
  const { leader, open } = await sharing(t, 0);
  leader.socket.close(1000);
  assert.deepEqual([leader.stream.aborted, open()], [true, 0]);
});

test('a tab does not begin to follow a stream that ends soon', async (t) => {
  const { leader, tab, pass } = await sharing(t);
  await tab(at(0)); // It waits for the lock, so that it leads next.
  const late = await tab(at(0));
  await leader.stream.frame({ type: 'reconnect', after_ms: 5_000 });
  await pass(1_000);
  assert.equal(late.stream.aborted, false);
});

test('a tab that still follows a stream which was replaced is told of its end', async (t) => {
  const { leader, followers: [follower], pass } = await sharing(t);
  leader.socket.close(1000);
  await pass(0);
  await pass(2_000);
  assert.deepEqual(follower.closes, []);
  await pass(1_000);
  assert.deepEqual([leader.stream.aborted, follower.closes[0].code], [true, 4200]);
});

test('a page that is left keeps no stream for the others', async (t) => {
  const { fire } = page(t);
  const { leader } = await sharing(t);
  leader.socket.close(1000);
  assert.equal(leader.stream.aborted, false);
  await fire('pagehide');
  assert.ok(leader.stream.aborted);
});

test('a tab whose leader is gone does not pretend to be connected', async (t) => {
  const { leader, followers: [follower], pass } = await sharing(t);
  leader.socket.close();
  await pass(0);
  await pass(1_000);
  assert.equal(follower.closes[0].code, 4200);
});

test('a stream that breaks is lost in each tab, with the same code', async (t) => {
  const { leader, followers: [follower] } = await sharing(t);
  await leader.stream.fail();
  assert.deepEqual([leader.closes[0].code, follower.closes[0].code], [1006, 1006]);
});

for (const [what, code, others] of [
  ['an operator disconnects every tab', 4011, 4011],
  ['a revoked token is that of one tab, and the others reconnect', 4009, 4200],
  ['an expired token is that of one tab, and the others reconnect', 4010, 4200],
]) {
  test(what, async (t) => {
    const { leader, followers: [follower] } = await sharing(t);
    await leader.stream.frame({ type: 'error', code, message: 'because' });
    assert.deepEqual(leader.closes, [{ code, reason: 'because' }]);
    assert.deepEqual(follower.closes, [{ code: others, reason: 'because' }]);
  });
}

test('while the instance of the shared stream stops, it delivers to all, and a new tab does not join it', async (t) => {
  const { leader, followers: [follower], tab, pass, open } = await sharing(t);
  await leader.stream.frame({ type: 'reconnect', after_ms: 3_000 });
  await leader.stream.frame(plain('a'));
  assert.deepEqual(follower.frames.at(-2), { type: 'reconnect', after_ms: 3_000 });
  assert.deepEqual(follower.got(), ['a']);
  const next = await tab(at(0));
  await pass(2_000);
  assert.deepEqual([open(), next.stream.aborted], [2, false]);
  const third = await tab(at(0)); // It joins the new one.
  await pass(1_000);
  assert.equal(open(), 2);
  await leader.stream.end();
  assert.deepEqual([follower.closes[0].code, third.closes], [1006, []]);
});

test('the stream that replaces another of the same tab does not follow it', async (t) => {
  const { leader, tab, pass, open } = await sharing(t, 0);
  const next = await tab(at(0), { page: leader.page });
  await pass(10_000);
  assert.equal(open(), 2);
  leader.socket.close();
  await pass(0);
  const other = await tab(at(0));
  await pass(1_000);
  await next.stream.frame(plain('a'));
  assert.deepEqual([open(), other.got()], [1, ['a']]);
});

test('a tab whose leader does not answer keeps its own stream', async (t) => {
  const { leader, tab, pass, open } = await sharing(t, 0);
  BroadcastChannel.open.clear(); // The leader is frozen, and holds the lock.
  const other = await tab(at(0));
  await pass(60_000);
  await other.stream.frame(plain('a'));
  assert.deepEqual([open(), other.got(), other.closes], [2, ['a'], []]);
  await tab(at(0));
  await pass(1_000);
  assert.equal(open(), 3);
  leader.socket.close();
  await pass(1_000);
  await pass(1_000);
  assert.equal(open(), 1); // The next leader announces itself.
});

test('a heartbeat reaches every tab', async (t) => {
  const { leader, followers: [follower] } = await sharing(t);
  await leader.stream.text(':\n\n');
  assert.ok(follower.has('heartbeat'));
});

test('without Web Locks, or where a page may not use them, each tab has a stream', async (t) => {
  const { tab, pass, open } = browser(t);
  navigator.locks.request = () => Promise.reject(new DOMException('denied', 'SecurityError'));
  await tab(at(0));
  navigator.locks = undefined;
  await tab(at(0));
  await pass(10_000);
  assert.equal(open(), 2);
});

test('what is read or retracted reaches every tab once, and moves no position', async (t) => {
  const { leader, followers: [follower], tab, pass } = await sharing(t);
  await leader.stream.frame(stored(5));
  const read = { type: 'read', device: 'default', id: 'k-1-2', unread: 3 };
  const retracted = { type: 'retracted', id: 'k-1-3' };
  const third = await tab(at(5)); // Not following yet: it receives on its own stream, and through the channel.
  for (const frame of [read, retracted]) for (const { stream } of [leader, third]) await stream.frame(frame);
  await pass(1_000);
  for (const each of [leader, follower, third]) {
    assert.deepEqual(each.frames.filter(({ type }) => type === 'read' || type === 'retracted'), [read, retracted]);
  }
  const next = await tab(at(5)); // It follows: the leader is no further behind.
  await pass(1_000);
  assert.equal(next.stream.aborted, true);
});
