// <tidings-inbox> in a browser, with a gateway that the test scripts.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import test, { after } from 'node:test';
import { closeBrowser, Gateway, open } from './gateway.js';

after(closeBrowser);

const AXE = await readFile(new URL('../node_modules/axe-core/axe.min.js', import.meta.url), 'utf8');

async function start(t, { number = 0, read = 0, head, body, ...options } = {}) {
  const gateway = await new Gateway().start(head, body);
  t.after(() => gateway.close());
  for (let at = 1; at <= number; at += 1) gateway.store({ title: `Number ${at}`, body: 'Its text.' });
  gateway.read = read;
  const page = await open(t, gateway, options);
  return { gateway, page, ...inbox(page) };
}

function inbox(page) {
  const bell = page.locator('tidings-inbox [part~=bell]');
  const rows = page.locator('tidings-inbox [part~=item]');
  return {
    bell,
    rows,
    badge: (text) => page.locator('tidings-inbox [part~=badge]').filter({ hasText: new RegExp(`^${text.replace('+', '\\+')}$`) }).waitFor(),
    noBadge: () => page.locator('tidings-inbox [part~=badge]').waitFor({ state: 'hidden' }),
    row: (text) => rows.filter({ hasText: text }),
    button: (name) => page.locator('tidings-inbox').getByRole('button', { name, exact: true }),
    status: (text) => page.locator('tidings-inbox [part~=status]').filter({ hasText: text }).waitFor(),
    titles: () => page.locator('tidings-inbox [part~=item-title]').allInnerTexts(),
    unread: () => page.locator('tidings-inbox [part~=unread]').count(),
    shown: (count) => page.waitForFunction((wanted) =>
      document.querySelector('tidings-inbox').shadowRoot.querySelectorAll('li').length === wanted, count),
  };
}

const violations = (page) => page.evaluate(`(async () => {
  const { violations } = await axe.run();
  return violations.map(({ id, nodes }) => id + ': ' + nodes.map(({ html }) => html).join(' '));
})()`);

test('a bell shows the count and opens the newest 20 of 250, and older ones follow without a hole', { timeout: 120_000 }, async (t) => {
  const { page, bell, badge, shown, titles, button, unread } = await start(t, { number: 250, read: 247 });
  await badge('3');
  assert.equal(await bell.getAttribute('aria-expanded'), 'false');
  await bell.click();
  await shown(20);
  assert.deepEqual(await titles(), Array.from({ length: 20 }, (_, at) => `Number ${250 - at}`));
  assert.equal(await unread(), 3);
  for (let pages = 2; pages <= 12; pages += 1) {
    await button('Load older').click();
    await shown(pages * 20);
  }
  await button('Load older').click();
  await shown(250);
  assert.deepEqual(await titles(), Array.from({ length: 250 }, (_, at) => `Number ${250 - at}`));
  await button('Load older').waitFor({ state: 'hidden' });
  assert.deepEqual(page.logged, []);
});

test('a new notification is counted, listed first, and announced', { timeout: 60_000 }, async (t) => {
  const { gateway, page, bell, badge, shown, titles } = await start(t, { number: 2, read: 2 });
  await bell.click();
  await shown(2);
  gateway.store({ title: 'Paid', body: 'By Ada' });
  await badge('1');
  await shown(3);
  assert.deepEqual((await titles()).slice(0, 2), ['Paid', 'Number 2']);
  const live = page.locator('tidings-inbox [aria-live]');
  assert.equal(await live.textContent(), 'Paid. By Ada');
  gateway.store('one');
  gateway.store('two');
  await live.filter({ hasText: /^2 new notifications$|^two$/ }).waitFor();
  gateway.tell({ type: 'event', event: 'notification', data: { text: 'stored nowhere' } });
  await shown(6);
  await badge('3');
});

test('what is marked read in one tab is read in the other', { timeout: 60_000 }, async (t) => {
  const { gateway, page, bell, badge, noBadge, row, button, shown, unread } = await start(t, { number: 5 });
  const other = await page.context().newPage();
  await other.goto(gateway.url);
  const second = inbox(other);
  await badge('5');
  await second.badge('5');
  await bell.click();
  await shown(5);
  await button('Mark read: Number 3').click();
  await badge('2');
  await second.badge('2');
  assert.equal(await unread(), 2);
  assert.equal(await row('Number 3').getByRole('button', { name: /^Mark read/ }).count(), 0);
  await button('Mark all read').click();
  await noBadge();
  await second.noBadge();
  assert.equal(gateway.unread, 0);
  await page.waitForTimeout(1_100); // For a second, our ack counts as one that may be under way.
  gateway.moveTo(4); // Marked unread by the backend.
  await badge('1');
  await second.badge('1');
});

test('what is retracted disappears, also what was retracted meanwhile, and an erased history is empty', { timeout: 60_000 }, async (t) => {
  const { gateway, bell, badge, noBadge, titles, shown, status } = await start(t, { number: 5, read: 3 });
  await bell.click();
  await shown(5);
  gateway.retract(gateway.cursor(4));
  await badge('1');
  gateway.retract(gateway.cursor(2));
  await shown(3);
  assert.deepEqual(await titles(), ['Number 5', 'Number 3', 'Number 1']);
  gateway.stored = gateway.stored.filter(({ number }) => number !== 5); // While nothing is connected.
  gateway.drop();
  await shown(2);
  await noBadge();
  gateway.erase();
  await shown(0);
  await status('No notifications.');
  gateway.store('The first of a new history');
  await badge('1');
  await shown(1);
});

test('a dismissed notification stays away, and is not counted', { timeout: 60_000 }, async (t) => {
  const { page, bell, badge, titles, shown, button } = await start(t, { number: 3 });
  await bell.click();
  await shown(3);
  await button('Dismiss: Number 2').click();
  await badge('2');
  assert.deepEqual(await titles(), ['Number 3', 'Number 1']);
  await page.reload();
  await badge('2');
  await bell.click();
  await shown(2);
  assert.deepEqual(await titles(), ['Number 3', 'Number 1']);
});

test('a dismissed one beyond the first page is not counted either, also after a reload', { timeout: 60_000 }, async (t) => {
  const { page, bell, badge, shown, button } = await start(t, { number: 30 });
  await bell.click();
  await shown(20);
  await button('Load older').click();
  await shown(30);
  await button('Dismiss: Number 6').click();
  await badge('29');
  await page.reload();
  await badge('29');
  await bell.click();
  await shown(29);
});

test('after a gap, what was retracted disappears, and the read position that follows sets the badge', { timeout: 60_000 }, async (t) => {
  const { gateway, bell, badge, shown, titles } = await start(t, { number: 5, read: 2 });
  await bell.click();
  await shown(5);
  await badge('3');
  gateway.stored = gateway.stored.filter(({ number }) => number !== 4); // While its instance receives nothing.
  gateway.tell({ type: 'gap', since_ms: 2_300 });
  gateway.moveTo(3);
  await badge('1');
  await shown(4);
  assert.deepEqual(await titles(), ['Number 5', 'Number 3', 'Number 2', 'Number 1']);
});

test('without a connection the list stays, and says why', { timeout: 60_000 }, async (t) => {
  const { gateway, page, bell, badge, status, button, shown } = await start(t, { number: 2 });
  await bell.click();
  await shown(2);
  await page.context().setOffline(true);
  await status('You are offline.');
  await page.context().setOffline(false);
  gateway.refusal = [4200, 'stopping'];
  gateway.drop(4200, 'stopping');
  await status('Disconnected, reconnecting…');
  gateway.refusal = [4011, 'by an operator'];
  await status('Disconnected: by an operator');
  await shown(2);
  gateway.refusal = null;
  gateway.store('Meanwhile');
  await button('Try again').click();
  await badge('3');
  await shown(3);
  await page.locator('tidings-inbox [part~=status]').waitFor({ state: 'hidden' });
});

test('a history that cannot be read is asked for again on request', { timeout: 60_000 }, async (t) => {
  const { gateway, bell, button, status, shown } = await start(t);
  await bell.click();
  await status('No notifications.');
  for (const title of ['One', 'Two']) gateway.store({ title });
  await shown(2);
  gateway.isUnreadable = true;
  gateway.drop();
  await status('Stored notifications cannot be loaded at the moment.');
  await shown(2);
  gateway.isUnreadable = false;
  gateway.stored.pop();
  await button('Try again').click();
  await shown(1);
});

test('an empty inbox says so, and an element with token-url connects by itself', { timeout: 60_000 }, async (t) => {
  const head = '<script type="module" src="/tidings-inbox.js"></script>';
  const body = '<tidings-inbox token-url="/token" open></tidings-inbox>';
  const { gateway, page, status, badge } = await start(t, { head, body });
  await status('No notifications.');
  gateway.store('Hello');
  await badge('1');
  await page.evaluate(() => {
    window.own = document.querySelector('tidings-inbox').client;
    document.querySelector('tidings-inbox').remove();
  });
  await page.waitForFunction(() => window.own.state.name === 'closed');
  assert.deepEqual(page.logged, []);
});

test('the keyboard opens, moves, dismisses and closes', { timeout: 60_000 }, async (t) => {
  const { page, bell, shown, titles } = await start(t, { number: 3 });
  const focused = () => page.evaluate(() => document.querySelector('tidings-inbox').shadowRoot.activeElement?.innerText ?? null);
  await bell.focus();
  await page.keyboard.press('Enter');
  await shown(3);
  assert.equal(await bell.getAttribute('aria-expanded'), 'true');
  await page.keyboard.press('ArrowDown');
  assert.match(await focused(), /^Number 3/);
  await page.keyboard.press('End');
  assert.match(await focused(), /^Number 1/);
  await page.keyboard.press('ArrowUp');
  assert.match(await focused(), /^Number 2/);
  await page.keyboard.press('Delete');
  await shown(2);
  assert.match(await focused(), /^Number 1/);
  assert.deepEqual(await titles(), ['Number 3', 'Number 1']);
  await page.keyboard.press('Home');
  await page.keyboard.press('Tab');
  assert.equal(await focused(), '×');
  await page.keyboard.press('Escape');
  assert.equal(await bell.getAttribute('aria-expanded'), 'false');
  assert.equal(await page.evaluate(() => document.querySelector('tidings-inbox').shadowRoot.activeElement.part[0]), 'bell');
  await bell.click();
  await page.locator('main').click();
  assert.equal(await bell.getAttribute('aria-expanded'), 'false');
});

test('payloads read well, and none is markup', { timeout: 60_000 }, async (t) => {
  const { gateway, page, bell, shown, rows } = await start(t);
  const nasty = '<img src=x onerror="window.ran=1"><script>window.ran=1</script>';
  const data = [
    { text: 'Only a text' }, { title: 'A title', body: 'and a body' }, 'A string', { order: 7, paid: true }, null, 3.5,
    { title: nasty, body: nasty, url: 'javascript:window.ran=1' }, { title: 'A link', url: '/orders/7' }, { [nasty]: [nasty] },
  ];
  for (const each of data) gateway.store(each, each?.order ? 'order.paid' : undefined);
  await bell.click();
  await shown(data.length);
  const texts = (await rows.evaluateAll((nodes) => nodes.map((node) =>
    [...node.querySelectorAll('p')].map((line) => line.textContent)))).reverse();
  assert.deepEqual(texts.slice(0, 6), [
    ['Only a text'], ['A title', 'and a body'], ['A string'], ['order.paid', '{ "order": 7, "paid": true }'],
    ['Notification', 'null'], ['Notification', '3.5'],
  ]);
  assert.deepEqual(texts[6], [nasty, nasty]);
  const links = await rows.locator('a').evaluateAll((nodes) => nodes.map((node) => node.getAttribute('href')));
  assert.deepEqual(links, [`${gateway.url}orders/7`]);
  assert.equal(await rows.locator('img, script').count(), 0);
  assert.equal(await page.evaluate(() => window.ran), undefined);
});

test('a screen reader is told the names', { timeout: 60_000 }, async (t) => {
  const { page, bell, shown } = await start(t, { number: 2, read: 1 });
  await bell.click();
  await shown(2);
  const snapshot = await page.locator('tidings-inbox').ariaSnapshot();
  for (const name of [
    /button "Notifications, 1 unread" \[expanded\]/, /region "Notifications"/, /heading "Notifications" \[level=2\]/,
    /button "Mark all read"/, /list/, /listitem/, /img "Unread"/, /button "Mark read: Number 2"/, /button "Dismiss: Number 1"/,
  ]) assert.match(snapshot, name);
});

test('a theme is built from properties with any names', { timeout: 60_000 }, async (t) => {
  const head = `<style>:root { --accent: rgb(1, 2, 3); --text: rgb(4, 5, 6); }
    tidings-inbox { --tidings-accent: var(--accent); --tidings-text: var(--text); }</style>
    <script type="module" src="/tidings-inbox.js"></script>`;
  const { page, bell, badge } = await start(t, { number: 1, head, body: '<tidings-inbox token-url="/token"></tidings-inbox>' });
  await badge('1');
  await bell.click();
  const colour = (part, property) => page.locator(`tidings-inbox [part~=${part}]`).first()
    .evaluate((node, name) => getComputedStyle(node)[name], property);
  assert.equal(await colour('badge', 'backgroundColor'), 'rgb(1, 2, 3)');
  assert.equal(await colour('panel', 'color'), 'rgb(4, 5, 6)');
});

const LONG = 'unbreakable'.repeat(30);
const LOOKS = {
  light: { colorScheme: 'light' },
  dark: { colorScheme: 'dark' },
  phone: { viewport: { width: 320, height: 640 }, isMobile: true, hasTouch: true },
  'forced colours': { forcedColors: 'active' },
};
for (const [look, options] of Object.entries(LOOKS)) {
  for (const direction of ['ltr', 'rtl']) {
    test(`${look}, ${direction}: nothing for axe to report, and nothing outside the window, also with text of 200 %`, { timeout: 90_000 }, async (t) => {
      const { gateway, page, bell, shown } = await start(t, { number: 3, read: 1, bypassCSP: true, ...options });
      gateway.store({ title: LONG, body: LONG });
      await page.evaluate((dir) => (document.documentElement.dir = dir), direction);
      await bell.click();
      await shown(4);
      await page.evaluate(AXE);
      assert.deepEqual(await violations(page), []);
      for (const size of ['16px', '32px']) {
        await page.evaluate((px) => {
          document.documentElement.style.fontSize = px;
          const element = document.querySelector('tidings-inbox');
          element.open = false;
          element.open = true;
        }, size);
        const [left, right, overflow] = await page.evaluate(() => {
          const panel = document.querySelector('tidings-inbox').shadowRoot.getElementById('panel');
          const box = panel.getBoundingClientRect();
          const list = panel.querySelector('ul');
          return [box.left, document.documentElement.clientWidth - box.right, list.scrollWidth - list.clientWidth];
        });
        assert.ok(left >= 0 && right >= 0 && overflow === 0, `${size}: ${left} ${right} ${overflow}`);
      }
    });
  }
}
