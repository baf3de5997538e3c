// The SDK in browsers whose network lets no WebSocket through: event streams, and one for all tabs.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import net from 'node:net';
import { after, before } from 'node:test';
import { firefoxTab, startFirefox, stopFirefox } from './firefox.mjs';
import { ELSEWHERE, scenario, SECRET, token, until } from './support.mjs';

/**
 * The test reads `client`, `states`, `errors` and `got`. Tokens are fetched from the site, as applications do. Options may
 * follow in the fragment.
 */
const page = (address) => `<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><title>sdk</title>
<script type="module">
  import { Tidings } from '/tidings.js';
  Object.assign(window, { states: [], errors: [], got: [], tokens: 0 });
  const token = async () => ((tokens += 1), (await fetch('/token')).text());
  const options = JSON.parse(decodeURIComponent(location.hash.slice(1)) || '{}');
  window.client = new Tidings('ws://${address}/ws', { token, baseDelayMs: 100, maxDelayMs: 800, ...options });
  client.on('state', (state) => states.push(state));
  client.on('error', ({ code, message }) => errors.push({ code, message }));
  client.on('event', (data) => got.push(data));
</script>`;

/** What browsers log of connections that fail. */
const FAILS = /WebSocket connection to|net::ERR_/;

/** A balancer in front of a gateway that refuses WebSockets, as some proxies do, until it is told to let them through. */
async function proxy(stage, gateway) {
  const it = { blocks: true, target: gateway.public, refused: 0 };
  const open = new Set();
  const server = net.createServer((near) => {
    open.add(near);
    near.on('error', () => {}).on('close', () => open.delete(near));
    near.once('data', (head) => {
      if (it.blocks && /^upgrade: *websocket/im.test(head)) {
        it.refused += 1;
        return near.end('HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n');
      }
      const [host, port] = it.target.split(':');
      const far = net.connect(Number(port), host, () => far.write(head));
      near.pipe(far).pipe(near);
      far.on('error', () => near.destroy()).on('close', () => near.destroy());
      near.on('close', () => far.destroy());
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  stage.onClose(() => (server.close(), open.forEach((socket) => socket.destroy())));
  return Object.assign(it, { address: `127.0.0.1:${server.address().port}` });
}

async function chromiumTab(stage, url, beside) {
  const page = beside ? await beside.page.context().newPage() : await stage.page(null, { mayLog: FAILS });
  await page.goto(url);
  const evaluate = (expression) => page.evaluate(expression);
  return { page, evaluate, holds: (condition) => page.waitForFunction(condition), close: () => page.close() };
}

const TABS = { Chromium: chromiumTab, Firefox: firefoxTab };

/** A scenario for each browser. */
function inBrowsers(name, play) {
  for (const [browser, tab] of Object.entries(TABS)) scenario(`${browser}: ${name}`, (stage) => play(stage, tab));
}

before(startFirefox);
after(stopFirefox);

/** A gateway behind a proxy, and `open`, which opens the page of user 42, in a browser of its own or as another tab. */
async function blocked(stage, tab, { set = [], ttl = '1h', redis } = {}) {
  const gateway = await stage.gateway({ secret: SECRET, set, redis });
  const behind = await proxy(stage, gateway);
  const site = `http://127.0.0.1:${await stage.site(page(behind.address), { '/token': () => token('42', ttl) })}`;
  const open = ({ options = {}, beside } = {}) =>
    tab(stage, `${site}/#${encodeURIComponent(JSON.stringify(options))}`, beside);
  return { gateway, behind, open };
}

const live = (tab, transport) => tab.holds(`window.client?.state.transport === '${transport}'`);
const arrived = (tab, ...data) => tab.holds(`String(got) === '${data}'`);
const names = (tab) => tab.evaluate('states.map(({ name, transport }) => transport ?? name)');

inBrowsers('where no WebSocket opens, a page is live on an event stream, and receives everything once, in order', async (stage, browser) => {
  const { gateway, behind, open } = await blocked(stage, browser);
  await gateway.store('42', 'before');
  const tab = await open({ options: { resume: 'acked' } });
  await live(tab, 'sse');
  await arrived(tab, 'before');
  await gateway.publish('42', 'plain');
  await gateway.store('42', 'stored');
  await gateway.publish('42', 'last');
  await arrived(tab, 'before', 'plain', 'stored', 'last');
  assert.deepEqual([await tab.evaluate('client.welcome.unread'), behind.refused], [1, 2]);
  assert.equal(await gateway.connections('sse'), 1);
});

inBrowsers('a gateway that is killed and comes back is found again, with the events that were stored', async (stage, browser) => {
  const redis = await stage.redis();
  const { gateway, behind, open } = await blocked(stage, browser, { redis });
  const tab = await open();
  await live(tab, 'sse');
  await gateway.store('42', 1);
  await arrived(tab, 1);
  await gateway.end('SIGKILL');
  await tab.holds('client.state.name === "waiting"');
  const next = await stage.gateway({ secret: SECRET, redis });
  await next.store('42', 2);
  behind.target = next.public;
  await live(tab, 'sse');
  await arrived(tab, 1, 2);
});

inBrowsers('a stream is replaced before its token expires, without a break', async (stage, browser) => {
  const { gateway, open } = await blocked(stage, browser, { ttl: '9s', set: ['auth.leeway=0s'] });
  const tab = await open();
  await live(tab, 'sse');
  const first = await tab.evaluate('client.welcome.connection');
  for (const data of [1, 2]) {
    await gateway.publish('42', data);
    await tab.holds(`tokens >= ${3 + data}`);
  }
  await arrived(tab, 1, 2);
  assert.notEqual(await tab.evaluate('client.welcome.connection'), first);
  assert.deepEqual((await names(tab)).slice(-1), ['sse']);
  assert.equal((await names(tab)).filter((name) => name === 'sse').length, 1);
});

inBrowsers('a drain moves a stream to another instance', async (stage, browser) => {
  const redis = await stage.redis();
  const { gateway, behind, open } = await blocked(stage, browser, { redis });
  const tab = await open();
  await live(tab, 'sse');
  await gateway.store('42', 1);
  const staying = await stage.gateway({ secret: SECRET, redis });
  behind.target = staying.public;
  assert.equal(await gateway.end('SIGTERM'), 0);
  await tab.holds(`client.welcome.instance === '${staying.instance}'`);
  await staying.store('42', 2);
  await arrived(tab, 1, 2);
  assert.equal(await tab.evaluate('errors.length'), 2); // Of the WebSockets that did not open.
});

inBrowsers('a client that is disconnected by an operator closes, with its code', async (stage, browser) => {
  const { gateway, open } = await blocked(stage, browser);
  const tab = await open();
  await live(tab, 'sse');
  const response = await fetch(`http://${gateway.admin}/v1/users/42/connections`, { method: 'DELETE' });
  assert.equal(response.status, 202);
  await tab.holds('client.state.name === "closed"');
  assert.equal(await tab.evaluate('client.state.code'), 4011);
});

inBrowsers('a page returns to a WebSocket once one opens, loses nothing, and sends its last ack', async (stage, browser) => {
  const { gateway, behind, open } = await blocked(stage, browser);
  const tab = await open({ options: { socketRetryMs: 1_000 } });
  await live(tab, 'sse');
  await gateway.store('42', 1);
  await arrived(tab, 1);
  await tab.evaluate('client.ack()');
  const before = behind.refused;
  await until('a WebSocket is tried', () => behind.refused > before);
  await gateway.publish('42', 2);
  assert.equal(await gateway.unread('42'), 1);
  behind.blocks = false;
  await live(tab, 'websocket');
  await gateway.store('42', 3);
  await arrived(tab, 1, 2, 3);
  await until('the ack is known', async () => (await gateway.unread('42')) === 1);
  await until('the stream is closed', async () => (await gateway.connections('sse')) === 0);
  assert.deepEqual((await names(tab)).slice(-2), ['sse', 'websocket']);
});

inBrowsers('the tabs of a user share one stream, which outlives the tab that had it', async (stage, browser) => {
  const { gateway, open } = await blocked(stage, browser);
  const first = await open();
  await live(first, 'sse');
  await gateway.store('42', 1);
  await arrived(first, 1);
  const tabs = [first];
  for (let count = 0; count < 2; count += 1) {
    tabs.push(await open({ beside: first }));
    await live(tabs.at(-1), 'sse');
  }
  await until('one stream', async () => (await gateway.connections('sse')) === 1);
  await gateway.publish('42', 2);
  await gateway.store('42', 3);
  await arrived(tabs[0], 1, 2, 3);
  for (const tab of tabs.slice(1)) await arrived(tab, 2, 3);
  assert.deepEqual(await Promise.all(tabs.map((tab) => tab.evaluate('client.welcome.unread'))), [0, 1, 1]);

  await first.close();
  await gateway.store('42', 4); // While no tab has a stream, perhaps.
  const [, ...left] = tabs;
  for (const tab of left) await arrived(tab, 2, 3, 4);
  await until('one stream again', async () => (await gateway.connections('sse')) === 1);
  await gateway.publish('42', 5);
  for (const tab of left) {
    await arrived(tab, 2, 3, 4, 5);
    assert.deepEqual((await tab.evaluate('errors')).map(({ code }) => code), [1006, 1006]);
  }
});

inBrowsers('tabs that share a stream lose nothing when it is replaced with the next token', async (stage, browser) => {
  const { gateway, open } = await blocked(stage, browser, { ttl: '12s', set: ['auth.leeway=0s'] });
  const first = await open();
  await live(first, 'sse');
  const second = await open({ beside: first });
  await live(second, 'sse');
  await until('one stream', async () => (await gateway.connections('sse')) === 1);
  const sent = [];
  const before = await first.evaluate('client.welcome.connection');
  const hasMoved = async () => (await first.evaluate('client.welcome.connection')) !== before;
  for (let more = 20; more > 0; more -= (await hasMoved()) ? 1 : 0) {
    sent.push(sent.length);
    await gateway.store('42', sent.at(-1), { durable: false });
  }
  for (const tab of [first, second]) await arrived(tab, ...sent);
});

scenario('a page of a foreign origin, to which streams are refused as well, is told of possible causes', async (stage) => {
  const gateway = await stage.gateway({ secret: SECRET });
  const port = await stage.site(page(gateway.public), { '/token': () => token('42') });
  const mayLog = /WebSocket connection to|net::ERR_|blocked by CORS policy/;
  const tab = await stage.page(`http://${ELSEWHERE}:${port}/`, { mayLog });
  await tab.waitForFunction(() => states.some(({ reason }) => /Origin/.test(reason)), null, { timeout: 30_000 });
  assert.deepEqual(await tab.evaluate(() => [...new Set(errors.map(({ code }) => code))]), [1006]);
  assert.deepEqual(await tab.evaluate(() => got), []);
});
