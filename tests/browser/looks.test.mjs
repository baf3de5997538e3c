// The demo page on a phone, in dark mode, and with only a keyboard.
import assert from 'node:assert/strict';
import { panel, scenario, signIn } from './support.mjs';

const PHONE = { viewport: { width: 360, height: 740 }, isMobile: true, hasTouch: true, deviceScaleFactor: 2 };
const LONG = 'unbreakable'.repeat(40);

/** How far the page, or anything in it that holds more than a line, scrolls sideways. */
const overflow = (page) => page.evaluate(() => {
  const wide = [...document.querySelectorAll('html, body, .card, .notifications, .notification, .toast, pre')];
  return Math.max(...wide.map((node) => node.scrollWidth - node.clientWidth));
});

/** Texts that are too faint for WCAG AA against what lies behind them. */
const faintTexts = (page) => page.evaluate(() => {
  const canvas = Object.assign(document.createElement('canvas'), { width: 1, height: 1 });
  const context = canvas.getContext('2d', { willReadFrequently: true });
  const luminance = (...colours) => {
    context.clearRect(0, 0, 1, 1);
    for (const colour of colours) {
      context.fillStyle = colour;
      context.fillRect(0, 0, 1, 1);
    }
    const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map((value) =>
      (value <= 10 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const hasText = (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim() !== '');
  const contrast = (node) => {
    const behind = [];
    for (let at = node; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
    const paper = luminance(...behind);
    const ink = luminance(...behind, getComputedStyle(node).color);
    return (Math.max(paper, ink) + 0.05) / (Math.min(paper, ink) + 0.05);
  };
  return [...document.body.querySelectorAll('*')]
    .filter((node) => hasText(node) && node.checkVisibility() && contrast(node) < 4.5)
    .map((node) => `${node.textContent} ${contrast(node).toFixed(2)}`);
});

for (const colorScheme of ['light', 'dark']) {
  scenario(`a phone in ${colorScheme} mode shows everything readably, without sideways scrolling`, async (stage) => {
    const gateway = await stage.gateway();
    const page = await stage.page(gateway.url, { ...PHONE, colorScheme, reducedMotion: 'reduce' });
    assert.equal(await overflow(page), 0, 'signed out');
    await signIn(page, LONG.slice(0, 200));
    await page.getByTestId('add-user').click();
    const ada = await signIn(page, 'ada');
    assert.equal(await overflow(page), 0, 'signed in');
    await gateway.publish('ada', { title: LONG, body: LONG, [LONG]: LONG });
    await gateway.publish('ada', 'short');
    await ada.row('short');
    await page.getByTestId('toast').filter({ hasText: 'short' }).waitFor();
    assert.equal(await overflow(page), 0, 'with notifications');
    assert.deepEqual(await faintTexts(page), []);
    await page.getByTestId('publish-durable').check();
    await ada.network();
    await ada.is('waiting');
    assert.equal(await overflow(page), 0, 'switched off');
    assert.deepEqual(await faintTexts(page), []);
    const [red] = await page.evaluate(() => getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number));
    assert.ok(colorScheme === 'dark' ? red < 60 : red > 200, `background ${red}`);
  });
}

scenario('a phone shows unread and replayed notifications, without sideways scrolling', async (stage) => {
  const gateway = await stage.gateway();
  const page = await stage.page(gateway.url, { ...PHONE, reducedMotion: 'reduce' });
  const mine = await signIn(page, LONG.slice(0, 200));
  await mine.network();
  await mine.is('waiting');
  for (let number = 1; number <= 100; number += 1) await gateway.store(LONG.slice(0, 200), { title: LONG, number });
  await mine.network();
  await mine.unread(100);
  await mine.node.getByTestId('recovered').filter({ hasText: 'Caught up: 100' }).waitFor();
  assert.equal(await overflow(page), 0);
  assert.deepEqual(await faintTexts(page), []);
});

scenario('the keyboard alone signs in and reaches every control', async (stage) => {
  const gateway = await stage.gateway();
  const page = await stage.page(gateway.url);
  await page.getByTestId('sign-in').waitFor();
  const focused = () => page.evaluate(() => document.activeElement.dataset.testid);
  for (let tabs = 0; tabs < 10 && (await focused()) !== 'user-input'; tabs += 1) await page.keyboard.press('Tab');
  assert.equal(await focused(), 'user-input');
  await page.keyboard.press('ControlOrMeta+a');
  await page.keyboard.type('grace');
  await page.keyboard.press('Enter');
  const grace = panel(page, 'grace');
  await grace.is('live');
  await gateway.publish('grace', { title: 'With data', data: { deep: true } });
  await grace.row('With data');
  await page.getByTestId('online-user').waitFor();

  // Around once, from the top. The toast is left out: it is gone after a moment.
  const found = await page.evaluate(() => {
    document.activeElement.blur();
    const controls = [...document.querySelectorAll('button, input, textarea, pre[tabindex]')];
    const reachable = controls.filter((node) => node.checkVisibility() && !node.closest('#toasts'));
    return reachable.map((node, at) => (node.dataset.tab = `${at} ${node.textContent || node.name}`));
  });
  assert.ok(found.length >= 8, found.join());
  const reached = new Set();
  for (let tabs = 0; tabs < found.length * 3 && reached.size < found.length; tabs += 1) {
    await page.keyboard.press('Tab');
    const [visible, tab] = await page.evaluate(() => {
      const { activeElement: node } = document;
      return [node.matches(':focus-visible'), node.dataset.tab];
    });
    if (visible && tab) reached.add(tab);
  }
  assert.deepEqual([...reached].sort(), [...found].sort());
});
