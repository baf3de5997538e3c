// Over a real WebSocket: framing, subprotocol and close codes on the wire.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import test from 'node:test';
import { WebSocket, WebSocketServer } from 'ws';
import { Tidings } from '../tidings.js';
import { jwt } from './support.js';

const token = () => jwt('real', 3_600_000, Date.now());
const said = (client, name) => new Promise((resolve) => {
  const leave = client.on(name, (...args) => {
    leave();
    resolve(args);
  });
});

async function serve(t, options = {}) {
  const server = new WebSocketServer({ port: 0, host: '127.0.0.1', handleProtocols: () => 'tidings.v1', ...options });
  await once(server, 'listening');
  const connect = (more) => {
    const url = `http://127.0.0.1:${server.address().port}/ws`;
    const client = new Tidings(url, { token, WebSocket, random: () => 0, events: null, ...more });
    t.after(() => client.close());
    return client;
  };
  t.after(() => {
    for (const socket of server.clients) socket.terminate();
    server.close();
  });
  const accepted = async (more) => {
    const [socket, request] = await once(server, 'connection');
    const welcome = { connection: 'c1', user: '42', instance: 'i1', cursor: 'k0', recovered: false };
    socket.send(JSON.stringify({ type: 'welcome', ...welcome, heartbeat_ms: 25_000, ...more }));
    return { socket, request, send: (frame) => socket.send(JSON.stringify(frame)) };
  };
  return { connect, accepted };
}

test('on the wire: the handshake offers the token, events arrive, and a ping is answered', async (t) => {
  const { connect, accepted } = await serve(t);
  const client = connect();
  const notified = said(client, 'notification');
  const { socket, request, send } = await accepted();
  assert.match(request.headers['sec-websocket-protocol'], /^tidings\.v1,\s?bearer\.[\w-]+\.[\w-]+\.sig$/);
  send({ type: 'event', event: 'notification', data: { title: 'Grüße €' } });
  assert.deepEqual((await notified)[0], { title: 'Grüße €' });
  const answered = once(socket, 'message');
  send({ type: 'ping' });
  assert.deepEqual(JSON.parse((await answered)[0]), { type: 'pong' });
});

test('on the wire: a drain moves the client to a new connection, which resumes', async (t) => {
  const { connect, accepted } = await serve(t);
  connect();
  const first = await accepted();
  const left = once(first.socket, 'close');
  first.send({ type: 'event', event: 'notification', data: 1, id: 'k1' });
  first.send({ type: 'reconnect', after_ms: 5 });
  const second = await accepted({ recovered: true });
  assert.equal(second.request.url, '/ws?resume=k1');
  await left;
});

test('on the wire: the close code decides on a retry', async (t) => {
  const { connect, accepted } = await serve(t);
  const client = connect();
  (await accepted()).socket.close(4203, 'too slow');
  const again = await accepted();
  await said(client, 'welcome');
  const failed = said(client, 'error');
  again.socket.close(4011, 'signed out');
  assert.equal((await failed)[0].code, 4011);
  assert.deepEqual(client.state, { name: 'closed', code: 4011, reason: 'signed out' });
});

test('on the wire: a refused handshake is retried with a fresh token', async (t) => {
  let refusals = 2;
  const verifyClient = (info, done) => done((refusals -= 1) < 0, 503);
  const { connect, accepted } = await serve(t, { verifyClient });
  let tokens = 0;
  const client = connect({ token: () => jwt(`t${(tokens += 1)}`) });
  await accepted();
  assert.equal(tokens, 3);
  await said(client, 'welcome');
});

test('on the wire: close() during the handshake is quiet', async (t) => {
  const { connect } = await serve(t, { verifyClient: () => {} });
  const client = connect();
  client.on('error', (error) => assert.fail(error));
  await new Promise((resolve) => setImmediate(resolve));
  client.close();
  assert.equal(client.state.name, 'closed');
});
