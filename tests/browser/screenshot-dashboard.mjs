// Makes docs/dashboard.png: the dashboard of deploy/grafana with the numbers of two instances under load, from a real Prometheus.
// Grafana itself is not needed: dashboard-page.mjs draws the panels. node tests/browser/screenshot-dashboard.mjs [FILE]
import { stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { dashboardPage } from './dashboard-page.mjs';
import { BINARY, closeBrowser, freePort, SECRET, Stage, token, until } from './support.mjs';

const wanted = process.argv[2] ?? fileURLToPath(new URL('../../docs/dashboard.png', import.meta.url));
const MOST_BYTES = 150_000;
const SECONDS = 90;

/** A Prometheus that scrapes these instances every second, under the names that a small fleet would have. */
async function prometheus(stage, gateways) {
  const [folder, port] = [await stage.folder(), await freePort()];
  const static_configs = gateways.map(({ admin }, at) => ({ targets: [admin], labels: { instance: `gateway${at + 1}:9090` } }));
  const scrape_configs = [{ job_name: 'tidings', static_configs }];
  const config = path.join(folder, 'prometheus.yml');
  await writeFile(config, JSON.stringify({ global: { scrape_interval: '1s' }, scrape_configs })); // JSON is YAML.
  const files = [`--config.file=${config}`, `--storage.tsdb.path=${path.join(folder, 'data')}`];
  stage.run('prometheus', [...files, `--web.listen-address=127.0.0.1:${port}`]);
  const url = `http://127.0.0.1:${port}`;
  await until('prometheus is ready', () => fetch(`${url}/-/ready`).then(({ ok }) => ok, () => false));
  return url;
}

/** A stream whose client reads it until it is aborted, or never. */
async function stream({ url }, user, headers = {}) {
  const abort = new AbortController();
  const Authorization = `Bearer ${await token(user)}`;
  const { body } = await fetch(`${url}events`, { headers: { Authorization, ...headers }, signal: abort.signal });
  return { body, read: () => body.pipeTo(new WritableStream()).catch(() => {}), leave: () => abort.abort() };
}

async function resume(gateway, cursor) {
  const resumed = await stream(gateway, 'u2', { 'Last-Event-ID': cursor });
  resumed.read();
  await pause(300);
  resumed.leave();
}

/** 1 MB several times, to a client that reads nothing. */
async function overwhelm({ admin }) {
  const body = JSON.stringify({ users: ['slow'], data: '.'.repeat(1_000_000) });
  for (let times = 0; times < 10; times += 1) await fetch(`http://${admin}/v1/notifications`, { method: 'POST', body });
}

/** What clients and backends do in the second `at`, beside the load. */
async function everySecond(at, redis, [first, second], cursor) {
  await redis.cli('XADD', 'tidings:outbox', '*', 'user', 'u1', 'data', '{"order":7}');
  if (at % 3 === 0) await first.store('u2', { order: at });
  if (at % 4 === 0) await fetch(`${second.url}ws`);
  if (at % 5 === 0) await resume(second, cursor);
  if (at % 20 === 0) await redis.cli('PUBLISH', 'tidings:broadcast', '"maintenance at 22:00"');
  if (at > 30 && at < 40) await redis.cli('PUBLISH', 'user:u1', 'not JSON');
  if (at > 50 && at < 60) await fetch(`${first.url}events`, { headers: { Authorization: 'Bearer expired' } });
  if (at === 45) await overwhelm(first);
  if (at === 70) await redis.cli('CLIENT', 'KILL', 'TYPE', 'pubsub');
}

const stage = new Stage();
try {
  const redis = await stage.redis();
  const start = () => stage.gateway({ redis, secret: SECRET });
  const fleet = [await start(), await start()];
  const scraper = await prometheus(stage, fleet);
  for (const one of fleet) (await stream(one, 'u1')).read();
  const slow = await stream(fleet[0], 'slow');
  const cursor = await fleet[0].store('u2', { order: 0 });
  const load = ['load', '--target', fleet.map((one) => one.public), '--redis-url', `redis://127.0.0.1:${redis.port}`];
  const flags = ['--connections', 300, '--connect-rate', 20, '--rate', 150, '--duration', `${SECONDS}s`];
  stage.run(BINARY, [...load, ...flags].map(String), { TIDINGS_AUTH__HMAC_SECRET: SECRET });
  const began = Date.now();
  for (let at = 0; at < SECONDS; at += 1) {
    await everySecond(at, redis, fleet, cursor);
    await pause(Math.max(0, began + (at + 1) * 1_000 - Date.now()));
  }
  slow.leave();
  const variables = { $job: 'tidings', $instance: '.*', $__rate_interval: '15s' };
  const end = Math.floor(Date.now() / 1_000);
  const page = await stage.page(undefined, { viewport: { width: 1_080, height: 900 }, locale: 'en-GB' });
  await page.setContent(await dashboardPage(scraper, variables, { start: end - SECONDS, end }));
  await page.screenshot({ fullPage: true, path: wanted });
} finally {
  await stage.close();
  await closeBrowser();
}
const { size } = await stat(wanted);
if (size > MOST_BYTES) throw new Error(`${wanted} has ${size} bytes, at most ${MOST_BYTES} are wanted`);
