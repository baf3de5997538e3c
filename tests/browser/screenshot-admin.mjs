// Makes docs/ui.png, the picture of the admin page: node tests/browser/screenshot-admin.mjs [FILE]
import { stat } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { closeBrowser, panel, Stage } from './support.mjs';

const wanted = process.argv[2] ?? fileURLToPath(new URL('../../docs/ui.png', import.meta.url));
const options = JSON.parse(process.argv[3] ?? '{}');
const MOST_BYTES = 250_000;
const USERS = ['ada', 'linus', 'grace', 'alan'];

const stage = new Stage();
try {
  const redis = await stage.redis();
  const [gateway, other] = [await stage.gateway({ redis }), await stage.gateway({ redis })];
  for (const [at, { url }] of [gateway, other].entries()) {
    const users = USERS.slice(at * 2, at * 2 + 2);
    const page = await stage.page(`${url}?users=${users}`);
    for (const user of users) await panel(page, user).is('live');
  }
  await gateway.store('ada', { title: 'Payment received', body: '€42.00 from Grace' }, { event: 'paid' });
  await gateway.store('ada', { order: 1207, status: 'shipped' }, { event: 'order' });
  for (let times = 0; times < 3; times += 1) await fetch(`${gateway.url}ws`);
  const page = await stage.page(`http://${gateway.admin}/ui/#user=ada`, {
    viewport: { width: 1280, height: 900 }, colorScheme: 'light', reducedMotion: 'reduce', locale: 'en-GB', ...options,
  });
  await page.getByTestId('notification').last().waitFor();
  for (let number = 0; number < 40; number += 1) {
    for (const user of USERS.slice(0, 1 + (number % 4))) await gateway.publish(user, { number });
  }
  await page.waitForTimeout(3_000); // The numbers follow every 2 s.
  await page.mouse.move(0, 0);
  await page.screenshot({ animations: 'disabled', fullPage: true, path: wanted });
} finally {
  await stage.close();
  await closeBrowser();
}
const { size } = await stat(wanted);
if (size > MOST_BYTES) throw new Error(`${wanted} has ${size} bytes, at most ${MOST_BYTES} are wanted`);
