// Control: the same clients with socket.io's own server, as examples/socket-io-page uses it. What they do here, they did
// before their URL changed.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createRequire } from 'node:module';
import test from 'node:test';

import { SOCKET_IO_CLIENTS } from './rows.mjs';
import { everyClient, nodeServer } from './world.mjs';

const data = (entries) => entries.map(({ args }) => args[0]);

everyClient('node: a client connects with an auth function, and receives', SOCKET_IO_CLIENTS, nodeServer, {
  each: async (client) => {
    const log = await client.connect();
    assert.equal(client.tokens, 1);
    await client.publish({ hello: 'wörld' });
    const { name, args } = await log.next('event', 'lost');
    assert.equal(name, 'notification');
    assert.deepEqual(args[0], { hello: 'wörld' });
  },
});

everyClient('node: a client without a valid token is told why, and stops', SOCKET_IO_CLIENTS, nodeServer, {
  each: async (client) => {
    client.token = () => 'no token';
    assert.equal((await client.start().next('ended', 'connected', 'attempt_failed')).reason, 'jwt malformed');
  },
});

everyClient('node: a client returns after its server was killed', SOCKET_IO_CLIENTS, nodeServer, {
  each: (client) => client.connect(),
}, {
  once: async (world) => {
    await world.server.end('SIGKILL');
    await world.restart();
  },
  each: async (client) => {
    await client.log.next('lost');
    await client.log.next('connected', 'ended');
    assert.ok(client.tokens > 1, 'asks for a new token');
    await client.publish('back');
    assert.equal((await client.log.next('event', 'lost')).args[0], 'back');
  },
});

everyClient('node: a client from 4.6 on recovers after a cut', SOCKET_IO_CLIENTS, nodeServer, {
  each: async (client, world) => {
    // A position exists from the first event on.
    const log = await client.connect(world.balanced);
    await client.publish('first');
    await log.next('event');
  },
}, {
  once: (world) => world.balancer.cut(),
  each: async (client) => {
    for (const number of [1, 2, 3]) await client.publish(number);
    await client.log.next('lost');
    const { recovered } = await client.log.next('connected', 'ended');
    assert.equal(recovered ?? false, client.recovers);
    await client.publish('last');
    while ((await client.log.next('event', 'lost')).args[0] !== 'last');
    const expected = client.recovers ? ['first', 1, 2, 3, 'last'] : ['first', 'last'];
    assert.deepEqual(data(client.log.all('event')), expected);
  },
});
