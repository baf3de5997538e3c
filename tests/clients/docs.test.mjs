// The programs in docs/, run as they stand there.
import assert from 'node:assert/strict';
import { on, once } from 'node:events';
import { readFile, symlink, writeFile } from 'node:fs/promises';
import net from 'node:net';
import path from 'node:path';

import { io } from 'socket.io-client-4.8';
import WebSocket from 'ws';

import { freePort, scenario, until } from '../browser/support.mjs';
import { mint, SECRET } from './backend.mjs';

const ROOT = path.join(import.meta.dirname, '../..');
const TARGET = path.resolve(ROOT, process.env.CARGO_TARGET_DIR ?? 'target');
const BINARY = process.env.GATEWAY_BIN ?? path.join(TARGET, 'debug/tidings');
const TEST_MS = 60_000;
const PAID = { title: 'Payment received', body: 'Order 4711 is paid.' };

/** The first block of this language in a page that contains a text. */
async function block(page, language, text) {
  const blocks = (await readFile(path.join(ROOT, 'docs', page), 'utf8')).split(`\`\`\`${language}\n`).slice(1);
  const found = blocks.map((rest) => rest.split('```')[0]).find((code) => code.includes(text));
  assert.ok(found, `${page} has no ${language} block with ${text}`);
  return found;
}

/** Runs a program of a page until the stage ends; returns its URL once it accepts connections. */
async function serve(stage, { command, args, redis, env }) {
  const port = await freePort();
  const child = stage.run(command, args, { SECRET, PORT: String(port), REDIS_URL: `redis://127.0.0.1:${redis.port}`, ...env });
  await until(`${command} listens`, () => {
    assert.equal(child.exitCode, null, child.output);
    return new Promise((resolve) => {
      const socket = net.connect(port, '127.0.0.1', () => resolve(true)).on('error', () => resolve(false));
      socket.on('connect', () => socket.destroy());
    });
  });
  return `http://127.0.0.1:${port}`;
}

/** A module in a folder of its own, which imports from these node_modules. */
async function module(stage, code, modules) {
  const folder = await stage.folder();
  await symlink(path.join(ROOT, modules, 'node_modules'), path.join(folder, 'node_modules'));
  await writeFile(path.join(folder, 'server.mjs'), code);
  return { command: 'node', args: [path.join(folder, 'server.mjs')] };
}

/** The events of a connection, from now on. */
async function* eventsOf(messages) {
  for await (const [data] of messages) {
    const frame = JSON.parse(data);
    if (frame.type === 'event') yield frame;
  }
}

/** Asserts that a backend gives tokens, and notifies of a payment once. */
async function quickstart(stage, program) {
  const redis = await stage.redis();
  const gateway = await stage.gateway({ redis, secret: SECRET });
  const url = await serve(stage, { ...program, redis });
  const post = async (target, form) => {
    const response = await fetch(url + target, { method: 'POST', body: new URLSearchParams(form) });
    assert.ok(response.ok, `${target}: ${response.status} ${await response.clone().text()}`);
    return response;
  };

  const { token } = await (await post('/token', { user: '42' })).json();
  const socket = new WebSocket(`ws://${gateway.public}/ws`, ['tidings.v1', `bearer.${token}`]);
  stage.onClose(() => socket.terminate());
  const events = eventsOf(on(socket, 'message'));
  await once(socket, 'open');
  await post('/paid', { user: '42', order: '4711' });
  const { event, data, id } = (await events.next()).value;
  assert.deepEqual([event, data], ['paid', PAID]);
  assert.equal(typeof id, 'string');
  // The payment provider calls again, then for another order: that one comes next.
  await post('/paid', { user: '42', order: '4711' });
  await post('/paid', { user: '42', order: '4712' });
  assert.equal((await events.next()).value.data.body, 'Order 4712 is paid.');
}

scenario('quickstart.md: Express gives tokens, and notifies once', async (stage) => {
  await quickstart(stage, await module(stage, await block('quickstart.md', 'js', "from 'express'"), 'tests/clients'));
}, TEST_MS);

scenario('quickstart.md: Django gives tokens, and notifies once', async (stage) => {
  const file = path.join(await stage.folder(), 'app.py');
  await writeFile(file, await block('quickstart.md', 'python', 'django'));
  await quickstart(stage, { command: path.join(TARGET, 'clients/bin/python'), args: [file] });
}, TEST_MS);

/** What tidings publishes for user 42 that is no JSON: a notification that is stored, one with an event name, and a notice. */
async function besides({ admin, store }) {
  const id = await store('42', { text: 'stored' });
  const call = (path, method, body) => fetch(`http://${admin}/v1/users/42/${path}`, { method, body: JSON.stringify(body) });
  assert.equal((await call('notifications', 'POST', { data: 1, event: 'paid' })).status, 202);
  assert.equal((await call('read-position', 'PUT', { id })).status, 200);
}

/** Asserts that user 42 receives what is published for user 42, and a client with a bad token is told why. */
async function classic(stage, redis, url, before = async () => {}) {
  const connect = (token) => {
    const socket = io(url, { auth: (send) => send({ token }), forceNew: true });
    stage.onClose(() => socket.close());
    return socket;
  };
  const socket = connect(mint('42'));
  const received = new Promise((resolve) => {
    socket.on('notification', resolve);
  });
  await once(socket, 'connect');
  await before();
  await redis.cli('PUBLISH', 'user:43', '{"text":"for another"}');
  await redis.cli('PUBLISH', 'user:42', '{"text":"hello"}');
  assert.deepEqual(await received, { text: 'hello' });
  const [error] = await once(connect('no token'), 'connect_error');
  assert.ok(error.message);
}

scenario('from-socket-io.md: the classic server, and tidings in its place, serve one client', async (stage) => {
  const redis = await stage.redis();
  const before = await module(stage, await block('from-socket-io.md', 'js', 'psubscribe'), 'examples/socket-io-page');
  const tidings = await stage.gateway({ redis, secret: SECRET });
  await classic(stage, redis, await serve(stage, { ...before, redis }), () => besides(tidings));
  const after = await block('from-socket-io.md', 'sh', 'TIDINGS_AUTH__HMAC_SECRET');
  const args = ['-c', `exec env ${after.replace('\n', ' ')} --admin-listen 127.0.0.1:0`];
  const env = { PATH: `${path.dirname(path.resolve(BINARY))}:${process.env.PATH}` };
  await classic(stage, redis, await serve(stage, { command: 'sh', args, env, redis }));
}, TEST_MS);

scenario('examples/socket-io-page: its server goes on beside tidings', async (stage) => {
  const redis = await stage.redis();
  const tidings = await stage.gateway({ redis, secret: SECRET });
  const { url } = await stage.example({ redis, secret: SECRET });
  await classic(stage, redis, url, () => besides(tidings));
}, TEST_MS);
