// The demo page on one instance with the memory backplane.
import assert from 'node:assert/strict';
import { online, panel, PINGED, scenario, signIn, until } from './support.mjs';

scenario('a user signs in and receives their own notifications, and no others', async (stage) => {
  const gateway = await stage.gateway();
  const page = await stage.page(gateway.url);
  const mine = await signIn(page, '42');
  assert.equal(await page.getByTestId('state').textContent(), 'Live');

  await gateway.publish('43', { title: 'For another user' });
  await gateway.publish('42', { title: 'From a terminal', body: 'tidings publish' });
  await mine.row('From a terminal');

  assert.equal(await page.getByTestId('publish-user').inputValue(), '42');
  await page.getByTestId('publish-data').fill('{"title":"From the form","n":[1,2.5,null,true],"a":{}}');
  await page.getByTestId('publish-send').click();
  await mine.row('From the form');
  await page.getByTestId('publish-result').filter({ hasText: 'Published to 42.' }).waitFor();

  assert.deepEqual(await mine.titles(), ['From the form', 'From a terminal']);
  assert.deepEqual(await mine.row('From a terminal').then(() => mine.rows.nth(1).locator('[part~=item-body]').textContent()),
    'tidings publish');
});

scenario('the form reports invalid data, and publishes nothing', async (stage) => {
  const gateway = await stage.gateway();
  const page = await stage.page(gateway.url);
  const mine = await signIn(page, '42');
  const result = page.getByTestId('publish-result');
  await page.getByTestId('publish-data').fill("{'title':'no JSON'}");
  await page.getByTestId('publish-send').click();
  await result.filter({ hasText: 'This is not JSON' }).waitFor();
  await page.getByTestId('publish-data').fill('"good"');
  await page.getByTestId('publish-data').press('Control+Enter');
  await mine.row('good');
  await result.filter({ hasText: 'Published to 42.' }).waitFor();
  assert.deepEqual(await mine.titles(), ['good']);
  await page.getByTestId('publish-user').fill('absent');
  await page.getByTestId('publish-send').click();
  await result.filter({ hasText: 'absent is not online' }).waitFor();
  await page.getByTestId('publish-store').click();
  await result.filter({ hasText: 'Stored for absent, who is not online' }).waitFor();
  assert.equal(await gateway.unread('absent'), 1);
});

scenario('any data is shown as text', async (stage) => {
  const gateway = await stage.gateway();
  const page = await stage.page(gateway.url);
  const nasty = '<img src=x onerror="window.ran=1"><script>window.ran=1</script><b>bold</b>';
  const mine = await signIn(page, nasty);
  const odd = [nasty, -0.5, 1e21, 12345.678, '\u0000\u2028'];
  const data = { title: nasty, body: `Grüße 🎉 日本語 ${nasty}`, [nasty]: odd };
  for (const each of [data, nasty, { body: 7, deep: { [nasty]: null } }, 3.25, [nasty], null]) {
    await gateway.publish(nasty, each);
  }
  await until('all are shown', async () => (await mine.rows.count()) === 6);

  const [first] = (await mine.rows.all()).slice(-1);
  assert.equal(await first.locator('[part~=item-title]').textContent(), data.title);
  assert.equal(await first.locator('[part~=item-body]').textContent(), data.body);
  const written = await mine.rows.nth(3).locator('[part~=item-body]').textContent();
  assert.deepEqual(JSON.parse(written), { body: 7, deep: { [nasty]: null } });
  assert.equal(await mine.node.getAttribute('data-user'), nasty);

  const strange = page.locator('body').locator('script, b, img:not(.brand img), iframe, a');
  assert.deepEqual(await strange.evaluateAll((nodes) => nodes.map((node) => node.outerHTML)), []);
  assert.equal(await page.evaluate(() => window.ran), undefined);
});

scenario('deeply nested data does not break the page', async (stage) => {
  const gateway = await stage.gateway();
  const page = await stage.page(gateway.url);
  const mine = await signIn(page, '42');
  for (const depth of [1_000, 30_000]) {
    const body = `{"data":${'['.repeat(depth)}${']'.repeat(depth)}}`;
    await fetch(`http://${gateway.admin}/v1/users/42/notifications`, { method: 'POST', body });
  }
  await gateway.publish('42', 'after it');
  await mine.row('after it');
  assert.deepEqual(await mine.titles(), ['after it', 'Notification', 'Notification']);
});

scenario('the content security policy is sent, and blocks injected code', async (stage) => {
  const gateway = await stage.gateway();
  const page = await stage.page(gateway.url, { mayLog: /Content Security Policy/ });
  const policy = (await page.reload()).headers()['content-security-policy'];
  assert.match(policy, /default-src 'self'/);
  assert.match(policy, /frame-ancestors 'none'/);
  assert.doesNotMatch(policy, /unsafe|\*/);
  const stopped = await page.evaluate(() => new Promise((resolve) => {
    document.addEventListener('securitypolicyviolation', (violation) => resolve(violation.effectiveDirective));
    const script = document.createElement('script');
    script.textContent = 'window.ran = 1';
    document.body.append(script);
  }));
  assert.match(stopped, /script-src/);
  assert.equal(await page.evaluate(() => window.ran), undefined);
});

scenario('the online users change as users connect and disconnect', async (stage) => {
  const gateway = await stage.gateway();
  const watching = await stage.page(gateway.url);
  await online(watching);
  await signIn(watching, 'ada');
  await online(watching, 'ada');
  const other = await stage.page(gateway.url);
  await online(other, 'ada');
  await signIn(other, 'linus');
  await online(watching, 'ada', 'linus');
  await online(other, 'ada', 'linus');
  await watching.getByTestId('online-user').filter({ hasText: 'linus' }).getByRole('button').click();
  assert.equal(await watching.getByTestId('publish-user').inputValue(), 'linus');
  await other.leave();
  await online(watching, 'ada');
  await watching.getByTestId('sign-out').click();
  await watching.getByTestId('sign-in').waitFor();
  await online(watching);
});

scenario('two users side by side receive only their own notifications, also after a reload', async (stage) => {
  const gateway = await stage.gateway();
  const page = await stage.page(`${gateway.url}?user=ada`);
  const ada = panel(page, 'ada');
  const linus = panel(page, 'linus');
  await ada.is('live');
  await page.getByTestId('add-user').click();
  await signIn(page, 'linus');
  for (const visit of ['first', 'second']) {
    await gateway.publish('ada', { title: `Ada, ${visit}` });
    await gateway.publish('linus', { title: `Linus, ${visit}` });
    await gateway.publish('ada', { title: `Marker, ${visit}` });
    await ada.row(`Marker, ${visit}`);
    await linus.row(`Linus, ${visit}`);
    assert.deepEqual(await ada.titles(), [`Marker, ${visit}`, `Ada, ${visit}`]);
    assert.deepEqual(await linus.titles(), [`Linus, ${visit}`]);
    if (visit === 'second') break;
    await page.reload();
    await ada.is('live');
    await linus.is('live');
    assert.equal(await ada.rows.count() + await linus.rows.count(), 0);
  }
});

scenario('an idle page answers each ping and keeps its connection', async (stage) => {
  const gateway = await stage.gateway({ set: PINGED });
  const page = await stage.page(gateway.url);
  const opened = page.waitForEvent('websocket');
  const mine = await signIn(page, '42');
  const socket = await opened;
  // The inbox may request its page after the sign-in.
  const isAnswer = ({ payload }) => JSON.parse(payload).type !== 'history';
  for (let pongs = 0; pongs < 5; pongs += 1) {
    const { payload } = await socket.waitForEvent('framesent', isAnswer);
    assert.deepEqual(JSON.parse(payload), { type: 'pong' });
  }
  assert.equal(socket.isClosed(), false);
  await gateway.publish('42', 'still here');
  await mine.row('still here');
});

scenario('the commands shown publish to this gateway, through each backplane', async (stage) => {
  const redis = await stage.redis();
  for (const gateway of [await stage.gateway(), await stage.gateway({ redis })]) {
    const page = await stage.page(gateway.url);
    const mine = await signIn(page, "o'hara");
    await page.getByText('Publish from a terminal').click();
    const shown = page.getByTestId('commands').locator('code');
    await shown.first().waitFor();
    const commands = await shown.allTextContents();
    assert.equal(commands.length, (await gateway.info()).backplane === 'memory' ? 1 : 2);
    for (const command of commands) await stage.shell(command);
    await until('each arrives', async () => (await mine.rows.count()) === commands.length);
  }
});

scenario('too many users in the address are refused in one sentence', async (stage) => {
  const gateway = await stage.gateway();
  const page = await stage.page(`${gateway.url}?users=a,b,c,d,e,f,g`);
  const problem = page.locator('#sign-in-error');
  await problem.filter({ hasText: /./ }).waitFor();
  assert.equal(await problem.textContent(), 'This page shows 4 users at most.');
  assert.equal(await page.locator('.panel').count(), 4);
});

scenario('a page whose handshakes all fail names the possible causes', async (stage) => {
  const gateway = await stage.gateway({ set: ['limits.max_connections=1'] });
  await signIn(await stage.page(gateway.url), 'ada');
  const page = await stage.page(`${gateway.url}?user=linus`, { mayLog: /WebSocket connection to/ });
  // Chromium holds each handshake after a failure back for up to 5 s.
  const causes = panel(page, 'linus').node.getByText(/^No handshake succeeds: .*capacity/);
  await causes.waitFor({ timeout: 30_000 });
});
