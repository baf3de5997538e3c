// The demo page on a phone, in dark mode, and with only a keyboard.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { panel, scenario, signIn } from './support.mjs';

const AXE = await readFile(new URL('../../sdk/js/node_modules/axe-core/axe.min.js', import.meta.url), 'utf8');

const PHONE = { viewport: { width: 360, height: 740 }, isMobile: true, hasTouch: true, deviceScaleFactor: 2 };
const LONG = 'unbreakable'.repeat(40);

/** Makes `everywhere(selector)` known to the page: elements in the document and below shadow roots. */
const withShadows = (page) => page.evaluate(() => {
  window.everywhere = (selector) => [document, ...[...document.querySelectorAll('tidings-inbox')].map((node) => node.shadowRoot)]
    .flatMap((root) => [...root.querySelectorAll(selector)]);
});

/** How far the page, or anything in it that holds more than a line, scrolls sideways. */
const overflow = (page) => withShadows(page).then(() => page.evaluate(() => {
  const wide = everywhere('html, body, .card, [part~=panel], [part~=list], [part~=item]');
  return Math.max(...wide.map((node) => node.scrollWidth - node.clientWidth));
}));

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
    for (let at = node; at; at = at.parentElement ?? at.getRootNode().host) behind.unshift(getComputedStyle(at).backgroundColor);
    const paper = luminance(...behind);
    const ink = luminance(...behind, getComputedStyle(node).color);
    return (Math.max(paper, ink) + 0.05) / (Math.min(paper, ink) + 0.05);
  };
  return everywhere('body *, [part~=panel] *')
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

for (const colorScheme of ['light', 'dark']) {
  scenario(`axe finds nothing to report on the page in ${colorScheme} mode`, async (stage) => {
    const gateway = await stage.gateway();
    const page = await stage.page(gateway.url, { colorScheme, reducedMotion: 'reduce' });
    const mine = await signIn(page, '42');
    await gateway.store('42', { title: 'Stored', body: 'text' });
    await mine.row('Stored');
    await page.getByText('Publish from a terminal').click();
    await page.getByTestId('online-user').waitFor();
    await page.evaluate(AXE);
    const found = await page.evaluate(async () => (await window.axe.run()).violations.map(({ id, nodes }) =>
      `${id}: ${nodes.map(({ html }) => html).join(' ')}`));
    assert.deepEqual(found, []);
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

  // Around once, from the top.
  await withShadows(page);
  const found = await page.evaluate(() => {
    document.activeElement.blur();
    const reachable = everywhere('button, input, textarea, summary').filter((node) => node.checkVisibility());
    return reachable.map((node, at) => (node.dataset.tab = `${at} ${node.textContent || node.name}`));
  });
  assert.ok(found.length >= 8, found.join());
  const reached = new Set();
  for (let tabs = 0; tabs < found.length * 3 && reached.size < found.length; tabs += 1) {
    await page.keyboard.press('Tab');
    const [visible, tab] = await page.evaluate(() => {
      const { activeElement } = document;
      const node = activeElement.shadowRoot?.activeElement ?? activeElement;
      return [node.matches(':focus-visible'), node.dataset.tab];
    });
    if (visible && tab) reached.add(tab);
  }
  assert.deepEqual([...reached].sort(), [...found].sort());
});

scenario('with forced colours, what a dot or a switch says can still be seen', async (stage) => {
  const gateway = await stage.gateway();
  const page = await stage.page(gateway.url, { forcedColors: 'active', reducedMotion: 'reduce' });
  const mine = await signIn(page, '42');
  await gateway.store('42', { title: 'Unread' });
  await mine.row('Unread');
  await page.getByTestId('online-user').waitFor();
  await withShadows(page);
  const invisible = await page.evaluate(() => {
    const paper = getComputedStyle(document.body).backgroundColor;
    const marks = [['.state .dot'], ['.switch', '::after'], ['[part~=dot]'], ['.chip button', '::before']];
    return marks.filter(([selector, pseudo]) => {
      const { backgroundColor, borderTopWidth } = getComputedStyle(everywhere(selector)[0], pseudo);
      return borderTopWidth === '0px' && (backgroundColor === paper || backgroundColor === 'rgba(0, 0, 0, 0)');
    });
  });
  assert.deepEqual(invisible, []);
  const knob = () => page.evaluate(() =>
    getComputedStyle(document.querySelector('.switch'), '::after').backgroundImage);
  const on = await knob();
  assert.match(on, /gradient/);
  await mine.network();
  await mine.is('waiting');
  assert.notEqual(await knob(), on);
});
