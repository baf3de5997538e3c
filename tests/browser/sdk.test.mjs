// The SDK in a browser, on a page of another web server, with a real gateway.
import assert from 'node:assert/strict';
import { ELSEWHERE, scenario, SECRET, token, until } from './support.mjs';

/** The test reads `client`, `states`, `errors` and `got`. */
const sdkPage = (address, jwt) => `<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
<title>sdk</title>
<script type="module">
  import { Tidings } from '/tidings.js';
  Object.assign(window, { states: [], errors: [], got: [] });
  window.client = new Tidings('ws://${address}/ws', { token: () => '${jwt}' });
  client.on('state', (state) => states.push(state));
  client.on('error', ({ code, message }) => errors.push({ code, message }));
  client.on('event', (data) => got.push(data));
</script>`;

const REFUSED = /WebSocket connection to/;

/** The event stream that is tried then is refused as well. */
const FOREIGN = /WebSocket connection to|blocked by CORS policy|net::ERR_FAILED/;

const live = (page) => page.waitForFunction(() => window.client?.state.name === 'live');

async function opened(stage, address, jwt, { host = '127.0.0.1', ...options } = {}) {
  const port = await stage.site(sdkPage(address, jwt));
  return stage.page(`http://${host}:${port}/`, options);
}

scenario('a page whose token is refused learns why', async (stage) => {
  const gateway = await stage.gateway({ secret: `${SECRET}, but of another application` });
  const page = await opened(stage, gateway.public, await token('42'), { mayLog: REFUSED });
  await page.waitForFunction(() => window.client?.state.name === 'closed');
  const { code, reason } = await page.evaluate(() => client.state);
  assert.deepEqual([code, reason !== ''], [4009, true]);
});

scenario('a page of a foreign origin, whose browser tells it nothing, is told of possible causes', async (stage) => {
  const gateway = await stage.gateway({ secret: SECRET });
  const page = await opened(stage, gateway.public, await token('42'), { host: ELSEWHERE, mayLog: FOREIGN });
  // Chromium holds each handshake after a failure back for up to 5 s.
  await page.waitForFunction(() => states.some(({ reason }) => /Origin/.test(reason)), null, { timeout: 30_000 });
  assert.deepEqual(await page.evaluate(() => [...new Set(errors.map(({ code }) => code))]), [1006]);
});

scenario('after a failed handshake, a page is the user of its token, whatever its cookie says', async (stage) => {
  let handshakes = 0;
  let address;
  const { port } = await stage.balancer(() => ((handshakes += 1) === 1 ? '127.0.0.1:1' : address));
  const site = `http://127.0.0.1:${await stage.site(sdkPage(`127.0.0.1:${port}`, await token('42')))}`;
  const set = ['auth.token_cookie=tk', `server.allowed_origins=${site}`];
  address = (await stage.gateway({ secret: SECRET, set })).public;
  const page = await stage.page(null, { mayLog: REFUSED });
  await page.context().addCookies([{ name: 'tk', value: await token('admin'), url: site }]);
  await page.goto(site);
  await live(page);
  assert.deepEqual([handshakes, await page.evaluate(() => client.welcome.user)], [2, '42']);
});

scenario('a page that is left is offline at once, and is live again when it comes back', async (stage) => {
  const gateway = await stage.gateway({ secret: SECRET });
  const page = await opened(stage, gateway.public, await token('42'));
  await live(page);
  await page.evaluate(() => (window.kept = true));
  const users = async () => (await gateway.info()).users;
  assert.equal(await users(), 1);
  await page.goto(page.url().replace('127.0.0.1', 'localhost'));
  await live(page); // The other page, which is another connection.
  await page.evaluate(() => client.close());
  await until('the user is offline', async () => (await users()) === 0);
  await gateway.store('42', 'while it was away');

  await page.goBack({ waitUntil: 'commit' });
  await page.waitForFunction(() => window.kept && window.got.length > 0);
  assert.deepEqual(await page.evaluate(() => [client.state.name, got, errors]), ['live', ['while it was away'], []]);
  assert.deepEqual(await page.evaluate(() => states.map(({ name }) => name)), ['live', 'idle', 'connecting', 'live']);
});

scenario('a dead connection is replaced within 5 s of the network coming back', async (stage) => {
  const gateway = await stage.gateway({ secret: SECRET });
  const { port, freeze } = await stage.balancer(() => gateway.public);
  const page = await opened(stage, `127.0.0.1:${port}`, await token('42'));
  await live(page);
  const first = await page.evaluate(() => client.welcome.connection);
  freeze();
  await page.context().setOffline(true);
  await page.waitForFunction(() => client.state.offline);
  await page.context().setOffline(false);
  const back = Date.now();
  await page.waitForFunction((old) => client.welcome.connection !== old && client.state.name === 'live', first);
  assert.ok(Date.now() - back < 5_000);
  await gateway.publish('42', 'back');
  await page.waitForFunction(() => got.includes('back'));
});
