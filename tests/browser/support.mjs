// Support of the browser tests: the real binary, a real redis-server, a real Chromium. A Stage stops what it started.
import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import test, { after } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const BINARY = path.resolve(ROOT, process.env.GATEWAY_BIN ?? 'target/debug/tidings');
const DEADLINE_MS = 10_000; // for one thing to happen
const TEST_MS = 40_000; // for a whole test
const { chromium } = createRequire(path.join(ROOT, 'client-demo/package.json'))('playwright-core');
const run = promisify(execFile);

/** A secret that a gateway may share with `tidings token`. Without one, each start makes up its own. */
export const SECRET = 'a secret of the browser tests, and of nothing else';

/** The host of pages of another origin: the browser resolves it to loopback. */
export const ELSEWHERE = 'evil.example';

/** Keys for many pings soon. A page that answers none is left within the test; one on a busy machine has its time. */
export const PINGED = ['server.heartbeat=200ms', 'server.pong_timeout=3s'];

const BROWSER_ARGS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', `--host-resolver-rules=MAP ${ELSEWHERE} 127.0.0.1`,
];

// However this process ends, the processes that it started end too.
const children = new Set();
process.on('exit', () => children.forEach((child) => child.kill('SIGKILL')));
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(1));

/** Polls until a condition holds, where no event announces it; everything else is awaited. */
export async function until(what, condition) {
  for (const deadline = Date.now() + DEADLINE_MS; Date.now() < deadline; await pause(25)) {
    if (await condition()) return;
  }
  assert.fail(`not in time: ${what}`);
}

/** The environment of the caller does not affect the tests. */
const inherited = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('TIDINGS_')));

function start(command, args, env = {}) {
  const child = spawn(command, args, { env: { ...inherited, ...env }, stdio: ['ignore', 'pipe', 'pipe'] });
  children.add(child);
  child.output = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (text) => (child.output += text));
  child.ended = once(child, 'exit').then(([status, signal]) => {
    children.delete(child);
    return signal ?? status;
  });
  child.on('error', () => {}); // `once` above has rejected with it.
  child.end = (signal) => {
    child.kill(signal);
    return child.ended;
  };
  return child;
}

async function freePort() {
  const server = net.createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  await once(server, 'close');
  return port;
}

const answer = async (command, args, env = {}) =>
  (await run(command, args, { timeout: DEADLINE_MS, env: { ...inherited, ...env } })).stdout.trim();

let browser;
async function theBrowser() {
  const places = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];
  const executablePath = places.find(existsSync);
  assert.ok(executablePath, `no browser: none of ${places.join(', ')}`);
  browser ??= chromium.launch({ executablePath, headless: true, args: BROWSER_ARGS, timeout: DEADLINE_MS });
  return browser;
}

export async function closeBrowser() {
  await (await browser)?.close();
}

export class Stage {
  #undo = [];
  #complaints = [];

  /** Stops everything that was started, in reverse order. */
  async close() {
    while (this.#undo.length > 0) await this.#undo.pop()();
  }

  /** Asserts that no page logged an error, a warning or a violation of its policy. */
  assertQuiet() {
    assert.deepEqual(this.#complaints, []);
  }

  async #folder() {
    const folder = await mkdtemp(path.join(tmpdir(), 'tidings-'));
    this.#undo.push(() => rm(folder, { recursive: true, force: true }));
    return folder;
  }

  /** A dedicated redis-server; `cli` runs one command, `subscribe` returns the messages on a channel since. */
  async redis() {
    const port = await freePort();
    const args = ['--port', port, '--bind', '127.0.0.1', '--save', '', '--dir', await this.#folder()];
    const server = start('redis-server', args.map(String));
    this.#undo.push(() => server.end('SIGKILL'));
    const cli = (...command) => answer('redis-cli', ['-p', String(port), ...command]);
    await until('redis answers', () => cli('ping').then((pong) => pong === 'PONG', () => false));
    const subscribe = async (channel) => {
      const client = start('redis-cli', ['-p', String(port), 'subscribe', channel]);
      this.#undo.push(() => client.end('SIGKILL'));
      await until('subscribed', () => client.output.includes('subscribe'));
      return () => client.output.split('\n').filter((line) => line.startsWith('{')).map((line) => JSON.parse(line));
    };
    return { port, cli, subscribe };
  }

  /**
   * An instance, and the calls of a backend. `listen` may be the address of an earlier one, `set` holds keys; `missed`
   * is the number of messages that it received for users without a connection.
   */
  async gateway({ redis, secret, set = [], listen = '127.0.0.1:0' } = {}) {
    const readyFile = path.join(await this.#folder(), 'ready');
    const keys = ['drain.window=500ms', 'presence.offline_delay=100ms', ...set].flatMap((pair) => ['--set', pair]);
    const where = ['--listen', listen, '--admin-listen', '127.0.0.1:0', '--ready-file', readyFile];
    const url = redis ? ['--redis-url', `redis://127.0.0.1:${redis.port}`] : [];
    const env = secret === undefined ? {} : { TIDINGS_AUTH__HMAC_SECRET: secret };
    const child = start(BINARY, ['serve', '--dev', ...where, ...url, ...keys], env);
    this.#undo.push(() => child.end('SIGKILL'));
    await until('an instance is ready', () => {
      assert.equal(child.exitCode, null, child.output);
      return existsSync(readyFile);
    });
    const ready = JSON.parse(await readFile(readyFile, 'utf8'));
    await until('readyz', async () => (await fetch(`http://${ready.public}/readyz`)).ok);
    const ask = async (path, body) => {
      const post = body && { method: 'POST', body: JSON.stringify(body) };
      const response = await fetch(`http://${ready.admin}/v1/${path}`, post);
      assert.ok(response.ok, `${path}: ${response.status} ${await response.clone().text()}`);
      return response.json();
    };
    return {
      ...ready,
      url: `http://${ready.public}/`,
      end: child.end,
      publish: (user, data) =>
        answer(BINARY, ['publish', user, JSON.stringify(data), '--admin', `http://${ready.admin}`]),
      store: async (user, data, more) =>
        (await ask(`users/${encodeURIComponent(user)}/notifications`, { data, durable: true, ...more })).id,
      info: () => ask('info'),
      missed: async () => {
        const text = await (await fetch(`http://${ready.admin}/metrics`)).text();
        return Number(/^tidings_messages_missed_total (\d+)$/m.exec(text)[1]);
      },
      unread: async (user) => (await ask(`users/${encodeURIComponent(user)}/read-position`)).unread,
    };
  }

  /** A web server of another origin, with one page; returns its port. */
  async site(html) {
    const server = createServer((_, response) => response.setHeader('Content-Type', 'text/html').end(html));
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    this.#undo.push(() => (server.closeAllConnections(), server.close()));
    return server.address().port;
  }

  /** A page in its own browser profile. `mayLog` matches the messages that it may log. */
  async page(url, { mayLog, ...options } = {}) {
    const context = await (await theBrowser()).newContext(options);
    this.#undo.push(() => context.close());
    context.setDefaultTimeout(DEADLINE_MS);
    const complain = (text) => mayLog?.test(text) || this.#complaints.push(text);
    context.on('weberror', (error) => complain(String(error.error())));
    context.on('console', (message) => {
      if (['error', 'warning', 'assert'].includes(message.type())) complain(message.text());
    });
    await context.addInitScript(() => document.addEventListener('securitypolicyviolation', (violation) => {
      console.error(`Content Security Policy: ${violation.violatedDirective} ${violation.blockedURI}`);
    }));
    const page = await context.newPage();
    page.leave = () => context.close();
    if (url) await page.goto(url);
    return page;
  }
}

/** A token as a backend creates it, for a gateway with this secret. */
export const token = (user) => answer(BINARY, ['token', user], { TIDINGS_AUTH__HMAC_SECRET: SECRET });

let closesBrowser = false;

/** A test with a stage, which is cleared at its end, also after a failure or a timeout. */
export function scenario(name, play) {
  if (!closesBrowser) after(closeBrowser);
  closesBrowser = true;
  test(name, { timeout: TEST_MS }, async (t) => {
    const stage = new Stage();
    t.after(() => stage.close());
    await play(stage);
    stage.assertQuiet();
  });
}

/** The panel of one user on the demo page, and its contents. */
export function panel(page, user) {
  const node = page.locator('.panel').and(page.locator(`[data-user=${JSON.stringify(user)}]`));
  const rows = node.getByTestId('notification');
  return {
    node,
    rows,
    titles: () => rows.locator('h3').allTextContents(),
    row: (text) => rows.filter({ hasText: text }).waitFor(),
    is: (state) => node.locator(`[data-testid=state][data-state=${state}]`).waitFor(),
    unread: (number) => node.getByTestId('unread').filter({ hasText: new RegExp(`^${number} unread$`) }).waitFor(),
    network: () => node.getByTestId('network').click(),
  };
}

export async function signIn(page, user) {
  await page.getByTestId('user-input').fill(user);
  await page.getByTestId('sign-in').click();
  const signedIn = panel(page, user);
  await signedIn.is('live');
  return signedIn;
}

/** Waits until exactly these users are shown as online. */
export async function online(page, ...users) {
  const shown = () => page.getByTestId('online-user').allTextContents();
  const count = page.getByTestId('online-count');
  await until(`online: ${users}`, async () =>
    (await count.textContent()) === String(users.length) && String((await shown()).sort()) === String(users.sort()));
}
