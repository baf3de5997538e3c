// Where no WebSocket opens, the client receives an event stream.
import assert from 'node:assert/strict';
import test from 'node:test';
import { parser } from '../tidings-sse.js';
import { blocked, gateway, jwt, settled, streaming } from './events.js';
import { page, start } from './support.js';

const plain = (data) => ({ type: 'event', event: 'notification', data });
const stored = (number) => ({ ...plain(number), id: `k-1-${number}`, ts: 1 });
const HOUR_MS = 3_600_000;

test('after two attempts at a WebSocket that never opened, an event stream is opened with the token in a header', async (t) => {
  const options = { url: 'wss://gateway.test/a/ws?x=1', device: 'phone' };
  const { client, sockets, stream, received } = await blocked(t, options);
  assert.equal(sockets.length, 2);
  assert.equal(stream().url, 'https://gateway.test/a/events?x=1&device=phone');
  assert.deepEqual(stream().headers, { Accept: 'text/event-stream', Authorization: `Bearer ${jwt('token-3')}` });
  await stream().welcome({ unread: 3 });
  assert.deepEqual([client.state, client.welcome.unread], [{ name: 'live', transport: 'sse' }, 3]);
  await stream().frame(plain('a'));
  await stream().frame(stored(1));
  assert.deepEqual([received.notification, client.cursor], [['a', 1], 'k-1-1']);
});

test('a client whose WebSocket opens says so, and requests no stream', async (t) => {
  const { client, sockets, streams, pass, last } = await blocked(t);
  await streams[0].fail();
  await pass(client.state.retryInMs);
  assert.equal(sockets.length, 3);
  last().welcome({ heartbeat_ms: 0, expires_in_ms: null });
  assert.deepEqual(client.state, { name: 'live', transport: 'websocket' });
  await pass(HOUR_MS / 2);
  assert.equal(streams.length, 1);
});

test('with events: null there is no stream; an address of its own is used as it is', async (t) => {
  const without = await blocked(t, { events: null });
  assert.deepEqual([without.sockets.length, without.streams.length], [3, 0]);
  without.client.close();
  const { stream } = await blocked(t, { events: 'https://other.test/stream', device: 'd' });
  assert.equal(stream().url, 'https://other.test/stream?device=d');
});

test('a stream that ends is opened again after the wait of any close, from the last id', async (t) => {
  const { client, sockets, streams, stream, pass, received } = await streaming(t, { welcome: { cursor: 'k-1-0' } });
  await stream().frame(stored(1));
  await stream().end();
  assert.deepEqual([client.state.name, client.state.code, client.state.retryInMs], ['waiting', 1006, 250]);
  await pass(250);
  assert.deepEqual([sockets.length, streams.length], [2, 2]);
  assert.equal(stream().headers['Last-Event-ID'], 'k-1-1');
  assert.equal(stream().url, streams[0].url); // Else its preflight would have to be repeated.
  await stream().welcome({ cursor: 'k-1-1', recovered: true });
  await stream().frame(stored(1));
  await stream().frame(stored(2));
  assert.deepEqual([received.notification, received.gap], [[1, 2], []]);
});

test('while no stream opens either, WebSockets and streams are tried in turns, with backoff', async (t) => {
  const { client, sockets, streams, stream, pass, last } = await streaming(t);
  await stream().end();
  const tried = [];
  for (let attempt = 0; attempt < 4; attempt += 1) {
    const before = streams.length;
    await pass(client.state.retryInMs);
    await settled();
    tried.push(streams.length > before ? 'sse' : 'websocket');
    if (tried.at(-1) === 'sse') await stream().fail();
    else last().drop(1006);
  }
  assert.deepEqual(tried, ['sse', 'websocket', 'sse', 'websocket']);
  assert.equal(sockets.length, 4);
  assert.match(client.state.reason, /network/);
});

for (const [code, delay] of [[4010, 500], [4009, 500], [4200, 500], [4203, 500], [4205, 500], [4100, 250], [4102, 250]]) {
  test(`an error block with ${code} at the end of a stream is what a close with it is`, async (t) => {
    const { client, stream, streams, pass, token } = await streaming(t);
    await stream().frame({ type: 'error', code, message: 'because' });
    assert.ok(stream().aborted);
    assert.deepEqual([client.state.code, client.state.reason, client.state.retryInMs], [code, 'because', delay]);
    const asked = token.mock.callCount();
    await pass(delay);
    assert.deepEqual([streams.length, token.mock.callCount()], [2, asked + 1]);
  });
}

for (const code of [4011, 4004, 4003]) {
  test(`an error block with ${code} is final`, async (t) => {
    const { client, stream, streams, pass } = await streaming(t);
    await stream().frame({ type: 'error', code, message: 'because' });
    assert.deepEqual(client.state, { name: 'closed', code, reason: 'because' });
    await pass(HOUR_MS);
    assert.equal(streams.length, 1);
  });
}

test('a temporary refusal, which is a stream of one block, backs off with its code and reason', async (t) => {
  const { client, stream, received } = await blocked(t);
  await stream().text('retry: 1500\ndata: {"type":"error","code":4100,"message":"full"}\n\n');
  assert.deepEqual([client.state.name, client.state.code, client.state.reason], ['waiting', 4100, 'full']);
  assert.equal(received.welcome.length, 0);
});

for (const [status, reason, code] of [[401, 'bad_token', 4009], [401, 'token_expired', 4010]]) {
  test(`a stream refused with ${status} ${reason} is tried with another token once, and then final`, async (t) => {
    const { client, stream, sockets, streams, pass, last } = await streaming(t);
    await stream().end();
    await pass(250);
    await stream().refuse(status, reason);
    assert.deepEqual([client.state.name, client.state.code], ['waiting', code]);
    await pass(client.state.retryInMs);
    assert.equal(sockets.length, 3);
    last().drop(1006);
    await pass(client.state.retryInMs);
    await settled();
    await streams.at(-1).refuse(status, reason);
    assert.deepEqual([client.state.name, client.state.code], ['closed', code]);
    assert.equal(client.state.reason, `because of ${reason}`);
  });
}

test('a response of another server is temporary: an error page, or a page in place of a stream', async (t) => {
  const { client, stream } = await blocked(t);
  stream().respond(new Response('<h1>no</h1>', { status: 403 }));
  await settled();
  assert.deepEqual([client.state.name, client.state.code], ['waiting', 1006]);
  const next = await blocked(t);
  next.stream().respond(new Response('<h1>the app</h1>', { headers: { 'Content-Type': 'text/html' } }));
  await settled();
  assert.match(next.client.state.reason, /status 200/);
  assert.ok(next.stream().aborted);
});

test('an ack over a stream is kept, and the furthest is sent when a WebSocket is back', async (t) => {
  const { client, stream, sockets, pass, last, received } = await streaming(t, { welcome: { cursor: 'k-1-0' } });
  await stream().frame(stored(1));
  client.ack();
  await stream().frame(stored(2));
  client.ack();
  await pass(10_000);
  await pass(300_000);
  last().welcome({ cursor: 'k-1-2', recovered: true });
  await pass(1_200);
  assert.equal(sockets.length, 3);
  assert.deepEqual(last().sent, [{ type: 'ack', id: 'k-1-2' }]);
  assert.deepEqual(received.error.map(({ code }) => code), [1006, 1006]); // Of the WebSockets that did not open.
});

test('a WebSocket is tried now and then, without an error if it does not open', async (t) => {
  const { client, sockets, stream, streams, pass, last, received } = await streaming(t);
  for (const count of [3, 4]) {
    await pass(304_000);
    assert.equal(sockets.length, count);
    last().drop(1006);
    assert.deepEqual(client.state, { name: 'live', transport: 'sse' });
  }
  await stream().frame(plain('still here'));
  assert.deepEqual([received.notification, received.error.length, streams.length], [['still here'], 2, 1]);
  await stream().end();
  assert.equal(client.state.retryInMs, 250); // They do not count as failures.
});

test('a planned reconnect is not put off by a try at a WebSocket', async (t) => {
  const { sockets, streams, stream, pass } = await streaming(t);
  await pass(292_000);
  await stream().frame({ type: 'reconnect', after_ms: 20_000 });
  await pass(12_000);
  assert.deepEqual([sockets.length, streams.length], [2, 1]);
  await pass(8_000);
  await settled();
  assert.deepEqual([sockets.length, streams.length], [2, 2]);
});

test('a client that is closed while it loads the event stream requests none', async (t) => {
  let calls = 0;
  const later = (turns, then) => (turns > 0 ? queueMicrotask(() => later(turns - 1, then)) : then());
  const token = () => {
    if ((calls += 1) === 3) later(5, () => it.client.close());
    return jwt();
  };
  const streams = gateway(t);
  const it = await start(t, { events: undefined, token });
  for (let attempt = 0; attempt < 2; attempt += 1) {
    it.last().drop(1006);
    await it.pass(it.client.state.retryInMs);
    await settled();
  }
  assert.deepEqual([calls, streams.length, it.client.state.name], [3, 0, 'closed']);
});

test('back on a WebSocket no event is lost or doubled, and the state changes from sse to websocket', async (t) => {
  const { client, sockets, stream, pass, last, received } = await streaming(t, { welcome: { cursor: 'k-1-0' } });
  await pass(300_000);
  assert.equal(sockets.length, 3);
  await stream().frame(stored(1));
  await stream().frame(plain('a'));
  await stream().frame(plain('b'));
  last().welcome({ connection: 'c2', cursor: 'k-1-0', recovered: true });
  for (const frame of [stored(1), plain('b'), plain('c')]) last().frame(frame);
  assert.ok(stream().aborted);
  await stream().frame(plain('from the past'));
  last().frame(stored(2));
  assert.deepEqual(received.notification, [1, 'a', 'b', 'c', 2]);
  const live = (transport) => ({ name: 'live', transport });
  assert.deepEqual(received.state.slice(-2), [live('sse'), live('websocket')]);
});

test('a reconnect of a stopping instance is followed while the old stream delivers', async (t) => {
  const { client, streams, pass, received, stream } = await streaming(t);
  await stream().frame({ type: 'reconnect', after_ms: 1_000 });
  await pass(1_000);
  const [old, next] = streams;
  await old.frame(plain('a'));
  await next.welcome({ connection: 'c2' });
  for (const data of ['a', 'b']) await next.frame(plain(data));
  await old.frame(plain('b'));
  assert.ok(old.aborted);
  await next.frame(plain('c'));
  assert.deepEqual([received.notification, client.state.transport], [['a', 'b', 'c'], 'sse']);
  assert.equal(received.state.filter(({ name }) => name === 'live').length, 1);
});

test('before its token expires, a stream is replaced by one with the next token, without a break', async (t) => {
  const { client, streams, pass, received, stream } = await streaming(t, { welcome: { expires_in_ms: 60_000 } });
  await pass(44_000);
  await pass(1_000);
  assert.equal(streams.length, 2);
  assert.notEqual(stream().headers.Authorization, streams[0].headers.Authorization);
  await stream().welcome({ expires_in_ms: 60_000 });
  await pass(1_000);
  assert.ok(streams[0].aborted);
  assert.deepEqual([client.state.name, received.error.length, received.welcome.length], ['live', 2, 2]);
});

test('a stream that becomes silent is replaced; a comment is a sign of life', async (t) => {
  const { client, stream, pass } = await streaming(t, { welcome: { heartbeat_ms: 25_000 } });
  for (let beats = 0; beats < 4; beats += 1) {
    await pass(24_000);
    await stream().text(':\n\n');
  }
  assert.equal(client.state.name, 'live');
  await pass(40_000);
  assert.deepEqual([client.state.name, client.state.code], ['waiting', 'silent']);
  assert.ok(stream().aborted);
});

test('a network that returns replaces a stream, which cannot be probed, within 5 s', async (t) => {
  const { fire } = page(t);
  const { streams, pass, client } = await streaming(t);
  await fire('offline', 'online');
  await pass(1_000);
  assert.equal(streams.length, 2);
  await streams[1].welcome();
  await pass(1_000);
  assert.deepEqual([streams[0].aborted, client.state.name], [true, 'live']);
});

test('a page that is left closes its stream', async (t) => {
  const { fire } = page(t);
  const { client, streams, pass } = await streaming(t);
  await fire('pagehide');
  assert.deepEqual([streams[0].aborted, client.state.name], [true, 'idle']);
  await fire('pageshow');
  await pass(0);
  await settled();
  assert.equal(streams.length, 2);
});

test('a stream is cut into blocks at every line end of the standard, wherever the pieces end', () => {
  const text = '\uFEFF: comment\r\n\r\nretry: 5\ndata:a\r\ndata: b\rdata:  c\n\nid: 9\nevent: x\n\ndata\n\ndata: {"é":1}\r\r\ndata: half';
  const whole = ['{"type":"heartbeat"}', 'a\nb\n c', '', '{"é":1}'];
  const bytes = new TextEncoder().encode(text);
  for (let size = 1; size <= bytes.length; size += 1) {
    const [decoder, parse, blocks] = [new TextDecoder(), parser(), []];
    for (let at = 0; at < bytes.length; at += size) {
      blocks.push(...parse(decoder.decode(bytes.subarray(at, at + size), { stream: true })));
    }
    assert.deepEqual(blocks, whole, `in pieces of ${size}`);
  }
});
