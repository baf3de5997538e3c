// Durable notifications in the browser: missed ones are replayed, unread ones are counted, a reload resumes.
import assert from 'node:assert/strict';
import { panel, scenario, signIn, until } from './support.mjs';

const numbered = (from, to) => Array.from({ length: to - from + 1 }, (_, at) => `Number ${from + at}.`);

for (const backplane of ['in memory', 'in Redis']) {
  scenario(`a network that is switched off and on loses no durable notification ${backplane}`, async (stage) => {
    const gateway = await stage.gateway({ redis: backplane === 'in Redis' ? await stage.redis() : undefined });
    const page = await stage.page(gateway.url);
    const mine = await signIn(page, '42');
    await gateway.store('42', 'Number 0.');
    await mine.row('Number 0.');

    for (const [turn, from] of [['first', 1], ['second', 21]]) {
      const shown = await mine.rows.count();
      await mine.network();
      await mine.is('waiting');
      await mine.node.getByTestId('retry-now').click();
      await mine.is('waiting');
      await until('the socket is closed', async () => (await gateway.info()).connections === 0);
      const missed = await gateway.missed();
      for (const title of numbered(from, from + 19)) await gateway.store('42', { title });
      await gateway.publish('42', 'stored nowhere');
      await until('the instance has heard all of it', async () => (await gateway.missed()) === missed + 21);
      assert.equal(await mine.rows.count(), shown);

      await mine.network();
      await mine.is('live');
      await mine.row(`Number ${from + 19}.`);
      const back = mine.node.getByTestId('recovered').filter({ hasText: 'Caught up: 20 missed, now received.' });
      await back.waitFor();
      await gateway.publish('42', `marker ${turn}`);
      await mine.row(`marker ${turn}`);
      const titles = (await mine.titles()).filter((title) => !title.startsWith('marker'));
      assert.deepEqual(titles.reverse(), numbered(from, from + 19)); // The newest 20.
      await mine.unread(from + 20);
    }
    await gateway.store('42', 'afterwards');
    await mine.unread(42);
  });
}

scenario('unread notifications are counted, listed by the next page, and gone once marked read', async (stage) => {
  const gateway = await stage.gateway();
  for (const title of numbered(1, 3)) await gateway.store('ada', title);
  const page = await stage.page(gateway.url);
  const ada = await signIn(page, 'ada');
  await ada.unread(3);
  await ada.row('Number 3.');
  await gateway.publish('ada', 'stored nowhere');
  await ada.row('stored nowhere');
  await gateway.store('ada', 'Number 4.');
  await ada.unread(4);
  assert.deepEqual(await ada.titles(), ['Number 4.', 'stored nowhere', 'Number 3.', 'Number 2.', 'Number 1.']);

  await page.reload();
  await ada.unread(4);
  await ada.row('Number 4.');
  assert.deepEqual(await ada.titles(), numbered(1, 4).reverse());

  await ada.button('Mark all read').click();
  await ada.unread(0);
  await until('the read position has moved', async () => (await gateway.unread('ada')) === 0);
  await page.reload();
  await ada.is('live');
  await gateway.store('ada', 'Number 5.');
  await ada.row('Number 5.');
  await ada.unread(1);
  assert.deepEqual(await ada.titles(), numbered(1, 5).reverse());
});

scenario('a gap in the history is reported, and delivery continues', async (stage) => {
  const redis = await stage.redis();
  const gateway = await stage.gateway({ redis });
  const page = await stage.page(gateway.url);
  const mine = await signIn(page, '42');
  const missed = mine.node.getByText('Some notifications were missed');
  for (const title of numbered(1, 3)) await gateway.store('42', title);
  await mine.row('Number 3.');
  assert.equal(await missed.count(), 0);
  await mine.network();
  await mine.is('waiting');
  await redis.cli('flushall');
  for (const title of numbered(4, 5)) await gateway.store('42', title);
  await mine.network();
  await missed.waitFor();
  await mine.is('live');
  await gateway.store('42', 'Number 6.');
  await mine.row('Number 6.');
  assert.deepEqual(await mine.titles(), numbered(4, 6).reverse());
});

scenario('the form stores, also for an offline user, with an event name and a ttl', async (stage) => {
  const redis = await stage.redis();
  const gateway = await stage.gateway({ redis });
  const page = await stage.page(gateway.url);
  const mine = await signIn(page, '42');
  const result = page.getByTestId('publish-result');
  const ttl = page.getByTestId('publish-ttl');
  assert.equal(await ttl.isVisible(), false);
  await page.getByTestId('publish-durable').check();
  await ttl.fill('soon');
  await page.getByTestId('publish-send').click();
  await result.filter({ hasText: 'a whole number of seconds' }).waitFor();
  await ttl.fill('3600');
  await page.getByTestId('publish-event').fill('order.paid');
  await page.getByTestId('publish-send').click();
  await result.filter({ hasText: 'Stored for 42 and sent.' }).waitFor();
  await mine.row('Payment received');
  await mine.unread(1);
  assert.match(await redis.cli('xrange', 'tidings:history:{42}', '-', '+'), /\border\.paid\b[^]*\buntil\b/);

  await page.getByTestId('publish-user').fill('ada');
  await page.getByTestId('publish-send').click();
  await result.filter({ hasText: 'Stored for ada, who is not online: in the inbox at the next sign-in.' }).waitFor();
  await page.getByTestId('add-user').click();
  const ada = await signIn(page, 'ada');
  await ada.row('Payment received');
  await ada.unread(1);
});

/** A separate client of the page, which stores its cursor in the browser; `got` is what it received. */
const keepsCursor = async (page, user) => {
  await page.evaluate(async (name) => {
    const { Tidings } = await import('/tidings.js');
    const token = async () => {
      const response = await fetch('/demo/token', { method: 'POST', body: JSON.stringify({ user: name }) });
      return (await response.json()).token;
    };
    window.got = [];
    window.client = new Tidings('/ws', { token, storageKey: 'tidings' });
    window.client.on('notification', (data) => window.got.push(data));
    window.client.on('gap', () => window.got.push('gap'));
    window.client.on('error', (error) => window.got.push(error.code));
  }, user);
  await page.waitForFunction(() => window.client.state.name === 'live');
};

scenario('a reload resumes from what the browser keeps, for each user and for all tabs', async (stage) => {
  const gateway = await stage.gateway();
  const page = await stage.page(gateway.url);
  const gets = (tab, ...expected) =>
    tab.waitForFunction((count) => window.got.length >= count, expected.length)
      .then(async () => assert.deepEqual(await tab.evaluate(() => window.got), expected));

  await gateway.store('42', 'before any page');
  await keepsCursor(page, '42');
  await gateway.store('42', 'first');
  await gets(page, 'first');
  await page.goto('about:blank');
  await gateway.store('42', 'second');
  await gateway.store('42', 'third');

  await page.goto(gateway.url);
  await keepsCursor(page, '43'); // Another user in between.
  await gateway.store('43', 'theirs');
  await gets(page, 'theirs');

  await page.reload();
  await keepsCursor(page, '42');
  await gets(page, 'second', 'third');
  const tab = await page.context().newPage();
  await tab.goto(gateway.url);
  await keepsCursor(tab, '42');
  await gateway.store('42', 'fourth');
  await gets(page, 'second', 'third', 'fourth');
  await gets(tab, 'fourth');
});
