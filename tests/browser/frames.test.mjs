// The SDK, in Node, with the frames of a real instance that a fake one could get wrong.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { Tidings } from '../../sdk/js/tidings.js';
import { scenario, SECRET, token, until } from './support.mjs';

const { WebSocket } = createRequire(new URL('../../sdk/js/package.json', import.meta.url))('ws');
const TEN_MINUTES = 600_000;

function connect(stage, gateway, makeToken) {
  const client = new Tidings(`ws://${gateway.public}/ws`, { token: makeToken, WebSocket });
  stage.onClose(() => client.close());
  return client;
}

const next = (client, name) => new Promise((resolve) => client.on(name, (...args) => resolve(args)));

scenario('a client is told of a subscription that its instance lost, and of how long', async (stage) => {
  const redis = await stage.redis();
  const gateway = await stage.gateway({ redis, secret: SECRET });
  const jwt = await token('42');
  const client = connect(stage, gateway, () => jwt);
  await next(client, 'welcome');
  const told = next(client, 'gap');
  await redis.cli('client', 'kill', 'type', 'pubsub');
  const [gap] = await told;
  assert.ok(Number.isInteger(gap.since_ms) && gap.since_ms >= 0 && gap.since_ms < 60_000, JSON.stringify(gap));
  assert.equal(client.state.name, 'live');
});

for (const off of [-TEN_MINUTES, TEN_MINUTES]) {
  scenario(`a device whose clock is ${off / 60_000} minutes off outlives its first token on one connection`, async (stage) => {
    const now = Date.now;
    Date.now = () => now() + off;
    stage.onClose(() => (Date.now = now));
    const gateway = await stage.gateway({ secret: SECRET, set: ['auth.leeway=0s'] });
    let tokens = 0;
    const client = connect(stage, gateway, () => ((tokens += 1), token('42', '4s')));
    const [first] = await next(client, 'welcome');
    assert.ok(first.expires_in_ms > 1_000 && first.expires_in_ms <= 4_000, JSON.stringify(first));
    await until('it has asked for its fourth token', () => tokens >= 4);
    assert.equal(client.welcome.connection, first.connection);
    assert.equal((await gateway.info()).connections, 1);
  });
}
