// The inbox of one user in two browsers, on two instances: the same count, the same list, whatever happens in one of them.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { panel, scenario, SECRET, token, until } from './support.mjs';

async function fleet(stage) {
  const redis = await stage.redis();
  const gateways = [await stage.gateway({ redis }), await stage.gateway({ redis })];
  return { gateways, store: (title) => gateways[0].store('ada', { title }) };
}

const admin = async (gateway, method, path) => {
  const response = await fetch(`http://${gateway.admin}/v1/users/ada${path}`, { method });
  assert.equal(response.status, 204);
};

async function tabs(stage, gateways) {
  const pages = [];
  for (const gateway of gateways) {
    const page = await stage.page(`${gateway.url}?user=ada`);
    const ada = panel(page, 'ada');
    await ada.is('live');
    pages.push({ page, ...ada });
  }
  return pages;
}

scenario('two tabs on two instances agree on what is unread, and on what was retracted', async (stage) => {
  const { gateways, store } = await fleet(stage);
  const ids = [];
  for (const title of ['First', 'Second', 'Third']) ids.push(await store(title));
  const both = await tabs(stage, gateways);
  for (const tab of both) await tab.unread(3);
  ids.push(await store('Fourth'));
  for (const tab of both) await tab.unread(4);

  await both[0].button('Mark read: Second').click();
  for (const tab of both) await tab.unread(2);
  await until('the read position has moved', async () => (await gateways[1].unread('ada')) === 2);

  await admin(gateways[1], 'DELETE', `/notifications/${ids[2]}`);
  for (const tab of both) {
    await tab.unread(1);
    await until('it disappears', async () => String(await tab.titles()) === 'Fourth,Second,First');
  }
  await both[1].button('Mark all read').click();
  for (const tab of both) await tab.unread(0);

  await admin(gateways[0], 'DELETE', '');
  for (const tab of both) await until('nothing is left', async () => (await tab.rows.count()) === 0);
  await store('After the erasure');
  for (const tab of both) await tab.unread(1);
});

scenario('a notification that replaces another takes its place in every tab', async (stage) => {
  const { gateways } = await fleet(stage);
  const both = await tabs(stage, gateways);
  const build = (title) => gateways[1].store('ada', { title }, { collapse: 'build' });
  await build('10 %');
  for (const tab of both) await tab.row('10 %');
  await build('90 %');
  for (const tab of both) {
    await until('it is replaced', async () => String(await tab.titles()) === '90 %');
    await tab.unread(1);
  }
});

scenario('a reload shows the newest 20 of 250, and the count', async (stage) => {
  const { gateways, store } = await fleet(stage);
  for (let number = 1; number <= 250; number += 1) await store(`Number ${number}`);
  const [tab] = await tabs(stage, gateways.slice(0, 1));
  const newest = Array.from({ length: 20 }, (_, at) => `Number ${250 - at}`);
  const shows = (titles) => until('the newest are shown', async () => String(await tab.titles()) === String(titles));
  await shows(newest);
  await tab.unread(250);
  await tab.button('Mark all read').click();
  await tab.unread(0);
  await until('the read position has moved', async () => (await gateways[1].unread('ada')) === 0);
  await store('Number 251');
  await tab.unread(1);
  await tab.page.reload();
  await tab.unread(1);
  await shows(['Number 251', ...newest.slice(0, 19)]);
  await tab.button('Load older').click();
  await until('older ones follow', async () => (await tab.rows.count()) === 40);
});

scenario('the page of the README shows the inbox, with the files that the instance serves', async (stage) => {
  const redis = await stage.redis();
  const gateway = await stage.gateway({ redis, secret: SECRET });
  const readme = await readFile(new URL('../../README.md', import.meta.url), 'utf8');
  const [, snippet] = /### Show an inbox[^]*?```html\n([^]*?)```/.exec(readme);
  const html = snippet.replaceAll('wss://push.example.com', `ws://${gateway.public}`)
    .replaceAll('https://push.example.com/', gateway.url);
  assert.doesNotMatch(html, /push\.example/);
  const jwt = await token('42');
  const icon = '<link rel="icon" href="data:,">';
  const page = await stage.page(`http://127.0.0.1:${await stage.site(icon + html, { '/my/token': () => jwt })}/`);
  await page.waitForFunction(() => document.querySelector('tidings-inbox').client?.state.name === 'live');
  const [, command] = /### Show an inbox[^]*?```sh\nredis-cli ([^]*?)\n```/.exec(readme);
  await stage.shell(`redis-cli -p ${redis.port} ${command}`);
  await page.waitForFunction(() => document.title === '(1) My page');
  await page.getByRole('button', { name: 'Notifications, 1 unread' }).click();
  await page.locator('[part~=item-body]').getByText('42 euros from Ada').waitFor();
});
