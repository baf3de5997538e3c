// Makes docs/demo.png, the picture of the demo page: node tests/browser/screenshot.mjs [FILE]
import { mkdir, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { closeBrowser, online, panel, Stage } from './support.mjs';

const wanted = process.argv[2] ?? fileURLToPath(new URL('../../docs/demo.png', import.meta.url));
const MOST_BYTES = 250_000;

const NOTIFICATIONS = [
  ['ada', { title: 'Deployed', body: 'api is live in eu-west: 14 changes, no downtime.' }],
  ['linus', { title: 'Build #1207 failed', branch: 'main', job: 'test', exit: 101 }],
  ['ada', { order: 1207, status: 'shipped', items: ['keyboard', 'lamp'] }],
  ['linus', 'Grace left a comment on your pull request.'],
  ['ada', { title: 'Payment received', body: '€42.00 from Grace' }],
  ['linus', { title: 'Ada invited you to “Engines”', body: 'The invitation is good for a week.' }],
];

const stage = new Stage();
try {
  const gateway = await stage.gateway();
  const others = await stage.page(`${gateway.url}?users=grace,alan,42`);
  const page = await stage.page(`${gateway.url}?users=ada,linus`, {
    viewport: { width: 1280, height: 780 }, deviceScaleFactor: 1, colorScheme: 'light', reducedMotion: 'reduce',
    locale: 'en-GB',
  });
  for (const user of ['grace', 'alan', '42']) await panel(others, user).is('live');
  for (const user of ['ada', 'linus']) await panel(page, user).is('live');
  await online(page, '42', 'ada', 'alan', 'grace', 'linus');
  for (const [user, data] of NOTIFICATIONS) {
    const address = `http://${gateway.admin}/v1/users/${user}/notifications`;
    await fetch(address, { method: 'POST', body: JSON.stringify({ data, durable: user === 'ada' }) });
    await panel(page, user).row(data.title ?? (typeof data === 'string' ? data : 'order'));
  }
  await page.mouse.move(0, 0);
  const picture = await page.screenshot({ animations: 'disabled' });
  await mkdir(path.dirname(wanted), { recursive: true });
  await writeFile(wanted, picture);
  stage.assertQuiet();
} finally {
  await stage.close();
  await closeBrowser();
}
const { size } = await stat(wanted);
if (size > MOST_BYTES) throw new Error(`${wanted} has ${size} bytes, at most ${MOST_BYTES} are wanted`);
