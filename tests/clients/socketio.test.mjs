// What only clients of socket.io do.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import net from 'node:net';
import { text } from 'node:stream/consumers';
import test from 'node:test';

import { Stage, until } from '../browser/support.mjs';
import { mint, SECRET } from './backend.mjs';
import { SOCKET_IO_CLIENTS } from './rows.mjs';
import { everyClient, fleet } from './world.mjs';

const require = createRequire(import.meta.url);
const JAVASCRIPT = SOCKET_IO_CLIENTS.filter(({ runs }) => runs === 'socket.io');

const noticed = fleet('server.pong_timeout=2s');

everyClient('a client leaves a connection that carries nothing, and recovers elsewhere', SOCKET_IO_CLIENTS, noticed, {
  each: (client, world) => client.connect(world.balanced),
}, {
  once: (world) => {
    world.target = world.instances[1];
    world.balancer.freeze();
  },
  each: async (client) => {
    await client.store('missed');
    await client.log.next('lost', 'ended');
    const { recovered } = await client.log.next('connected', 'ended');
    assert.equal(recovered ?? false, client.recovers);
    if (client.recovers) assert.equal((await client.log.next('event', 'lost')).args[0], 'missed');
  },
});

const olderClients = JAVASCRIPT.filter(({ recovers }) => !recovers);

everyClient('a client before 4.6 recovers if its auth function passes the last cursor', olderClients, fleet(), {
  each: async (client, world) => {
    client.auth = () => ({ resume: client.log?.all('event').at(-1)?.args[1] });
    await client.connect(world.balanced);
    await client.store('first');
    await client.log.next('event', 'lost');
  },
}, {
  once: (world) => {
    world.target = world.instances[1];
    world.balancer.cut();
  },
  each: async (client) => {
    for (const data of ['second', 'third']) await client.store(data);
    await client.log.next('connected', 'ended');
    for (const data of ['second', 'third']) assert.equal((await client.log.next('event', 'lost')).args[0], data);
  },
});

everyClient('a refused client stays away', SOCKET_IO_CLIENTS, fleet('server.hello_timeout=4s'), {
  each: async (client) => {
    client.token = () => 'no token';
    const log = client.start();
    await log.next('ended', 'connected');
    const before = [client.tokens, log.all('lost').length];
    // Older clients leave the close to the server, and would take it for a failure of the network.
    if (log.socket) await until('the connection is closed', () => log.socket.io.engine.readyState === 'closed');
    assert.deepEqual([client.tokens, log.all('lost').length], before, String(log));
  },
});

everyClient('a client stays connected through heartbeats', JAVASCRIPT, fleet(), {
  each: async (client) => {
    const log = await client.connect();
    let pings = 0;
    log.socket.io.engine.on('packet', ({ type }) => (pings += type === 'ping'));
    await until('some heartbeats', () => pings > 3);
    assert.deepEqual(log.entries.map(({ is }) => is), ['connected']);
  },
});

everyClient('events that a client emits are ignored, except an ack of what it read', JAVASCRIPT, fleet(), {
  each: async (client, { instances }) => {
    const { socket } = await client.connect();
    await client.store('one');
    await client.store('two');
    await client.log.next('event', 'lost');
    const [, cursor] = (await client.log.next('event', 'lost')).args;
    socket.emit('chat', { to: 'all' });
    socket.emit('asks', 1, () => client.log.add({ is: 'answered' }));
    socket.emit('binary', Buffer.from('bytes'), { nested: Buffer.from('more') });
    assert.equal(await instances[0].unread(client.user), 2);
    socket.emit('ack', cursor);
    await until('all is read', async () => (await instances[0].unread(client.user)) === 0);
    await client.publish('still here');
    await client.log.next('event', 'lost', 'ended', 'answered');
  },
});

everyClient('an event whose name the client reserves is not sent, and the next one is', SOCKET_IO_CLIENTS, fleet(), {
  each: async (client) => {
    await client.connect();
    for (const name of ['disconnect', 'connect_error', 'newListener']) await client.store(name, 'event', name);
    await client.store('plain');
    assert.equal((await client.log.next('event', 'lost', 'ended')).args[0], 'plain');
  },
});

everyClient('another namespace is refused', JAVASCRIPT, fleet(), {
  each: async (client, { url }) => {
    assert.equal((await client.start(`${url}/admin`).next('ended', 'connected')).reason, 'Invalid namespace');
  },
});

/** The answer to a request for a websocket, as text. */
async function upgrade(port, path) {
  const socket = net.connect(port, '127.0.0.1');
  socket.end(`GET ${path} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n`
    + 'Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n');
  return text(socket);
}

test('socket.io-client 2.5 is refused before its connection opens', async (t) => {
  const stage = new Stage();
  t.after(() => stage.close());
  const gateway = await stage.gateway({ secret: SECRET });
  const query = { token: mint('42') };
  for (const [transport, message] of [['polling', 'xhr poll error'], ['websocket', 'websocket error']]) {
    const socket = require('socket.io-client-2.5')(gateway.url, { transports: [transport], query, forceNew: true });
    stage.onClose(() => socket.close());
    const outcome = await new Promise((resolve) => {
      socket.on('connect', () => resolve('connected'));
      socket.on('connect_error', (error) => resolve(error.message));
    });
    assert.equal(outcome, message);
  }
  const polled = await fetch(`${gateway.url}socket.io/?EIO=3&transport=polling`);
  const refusal = { code: 5, message: 'Unsupported protocol version' };
  assert.deepEqual([polled.status, await polled.json()], [400, refusal]);
  const answer = await upgrade(new URL(gateway.url).port, '/socket.io/?EIO=3&transport=websocket');
  assert.match(answer, /^HTTP\/1\.1 400 /);
  assert.deepEqual(JSON.parse(answer.split('\r\n\r\n')[1]), refusal);
});
