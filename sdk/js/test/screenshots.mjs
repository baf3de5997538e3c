// Makes pictures of the component: node test/screenshots.mjs FOLDER. One of them is docs/inbox.png.
import path from 'node:path';
import { closeBrowser, Gateway, open } from './gateway.js';

const folder = process.argv[2];
const NOTIFICATIONS = [
  { title: 'Welcome, Ada', body: 'Your account is ready.' },
  { text: 'Grace left a comment on your pull request.' },
  ['build.failed', { branch: 'main', job: 'test', exit: 101 }],
  { title: 'Deployed', body: 'api is live in eu-west: 14 changes, no downtime.' },
  { title: 'Payment received', body: '€42.00 from Grace', url: '/payments/7' },
];
const ARABIC = [
  { title: 'أهلاً بك', body: 'حسابك جاهز.' },
  { title: 'تم استلام الدفعة', body: '€42.00 من غريس' },
];
const LOOKS = {
  light: { colorScheme: 'light', viewport: { width: 560, height: 620 } },
  dark: { colorScheme: 'dark', viewport: { width: 560, height: 620 } },
  phone: { viewport: { width: 360, height: 640 }, isMobile: true, hasTouch: true },
  rtl: { viewport: { width: 560, height: 620 } },
  large: { viewport: { width: 560, height: 620 } },
  forced: { viewport: { width: 560, height: 620 }, forcedColors: 'active' },
};

const undo = [];
const t = { after: (then) => undo.push(then) };
try {
  for (const [look, options] of Object.entries(LOOKS)) {
    const gateway = await new Gateway().start();
    t.after(() => gateway.close());
    for (const one of look === 'rtl' ? [...NOTIFICATIONS, ...ARABIC] : NOTIFICATIONS) {
      gateway.store(...(Array.isArray(one) ? [one[1], one[0]] : [one]));
    }
    gateway.read = gateway.numbers - 2;
    const page = await open(t, gateway, { locale: 'en-GB', timezoneId: 'UTC', ...options });
    if (look === 'rtl') await page.evaluate(() => Object.assign(document.documentElement, { dir: 'rtl', lang: 'ar' }));
    if (look === 'large') await page.evaluate(() => (document.documentElement.style.fontSize = '32px'));
    await page.locator('tidings-inbox [part~=badge]').filter({ hasText: '2' }).waitFor();
    await page.locator('tidings-inbox [part~=bell]').click();
    await page.locator('tidings-inbox [part~=item]').first().waitFor();
    await page.mouse.move(0, 0);
    await page.screenshot({ path: path.join(folder, `inbox-${look}.png`), animations: 'disabled' });
  }
} finally {
  for (const each of undo.reverse()) await each();
  await closeBrowser();
}
