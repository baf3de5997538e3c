// Two instances on one Redis, a browser on each.
import assert from 'node:assert/strict';
import { scenario, signIn, until } from './support.mjs';

scenario('one PUBLISH reaches a browser on each of two instances, and the set contains the online users', async (stage) => {
  const redis = await stage.redis();
  const isOnline = async () => (await redis.cli('sismember', 'online_users', '42')) === '1';
  const presence = await redis.subscribe('presence');
  const gateways = await Promise.all([stage.gateway({ redis }), stage.gateway({ redis })]);
  assert.equal(await isOnline(), false);

  const pages = [];
  for (const gateway of gateways) {
    const page = await stage.page(gateway.url);
    pages.push({ page, mine: await signIn(page, '42') });
    await until('online', isOnline);
  }
  await redis.cli('publish', 'user:43', '{"hello":"another user"}');
  assert.equal(await redis.cli('publish', 'user:42', '{"hello":"world"}'), '2');
  for (const { mine } of pages) {
    await mine.row('"hello": "world"');
    assert.equal(await mine.rows.count(), 1);
  }

  const info = async ({ admin }) => (await fetch(`http://${admin}/v1/info`)).json();
  await pages[0].page.leave();
  await until('the first instance is empty', async () => (await info(gateways[0])).users === 0);
  await redis.cli('publish', 'user:42', '{"hello":"again"}');
  await pages[1].mine.row('"hello": "again"');
  assert.equal(await isOnline(), true);

  await pages[1].page.leave();
  await until('offline', async () => !(await isOnline()));
  await until('each change is announced once', () => presence().length >= 2);
  assert.deepEqual(presence().map(({ user, status }) => [user, status]), [['42', 'online'], ['42', 'offline']]);
});

scenario('a page on one instance sees who signs in on another', async (stage) => {
  const redis = await stage.redis();
  const [one, two] = await Promise.all([stage.gateway({ redis }), stage.gateway({ redis })]);
  const here = await stage.page(one.url);
  const there = await stage.page(two.url);
  const ada = await signIn(here, 'ada');
  await signIn(there, 'linus');
  for (const page of [here, there]) {
    await until('both', async () => (await page.getByTestId('online-count').textContent()) === '2');
  }
  await there.getByTestId('publish-user').fill('ada');
  await there.getByTestId('publish-data').fill('{"title":"Across"}');
  await there.getByTestId('publish-send').click();
  await ada.row('Across');
  await there.getByTestId('publish-result').filter({ hasText: 'Published to ada.' }).waitFor();
});
