// The servers that the clients under test connect to, and a test that one scenario plays with every client at once.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import net from 'node:net';
import path from 'node:path';
import { createInterface } from 'node:readline';
import test, { after } from 'node:test';

import { closeBrowser, Stage } from '../browser/support.mjs';
import { Backend, mint, SECRET } from './backend.mjs';
import { Page, startClient } from './clients.mjs';
import { Log } from './log.mjs';

const TEST_MS = 120_000;

// Many heartbeats in each scenario; a client on a busy machine has its time to answer one.
const SETTINGS = [
  'server.heartbeat=300ms', 'server.pong_timeout=10s', 'server.hello_timeout=20s', 'auth.leeway=0s', 'presence.lease=1s',
];

// No page of its own at the first start, no update, nothing reported.
const FIREFOX_PREFERENCES = {
  'app.update.enabled': false,
  'browser.aboutwelcome.enabled': false,
  'browser.shell.checkDefaultBrowser': false,
  'datareporting.policy.dataSubmissionEnabled': false,
  'network.captive-portal-service.enabled': false,
  'network.connectivity-service.enabled': false,
};

async function firefox(stage, url) {
  const command = ['/usr/bin/firefox-esr', '/usr/bin/firefox'].find(existsSync);
  assert.ok(command, 'no Firefox (scripts/setup)');
  const profile = await stage.folder();
  const lines = Object.entries(FIREFOX_PREFERENCES).map(([name, value]) => `user_pref("${name}", ${value});\n`);
  await writeFile(path.join(profile, 'user.js'), lines.join(''));
  stage.run(command, ['--headless', '--no-remote', '--profile', profile, url]);
}

const OPEN_PAGE = { firefox, chromium: (stage, url) => stage.page(url, { mayLog: /./ }) };

// They serve all scenarios of a file: the backend, and each browser with its one page.
const shared = new Stage();
const backend = await Backend.start();
const browsers = new Map();
after(async () => {
  await shared.close();
  await closeBrowser();
  backend.close();
});

async function openBrowsers(rows) {
  const missing = rows.filter(({ runs, name }) => runs === 'page' && !browsers.has(name));
  await Promise.all(missing.map(async ({ name }) => {
    const { url, socket } = backend.page(name);
    await OPEN_PAGE[name](shared, url);
    browsers.set(name, new Page(await socket));
  }));
}

/** One row in one scenario: its user, that user's tokens, and the log of its client. */
export class Client {
  /** How the next token is made. */
  token = () => mint(this.user);
  tokens = 0;
  /** What else socket.io-client passes in `auth`. */
  auth = () => ({});
  #world;

  constructor(row, world) {
    Object.assign(this, row);
    this.row = row;
    this.user = row.name;
    this.#world = world;
    this.tokenUrl = backend.answer(`${this.user}-${world.name}`, () => {
      this.tokens += 1;
      return this.token();
    });
  }

  /** Starts the client, and returns its log; a second one has its own. */
  start(url = this.#world.url) {
    const log = new Log(this.name);
    const started = startClient(this.row, { url, tokenUrl: this.tokenUrl, auth: () => this.auth(), log, browsers });
    this.#world.stage.onClose(started.close);
    return Object.assign(log, started);
  }

  /** Starts the client, and waits until it is connected. */
  async connect(url) {
    this.log = this.start(url);
    await this.log.next('connected');
    return this.log;
  }

  /** Publishes as a backend does, through Redis. */
  publish(data) {
    return this.#world.send('PUBLISH', `user:${this.user}`, JSON.stringify(data));
  }

  /** Adds a notification to the outbox; `more` has further fields of the entry. */
  store(data, ...more) {
    return this.#world.send('XADD', 'tidings:outbox', '*', 'user', this.user, 'data', JSON.stringify(data), ...more);
  }
}

/**
 * A scenario that every client of these rows plays at the same time. `world` starts the servers; then each of `steps` is
 * either one function of the world, or a function for each client. A client that fails takes no part in later steps.
 */
export function everyClient(name, rows, startWorld, ...steps) {
  test(name, { timeout: TEST_MS }, async (t) => {
    const stage = new Stage();
    t.after(() => stage.close());
    const world = Object.assign(await startWorld(stage), { name: encodeURIComponent(name), stage });
    await openBrowsers(rows);
    const clients = rows.map((row) => new Client(row, world));
    const failures = new Map();
    let failed; // what failed for all
    for (const { each, once } of steps) {
      await Promise.resolve(world).then(once).catch((error) => (failed ??= error));
      const playing = clients.filter((client) => each && !failures.has(client));
      await Promise.all(playing.map((client) => each(client, world).catch((error) => failures.set(client, error))));
    }
    for (const client of clients) {
      await t.test(client.name, () => {
        if (failures.has(client)) throw failures.get(client);
      });
    }
    if (failed) throw failed;
  });
}

/** A backend's connection to Redis: a function that sends one command, and resolves with the line of its reply. */
async function connectRedis(stage, { port }) {
  const socket = net.connect(port, '127.0.0.1');
  stage.onClose(() => socket.destroy());
  const waiting = [];
  createInterface(socket).on('line', (line) => {
    // A bulk string: its length, then its text.
    if (!line.startsWith('$')) waiting.shift()(line);
  });
  await once(socket, 'connect');
  return (...words) => {
    const reply = new Promise((resolve) => waiting.push(resolve));
    socket.write(`*${words.length}\r\n${words.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`).join('')}`);
    return reply.then((line) => assert.ok(!line.startsWith('-'), line));
  };
}

/** The socket.io server of examples/socket-io-page, and its Redis. */
export async function nodeServer(stage) {
  const redis = await stage.redis();
  const world = { redis, send: await connectRedis(stage, redis), server: await stage.example({ redis, secret: SECRET }) };
  const balancer = await stage.balancer(() => `127.0.0.1:${world.server.port}`);
  const restart = async () => (world.server = await stage.example({ redis, secret: SECRET, port: world.server.port }));
  return Object.assign(world, { url: world.server.url, balancer, balanced: balancer.url, restart });
}

/** Two instances on one Redis; `balanced` leads to `world.target`, at first the first one. */
export const fleet = (...set) => async (stage) => {
  const redis = await stage.redis();
  const start = (listen) => stage.gateway({ redis, secret: SECRET, set: [...SETTINGS, ...set], listen });
  const instances = await Promise.all([start(), start()]);
  const send = await connectRedis(stage, redis);
  const world = { redis, send, instances, target: instances[0], url: `http://${instances[0].public}` };
  const balancer = await stage.balancer(() => world.target.public);
  const restart = async () => (instances[0] = await start(instances[0].public));
  return Object.assign(world, { balancer, balanced: balancer.url, restart });
};
