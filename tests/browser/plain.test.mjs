// Pages without the SDK, served by another web server: a few lines of plain JavaScript.
import assert from 'node:assert/strict';
import { ELSEWHERE, PINGED, scenario, SECRET, token, until } from './support.mjs';

/** The whole script of a page; the test reads `log`. */
const plainPage = (gateway, jwt) => `<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
<title>plain</title><script>
  const log = [];
  const ws = new WebSocket('ws://${gateway.public}/ws', ['tidings.v1', 'bearer.' + '${jwt}']);
  ws.onmessage = ({ data }) => {
    const frame = JSON.parse(data);
    if (frame.type === 'ping') ws.send(JSON.stringify({ type: 'pong' }));
    log.push(frame);
  };
  ws.onclose = ({ code }) => log.push({ type: 'close', code });
</script>`;

const ofType = (page, type) => page.evaluate((wanted) => log.filter((frame) => frame.type === wanted), type);

scenario('ten lines of plain JavaScript on another site get events and stay connected', async (stage) => {
  const gateway = await stage.gateway({ secret: SECRET, set: PINGED });
  const port = await stage.site(plainPage(gateway, await token('42')));
  const page = await stage.page(`http://localhost:${port}/`);
  await page.waitForFunction(() => log.length > 0);
  const [welcome] = await ofType(page, 'welcome');
  assert.equal(welcome.user, '42');
  assert.equal(welcome.heartbeat_ms, 200);
  assert.equal(await page.evaluate(() => ws.protocol), 'tidings.v1');

  await page.waitForFunction(() => log.filter(({ type }) => type === 'ping').length >= 5);
  await gateway.publish('42', { hello: 'wörld', n: [1, 2.5] });
  await page.waitForFunction(() => log.some(({ type }) => type === 'event'));
  assert.deepEqual(await ofType(page, 'event'), [
    { type: 'event', event: 'notification', data: { hello: 'wörld', n: [1, 2.5] } },
  ]);
  assert.deepEqual(await ofType(page, 'close'), []);
  assert.equal(await page.evaluate(() => ws.readyState), 1);
});

scenario('a page that answers no ping is closed with 4201', async (stage) => {
  const gateway = await stage.gateway({ secret: SECRET, set: ['server.heartbeat=200ms', 'server.pong_timeout=200ms'] });
  const mute = plainPage(gateway, await token('42')).replace('ws.send(', 'void (');
  const page = await stage.page(`http://localhost:${await stage.site(mute)}/`);
  await page.waitForFunction(() => log.at(-1)?.type === 'close');
  assert.deepEqual(await ofType(page, 'close'), [{ type: 'close', code: 4201 }]);
});

scenario('an instance that stops announces it, and closes with 4200', async (stage) => {
  const gateway = await stage.gateway({ secret: SECRET });
  const port = await stage.site(plainPage(gateway, await token('42')));
  const page = await stage.page(`http://localhost:${port}/`);
  await page.waitForFunction(() => log[0]?.type === 'welcome');
  assert.equal(await gateway.end('SIGTERM'), 0);
  await page.waitForFunction(() => log.at(-1).type === 'close');
  assert.deepEqual((await page.evaluate(() => log)).slice(1), [
    { type: 'reconnect', after_ms: 0 },
    { type: 'close', code: 4200 },
  ]);
});

scenario('format=raw serves a page that only runs JSON.parse', async (stage) => {
  const gateway = await stage.gateway({ secret: SECRET });
  const page = await stage.page(`http://localhost:${await stage.site('<link rel="icon" href="data:,">')}/`);
  await page.evaluate(({ url, protocol }) => new Promise((resolve, reject) => {
    window.got = [];
    const ws = new WebSocket(url, ['tidings.v1', protocol]);
    ws.onopen = resolve;
    ws.onerror = () => reject(new Error('not connected'));
    ws.onmessage = ({ data }) => window.got.push(JSON.parse(data));
  }), { url: `ws://${gateway.public}/ws?format=raw`, protocol: `bearer.${await token('42')}` });
  // Without a welcome, the page does not know when it is registered: the first of these may be too early.
  await until('something arrives', async () => {
    await gateway.publish('42', { hello: 'world' });
    return page.evaluate(() => window.got.length > 0);
  });
  assert.deepEqual(await page.evaluate(() => window.got[0]), { hello: 'world' });
});

scenario('a page of another origin is refused by a development instance', async (stage) => {
  const gateway = await stage.gateway({ secret: SECRET });
  const port = await stage.site(plainPage(gateway, await token('42')));
  const trusted = await stage.page(`http://127.0.0.1:${port}/`);
  await trusted.waitForFunction(() => log[0]?.type === 'welcome');

  const complaints = /WebSocket connection to|CORS policy|Failed to load resource/;
  for (const origin of [`http://${ELSEWHERE}:${port}`, `http://${ELSEWHERE}:${new URL(gateway.url).port}`]) {
    const page = await stage.page(`${origin}/healthz`, { mayLog: complaints });
    assert.equal(await page.evaluate(() => location.origin), origin);
    const code = await page.evaluate(({ url, protocol }) => new Promise((resolve) => {
      const ws = new WebSocket(url, ['tidings.v1', protocol]);
      ws.onopen = () => resolve('open');
      ws.onclose = (close) => resolve(close.code);
    }), { url: `ws://${gateway.public}/ws`, protocol: `bearer.${await token('42')}` });
    assert.equal(code, 1006, origin);
    const signIn = await page.evaluate(async (url) => {
      const body = JSON.stringify({ user: '42' });
      return fetch(url, { method: 'POST', body }).then((response) => response.status, () => 'no answer');
    }, `${gateway.url}demo/token`);
    assert.notEqual(signIn, 200, origin);
  }
});
