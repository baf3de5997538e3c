// What every client does with tidings, whichever its dialect.
import assert from 'node:assert/strict';

import { until } from '../browser/support.mjs';
import { mint } from './backend.mjs';
import { CLIENTS } from './rows.mjs';
import { everyClient, fleet } from './world.mjs';

const isSse = ({ dialect }) => dialect === 'sse';
const EXPIRES_S = 4;

/** What an application gets of an ephemeral notification: a last argument that is a string would count as an offset. */
const plain = (client, data) => (!isSse(client) && typeof data === 'string' ? [data, null] : [data]);

/** Asserts that this ephemeral notification arrives next, on the connection of before. */
async function receives(client, data) {
  await client.publish(data);
  const { name, args } = await client.log.next('event', 'lost', 'ended', 'connected');
  assert.deepEqual([name, ...args], ['notification', ...plain(client, data)]);
}

/** Asserts that this stored notification arrives next, with a cursor, and returns the cursor. */
async function receivesStored(client, data, name = 'notification') {
  const event = await client.log.next('event', 'lost', 'ended', 'connected');
  const cursor = event.args[1];
  assert.equal(typeof cursor, 'string');
  assert.deepEqual([event.name, ...event.args], [name, data, cursor]);
  if (isSse(client)) assert.equal(event.id, cursor);
  return cursor;
}

/** Asserts that the client reconnects by itself, and recovers if it is of those that do. */
async function returns(client, code) {
  const lost = await client.log.next('lost', 'ended');
  if (client.showsCode && code) assert.equal(lost.code, code);
  const { recovered } = await client.log.next('connected', 'ended');
  assert.equal(recovered ?? false, client.recovers);
}

const ascending = (a, b) => a - b;

/** Asserts that the numbers until `last` arrived in order, each once: all of them if the client recovers. */
async function receivedInOrder(client, last) {
  const numbers = () => client.log.all('event').map(({ args }) => args[0]);
  await until(`${client.name}: the last event`, () => numbers().includes(last));
  const got = numbers();
  if (client.recovers) assert.deepEqual(got, Array.from({ length: last + 1 }, (_, number) => number));
  else assert.deepEqual(client.disorders ? got.sort(ascending) : got, [...new Set(got)].sort(ascending));
}

async function storeNumbers(client, from, to) {
  for (let number = from; number <= to; number += 1) await client.store(number);
}

const areOnTheOther = ({ instances }) => until('all are on the other instance', async () =>
  (await instances[1].info()).connections === CLIENTS.length);

everyClient('a client connects with an auth function, and receives plain and stored notifications', CLIENTS, fleet(), {
  each: async (client, { redis, instances }) => {
    await client.connect();
    assert.equal(client.tokens, 1, String(client.log));
    for (const data of [{ hello: 'wörld', n: [1, 2.5] }, 'just text', null]) await receives(client, data);
    await client.store({ stored: 1 });
    const first = await receivesStored(client, { stored: 1 });
    await client.store('text', 'event', 'paid');
    const second = await receivesStored(client, 'text', 'paid');
    const third = await instances[1].store(client.user, ['http']);
    assert.equal(await receivesStored(client, ['http']), third);
    assert.equal(new Set([first, second, third]).size, 3);
    assert.equal(await redis.cli('sismember', 'online_users', client.user), '1');
  },
});

everyClient('a client returns after its server was killed', CLIENTS, fleet(), {
  each: (client) => client.connect(),
}, {
  once: ({ instances }) => instances[0].end('SIGKILL'),
  each: (client) => storeNumbers(client, 0, 4),
}, {
  once: (world) => world.restart(),
  each: async (client) => {
    await returns(client);
    assert.ok(client.tokens > 1 || isSse(client), 'asks for a new token');
    await client.store(5);
    await receivedInOrder(client, 5);
  },
});

everyClient('a client whose token ends reconnects with a new one', CLIENTS, fleet(), {
  each: async (client) => {
    client.token = () => mint(client.user, client.tokens === 1 ? EXPIRES_S : 3600);
    await client.connect();
    await returns(client, 4010);
    assert.ok(client.tokens > 1);
    await receives(client, 'still here');
  },
});

everyClient('a client whose token has ended is told so, and stops', CLIENTS, fleet(), {
  each: async (client) => {
    client.token = () => mint(client.user, -1);
    const log = client.start();
    if (client.runs === 'page') {
      // A page sees no status; the browser does not try again.
      assert.equal((await log.next('attempt_failed', 'connected')).closed, true);
    } else {
      assert.equal((await log.next('ended', 'connected', 'attempt_failed')).code, isSse(client) ? 401 : 4010);
    }
  },
});

everyClient('a revoked client is closed, and refused', CLIENTS, fleet(), {
  each: async (client, { send }) => {
    client.token = () => mint(client.user, 3600, { jti: client.user });
    const log = await client.connect();
    const revoke = { jti: client.user, until: Math.floor(Date.now() / 1000) + 3600 };
    await send('PUBLISH', 'tidings:control', JSON.stringify({ revoke }));
    if (isSse(client)) {
      // A client of SSE reconnects by itself, and the same token gets a 401.
      assert.equal((await log.next('lost', 'ended')).code, 4009);
      if (client.runs === 'page') assert.equal((await log.next('attempt_failed', 'connected')).closed, true);
      else assert.equal((await log.next('ended', 'connected', 'attempt_failed')).code, 401);
    } else {
      assert.match((await log.next('ended', 'lost')).reason, /server disconnect/);
      assert.equal((await client.start().next('ended', 'connected', 'attempt_failed')).code, 4009);
    }
  },
});

everyClient('a disconnected client of socket.io stops, and one of SSE returns', CLIENTS, fleet(), {
  each: async (client, { send }) => {
    await client.connect();
    await send('PUBLISH', 'tidings:control', JSON.stringify({ disconnect: { user: client.user } }));
    if (isSse(client)) await returns(client, 4011);
    else assert.match((await client.log.next('ended', 'lost')).reason, /server disconnect/);
  },
});

everyClient('a drained client moves to another instance', CLIENTS, fleet(), {
  each: async (client, world) => {
    await client.connect(world.balanced);
    await storeNumbers(client, 0, 0);
    await receivesStored(client, 0);
  },
}, {
  once: (world) => {
    world.target = world.instances[1];
    world.drained = world.instances[0].end('SIGTERM');
  },
  each: async (client) => {
    await Promise.all([storeNumbers(client, 1, 9), returns(client, 4200)]);
    await client.store(10);
    await receivedInOrder(client, 10);
  },
}, {
  once: async (world) => {
    assert.equal(await world.drained, 0);
    await areOnTheOther(world);
  },
});

everyClient('a client of a user at the limit is refused', CLIENTS, fleet('limits.max_connections_per_user=1'), {
  each: async (client) => {
    const first = await client.connect();
    const second = client.start();
    if (isSse(client)) {
      // The refusal is temporary: the client tries again.
      assert.equal((await second.next('attempt_failed', 'connected', 'ended')).code, 4004);
      await first.close();
      await second.next('connected', 'ended');
    } else {
      assert.equal((await second.next('ended', 'connected', 'attempt_failed')).code, 4004);
      await receives(client, 'the first one stays');
    }
  },
});

everyClient('after a cut, stored events reach a client on another instance in order, each once', CLIENTS, fleet(), {
  each: async (client, world) => {
    await client.connect(world.balanced);
    await storeNumbers(client, 0, 2);
    for (const number of [0, 1, 2]) await receivesStored(client, number);
  },
}, {
  once: (world) => {
    world.target = world.instances[1];
    world.balancer.cut();
  },
  each: async (client) => {
    await Promise.all([storeNumbers(client, 3, 22), returns(client)]);
    await storeNumbers(client, 23, 24);
    await receivedInOrder(client, 24);
  },
}, {
  once: areOnTheOther,
});
