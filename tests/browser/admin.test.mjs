// The admin page of an instance.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { scenario, SECRET, signIn, until } from './support.mjs';

const AXE = await readFile(new URL('../../sdk/js/node_modules/axe-core/axe.min.js', import.meta.url), 'utf8');
const PHONE = { viewport: { width: 360, height: 740 }, isMobile: true, hasTouch: true, deviceScaleFactor: 2 };
const KEY = 'the-admin-key';
const NASTY = '<img src=x onerror="window.ran=1"><script>window.ran=1</script>';
const LONG = 'unbreakable'.repeat(30);

const admin = (gateway) => `http://${gateway.admin}/ui/`;
const text = (page, id) => page.getByTestId(id).textContent();
const says = (page, id, pattern) => page.getByTestId(id).filter({ hasText: pattern }).waitFor();

async function openUser(page, user) {
  await page.getByTestId('user').fill(user);
  await page.getByTestId('user').press('Enter');
  await page.getByTestId('shown-user').filter({ hasText: user }).waitFor();
}

async function axe(page) {
  await page.evaluate(AXE);
  return page.evaluate(async () => (await window.axe.run()).violations.map(({ id, nodes }) =>
    `${id}: ${nodes.map(({ html }) => html).join(' ')}`));
}

/** How far the page, or anything in it, scrolls sideways. */
const overflow = (page) => page.evaluate(() => Math.max(...[...document.querySelectorAll('html, body, .card, .row, .rows, pre, dialog[open]')]
  .map((node) => node.scrollWidth - node.clientWidth)));

scenario('the page asks for the key, and keeps it for the tab only', async (stage) => {
  const gateway = await stage.gateway({ set: [`admin.api_key=${KEY}`] });
  const page = await stage.page(undefined, { mayLog: /401/ });
  const response = await page.goto(admin(gateway).slice(0, -1));
  assert.equal(page.url(), admin(gateway), 'without the slash');
  const policy = response.headers()['content-security-policy'];
  for (const part of ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "form-action 'none'"]) assert.ok(policy.includes(part), policy);
  assert.doesNotMatch(policy, /unsafe|\*|http/);

  await page.getByTestId('key').waitFor();
  assert.equal(await text(page, 'key-result'), '');
  await page.getByTestId('key').fill('wrong');
  await page.getByTestId('use-key').click();
  await says(page, 'key-result', 'This key was refused.');
  assert.equal(await page.getByTestId('numbers').isVisible(), false);
  await page.getByTestId('key').fill(KEY);
  await page.getByTestId('key').press('Enter');
  await page.getByTestId('numbers').waitFor();
  await page.reload();
  await page.getByTestId('numbers').waitFor();
  assert.deepEqual(await page.evaluate(() => [localStorage.length, document.cookie, Object.values(sessionStorage)]), [0, '', [KEY]]);
  assert.ok(!(await page.content()).includes(KEY));

  const other = await page.context().newPage();
  await other.goto(admin(gateway));
  await other.getByTestId('key').waitFor();
  await page.getByTestId('forget').click();
  await page.getByTestId('key').waitFor();
  assert.equal(await page.evaluate(() => sessionStorage.length), 0);
  assert.equal((await fetch(gateway.url + 'ui/')).status, 404, 'the public listener has no admin page');
});

scenario('an operator sees the fleet, and finds one user and what was refused', async (stage) => {
  const redis = await stage.redis();
  const [gateway, other] = [await stage.gateway({ redis, secret: SECRET }), await stage.gateway({ redis, secret: SECRET })];
  await signIn(await stage.page(other.url), 'ada');
  for (const path of ['ws', 'ws?access=1']) await fetch(gateway.url + path);
  const page = await stage.page(admin(gateway));
  await page.getByTestId('instances').getByText(other.instance).waitFor();
  assert.equal(await text(page, 'instances-count'), '2');
  assert.equal(await text(page, 'state'), 'Ready');
  await page.getByTestId('refusals').getByRole('row', { name: 'upgrade_required 2' }).waitFor();
  await until('online', async () => (await text(page, 'online-count')) === '1');

  await page.getByTestId('online-refresh').click();
  await page.getByTestId('online-user').filter({ hasText: 'ada' }).click();
  await says(page, 'presence', 'online, 1 connection');
  const [connection] = await page.getByTestId('connection').allTextContents();
  assert.match(connection, /tidings\.v1 from 127\.0\.0\.1/);
  assert.ok(connection.includes(other.instance), connection);

  await page.getByTestId('disconnect').click();
  await page.getByTestId('confirm-yes').click();
  await says(page, 'user-result', 'Told every instance');
  await until('the connection is closed', async () => {
    const metrics = await (await fetch(`http://${other.admin}/metrics`)).text();
    return metrics.includes('tidings_connections_closed_total{code="4011"} 1');
  });
  assert.equal(new URL(page.url()).hash, '#user=ada');
});

scenario('an operator publishes to a user, reads what is stored as text, and takes it back', async (stage) => {
  const gateway = await stage.gateway();
  const page = await stage.page(`${admin(gateway)}#user=${encodeURIComponent(NASTY)}`);
  await page.getByTestId('shown-user').filter({ hasText: NASTY }).waitFor();
  await says(page, 'stored-note', 'None.');
  await page.getByTestId('data').fill("{'no': 'JSON'}");
  await page.getByTestId('publish').click();
  await says(page, 'publish-result', 'This is not JSON');

  await page.getByTestId('data').fill(`{"html":${JSON.stringify(NASTY)},"id":12345678901234567890,"rate":1.0}`);
  await page.getByTestId('event').fill(NASTY.slice(0, 60));
  await page.getByTestId('durable').check();
  await page.getByTestId('publish').click();
  await says(page, 'publish-result', 'Stored and published.');
  const shown = page.getByTestId('notification');
  await shown.waitFor();
  const written = await shown.locator('pre').textContent();
  assert.equal(written, `{\n  "html": ${JSON.stringify(NASTY)},\n  "id": 12345678901234567890,\n  "rate": 1.0\n}`);
  for (let number = 0; number < 25; number += 1) await gateway.store(NASTY, number);
  await page.getByTestId('refresh-user').click();
  await until('a page', async () => (await shown.count()) === 20);
  await says(page, 'position', 'default: 26 unread');
  await page.getByTestId('older').click();
  await until('all', async () => (await shown.count()) === 26);
  assert.equal(await page.getByTestId('older').isVisible(), false);

  await page.getByTestId('retract').last().click();
  await page.keyboard.press('Escape');
  assert.equal(await shown.count(), 26);
  await page.getByTestId('retract').last().click();
  await page.getByTestId('confirm-yes').click();
  await until('retracted', async () => (await shown.count()) === 25);
  assert.equal(await gateway.unread(NASTY), 25);
  assert.equal(await page.evaluate(() => window.ran), undefined);
  const strange = page.locator('body').locator('script, img:not(.brand img), iframe, a, [style]');
  assert.equal(await strange.count(), 0);
});

scenario('the page says that Redis or the instance is gone, and recovers', async (stage) => {
  const redis = await stage.redis();
  const gateway = await stage.gateway({ redis });
  const page = await stage.page(admin(gateway), { mayLog: /503|ERR_|Failed to load/ });
  await says(page, 'state', 'Ready');
  await openUser(page, '42');
  await redis.cli('shutdown', 'nosave').catch(() => {});
  await says(page, 'state', /^Not ready: ./);
  await says(page, 'instances-count', '?');
  await page.getByTestId('refresh-user').click();
  await says(page, 'user-result', /backplane/);
  await gateway.end('SIGKILL');
  await says(page, 'problem', /does not answer.*Trying again/);
  await stage.gateway({ admin: gateway.admin });
  await says(page, 'state', 'Ready');
  assert.equal(await page.getByTestId('problem').isVisible(), false);
});

for (const colorScheme of ['light', 'dark']) {
  scenario(`axe finds nothing on the admin page on a phone in ${colorScheme} mode, and nothing scrolls sideways`, async (stage) => {
    const gateway = await stage.gateway({ set: [`admin.api_key=${KEY}`] });
    const page = await stage.page(admin(gateway), { ...PHONE, colorScheme, reducedMotion: 'reduce', mayLog: /401/ });
    await page.getByTestId('key').waitFor();
    assert.deepEqual(await axe(page), [], 'the key');
    await page.getByTestId('key').fill(KEY);
    await page.getByTestId('use-key').click();
    await signIn(await stage.page(gateway.url), LONG.slice(0, 200));
    await fetch(`${gateway.url}ws`);
    await openUser(page, LONG.slice(0, 200));
    await page.getByTestId('data').fill(JSON.stringify({ [LONG]: LONG }));
    await page.getByTestId('durable').check();
    await page.getByTestId('publish').click();
    await page.getByTestId('notification').waitFor();
    await page.getByTestId('online-refresh').click();
    await page.getByTestId('online-user').waitFor();
    await page.getByTestId('refusals').waitFor();
    assert.deepEqual(await axe(page), []);
    assert.equal(await overflow(page), 0);
    const [red] = await page.evaluate(() => getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number));
    assert.ok(colorScheme === 'dark' ? red < 60 : red > 200, `background ${red}`);
    await page.getByTestId('retract').click();
    assert.deepEqual(await axe(page), [], 'the question');
    assert.equal(await overflow(page), 0, 'the question');
  });
}

scenario('the keyboard alone reaches and uses every control of the admin page', async (stage) => {
  const gateway = await stage.gateway();
  await gateway.store('42', { deep: true });
  const page = await stage.page(admin(gateway));
  await page.getByTestId('user').waitFor();
  const focused = () => page.evaluate(() => document.activeElement.dataset.testid);
  for (let tabs = 0; tabs < 10 && (await focused()) !== 'user'; tabs += 1) await page.keyboard.press('Tab');
  await page.keyboard.type('42');
  await page.keyboard.press('Enter');
  await page.getByTestId('notification').waitFor();
  const found = await page.evaluate(() => {
    document.activeElement.blur();
    const reachable = [...document.querySelectorAll('button, input, textarea, pre')].filter((node) => node.checkVisibility());
    return reachable.map((node, at) => (node.dataset.tab = `${at} ${node.textContent || node.name}`));
  });
  assert.ok(found.length >= 10, found.join());
  const reached = new Set();
  for (let tabs = 0; tabs < found.length * 3 && reached.size < found.length; tabs += 1) {
    await page.keyboard.press('Tab');
    const [visible, tab] = await page.evaluate(() => [document.activeElement.matches(':focus-visible'), document.activeElement.dataset.tab]);
    if (visible && tab) reached.add(tab);
  }
  assert.deepEqual([...reached].sort(), [...found].sort());
  await page.getByTestId('retract').focus();
  await page.keyboard.press('Enter');
  await page.keyboard.press('Shift+Tab');
  await page.keyboard.press('Enter');
  await says(page, 'stored-note', 'Retracted.');
});
