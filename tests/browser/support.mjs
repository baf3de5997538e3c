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
export const BINARY = path.resolve(ROOT, process.env.GATEWAY_BIN ?? 'target/debug/tidings');
const DEADLINE_MS = 10_000; // for one thing to happen
const TEST_MS = 40_000; // for a whole test
const { chromium } = createRequire(path.join(ROOT, 'sdk/js/package.json'))('playwright-core');
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

export async function freePort() {
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
/** As installed, but for the back/forward cache, which playwright switches off. */
async function theBrowser() {
  const places = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];
  const executablePath = places.find(existsSync);
  assert.ok(executablePath, `no browser: none of ${places.join(', ')}`);
  const ignoreDefaultArgs = ['--disable-back-forward-cache'];
  browser ??= chromium.launch({
    executablePath, headless: true, args: BROWSER_ARGS, ignoreDefaultArgs, timeout: DEADLINE_MS,
  });
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

  onClose(undo) {
    this.#undo.push(undo);
  }

  /** Asserts that no page logged an error, a warning or a violation of its policy. */
  assertQuiet() {
    assert.deepEqual(this.#complaints, []);
  }

  async folder() {
    const folder = await mkdtemp(path.join(tmpdir(), 'tidings-'));
    this.#undo.push(() => rm(folder, { recursive: true, force: true }));
    return folder;
  }

  /** A process that ends with the stage. */
  run(command, args, env) {
    const child = start(command, args, env);
    this.#undo.push(() => child.end('SIGKILL'));
    return child;
  }

  /** The page of examples/socket-io-page with its socket.io server, on the port of an earlier one or on a free one. */
  async example({ redis, secret, port }) {
    const free = port ?? (await freePort());
    const env = { SECRET: secret, REDIS_URL: `redis://127.0.0.1:${redis.port}` };
    const child = this.run('node', [path.join(ROOT, 'examples/socket-io-page/server.mjs'), String(free)], env);
    await until('the example is ready', () => {
      assert.equal(child.exitCode, null, child.output);
      return child.output.includes(`:${free}/`);
    });
    return { port: free, url: `http://127.0.0.1:${free}/`, end: child.end };
  }

  /** A dedicated redis-server; `cli` runs one command, `subscribe` returns the messages on a channel since. */
  async redis() {
    const port = await freePort();
    const args = ['--port', port, '--bind', '127.0.0.1', '--save', '', '--dir', await this.folder()];
    this.run('redis-server', args.map(String));
    const cli = (...command) => answer('redis-cli', ['-p', String(port), ...command]);
    await until('redis answers', () => cli('ping').then((pong) => pong === 'PONG', () => false));
    const subscribe = async (channel) => {
      const client = this.run('redis-cli', ['-p', String(port), 'subscribe', channel]);
      await until('subscribed', () => client.output.includes('subscribe'));
      return () => client.output.split('\n').filter((line) => line.startsWith('{')).map((line) => JSON.parse(line));
    };
    return { port, cli, subscribe };
  }

  /**
   * An instance, and the calls of a backend. `listen` and `admin` may be addresses of an earlier one, `set` holds keys; `missed`
   * is the number of messages that it received for users without a connection.
   */
  async gateway({ redis, secret, set = [], listen = '127.0.0.1:0', admin = '127.0.0.1:0' } = {}) {
    const readyFile = path.join(await this.folder(), 'ready');
    const keys = ['drain.window=500ms', 'presence.offline_delay=100ms', ...set].flatMap((pair) => ['--set', pair]);
    const where = ['--listen', listen, '--admin-listen', admin, '--ready-file', readyFile];
    const url = redis ? ['--redis-url', `redis://127.0.0.1:${redis.port}`] : [];
    const env = secret === undefined ? {} : { TIDINGS_AUTH__HMAC_SECRET: secret };
    const child = this.run(BINARY, ['serve', '--dev', ...where, ...url, ...keys], env);
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
      connections: async (transport) => {
        const text = await (await fetch(`http://${ready.admin}/metrics`)).text();
        return Number(text.match(new RegExp(`^tidings_transport_connections\\{transport="${transport}"\\} (\\d+)$`, 'm'))[1]);
      },
      unread: async (user) => (await ask(`users/${encodeURIComponent(user)}/read-position`)).unread,
    };
  }

  /** Runs a command as a user who has `tidings` on the path types it. */
  async shell(command) {
    return answer('sh', ['-c', command], { PATH: `${path.dirname(BINARY)}:${process.env.PATH}` });
  }

  /**
   * A web server of another origin, with one page, and the SDK at `/tidings.js`; returns its port. `texts` maps further
   * paths to functions that return a text.
   */
  async site(html, texts = {}) {
    const server = createServer(async ({ url }, response) => {
      const isScript = /^\/tidings(-\w+)?\.js$/.test(url);
      const body = isScript ? await readFile(path.join(ROOT, 'sdk/js', url)) : await texts[url]?.();
      const type = isScript ? 'text/javascript' : body ? 'text/plain' : 'text/html';
      response.setHeader('Content-Type', type).end(body ?? html);
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    this.#undo.push(() => (server.closeAllConnections(), server.close()));
    return server.address().port;
  }

  /**
   * A load balancer that passes each new connection on to the address of that moment; returns its port and URL, `freeze`,
   * after which the connections so far carry nothing and do not end, and `cut`, which ends them.
   */
  async balancer(address) {
    let open = [];
    const server = net.createServer((near) => {
      const [host, port] = address().split(':');
      const far = net.connect(Number(port), host);
      open.push(near, far);
      for (const [from, to] of [[near, far], [far, near]]) {
        from.pipe(to);
        from.on('error', () => to.destroy()).on('close', () => to.destroy());
      }
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    this.#undo.push(() => (server.close(), open.forEach((socket) => socket.destroy())));
    const freeze = () => {
      for (const socket of open) socket.unpipe().pause().removeAllListeners('close');
    };
    const cut = () => open.splice(0).forEach((socket) => socket.destroy());
    const { port } = server.address();
    return { port, url: `http://127.0.0.1:${port}`, freeze, cut };
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
export const token = (user, ttl = '1h') =>
  answer(BINARY, ['token', user, '--ttl', ttl], { TIDINGS_AUTH__HMAC_SECRET: SECRET });

let closesBrowser = false;

/** A test with a stage, which is cleared at its end, also after a failure or a timeout. */
export function scenario(name, play, timeout = TEST_MS) {
  if (!closesBrowser) after(closeBrowser);
  closesBrowser = true;
  test(name, { timeout }, async (t) => {
    const stage = new Stage();
    t.after(() => stage.close());
    await play(stage);
    stage.assertQuiet();
  });
}

/** The panel of one user on the demo page, and its contents. */
export function panel(page, user) {
  const node = page.locator('.panel').and(page.locator(`[data-user=${JSON.stringify(user)}]`));
  const rows = node.locator('tidings-inbox [part~=item]');
  const badge = node.locator('tidings-inbox [part~=badge]');
  return {
    node,
    rows,
    titles: () => rows.locator('[part~=item-title]').allTextContents(),
    row: (text) => rows.filter({ hasText: text }).waitFor(),
    is: (state) => node.locator(`[data-testid=state][data-state=${state}]`).waitFor(),
    unread: (number) => (number === 0 ? badge.waitFor({ state: 'hidden' })
      : badge.filter({ hasText: new RegExp(`^${number > 99 ? '99\\+' : number}$`) }).waitFor()),
    button: (name) => node.locator('tidings-inbox').getByRole('button', { name, exact: true }),
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
