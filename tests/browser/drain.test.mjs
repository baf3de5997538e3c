// The SDK, in Node, while one of two real instances drains: plain messages are published all the time.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import net from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { Tidings } from '../../sdk/js/tidings.js';
import { scenario, SECRET, token, until } from './support.mjs';

const { WebSocket } = createRequire(new URL('../../sdk/js/package.json', import.meta.url))('ws');
const USERS = Array.from({ length: 6 }, (_, at) => `user-${at}`);
const TOKEN_MS = 150;
const PUBLISH_EVERY_MS = 8;

/** Publishes numbers to each user in turn until stopped; gives how many each has been sent. */
async function publishing(stage, redis) {
  const socket = net.connect(redis.port, '127.0.0.1');
  let goesOn = true;
  stage.onClose(() => {
    goesOn = false;
    socket.destroy();
  });
  socket.resume();
  const sent = (async () => {
    let number = 0;
    for (; goesOn; number += 1) {
      for (const user of USERS) socket.write(`PUBLISH user:${user} ${number}\r\n`);
      await pause(PUBLISH_EVERY_MS);
    }
    return number;
  })();
  return { stop: () => ((goesOn = false), sent) };
}

scenario('a drain of one of two instances loses and doubles no plain message, with a slow token', async (stage) => {
  const redis = await stage.redis();
  const start = () => stage.gateway({ redis, secret: SECRET, set: ['drain.window=8s'] });
  const [leaving, staying] = await Promise.all([start(), start()]);
  let target = leaving.public;
  const { port } = await stage.balancer(() => target);
  const got = new Map();
  const clients = await Promise.all(USERS.map(async (user) => {
    const jwt = await token(user);
    const slow = async () => (await pause(TOKEN_MS), jwt);
    const client = new Tidings(`ws://127.0.0.1:${port}/ws`, { token: slow, WebSocket });
    stage.onClose(() => client.close());
    client.on('event', (data) => got.get(user).push(data));
    got.set(user, []);
    await new Promise((resolve) => client.on('welcome', resolve));
    return client;
  }));
  const publisher = await publishing(stage, redis);
  await until('messages arrive', () => USERS.every((user) => got.get(user).length > 10));

  target = staying.public;
  assert.equal(await leaving.end('SIGTERM'), 0);
  const hasMoved = ({ state, welcome }) => state.name === 'live' && welcome.instance === staying.instance;
  await until('all have moved', () => clients.every(hasMoved));
  const count = await publisher.stop();
  await until('the last have arrived', () => USERS.every((user) => got.get(user).at(-1) === count - 1));
  const all = Array.from({ length: count }, (_, number) => number);
  for (const user of USERS) assert.deepEqual(got.get(user), all);
});
