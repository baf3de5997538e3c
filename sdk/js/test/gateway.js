// A gateway that a test scripts, over real WebSockets, with a page that uses the SDK: for tests in a browser.
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { chromium } from 'playwright-core';
import { WebSocketServer } from 'ws';
import { jwt } from './support.js';

const EPOCH = '00000000000000aa';
const page = (head, body) => `<!doctype html><html lang="en"><meta charset="utf-8"><title>inbox</title>
<link rel="icon" href="data:,"><meta name="viewport" content="width=device-width">
${head}<body>${body}</body></html>`;

/** A light and dark page, as an application may have it. */
const HEAD = `<style>:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { margin: 0; } header { display: flex; justify-content: space-between; align-items: center; padding: 8px 16px; }
h1 { margin: 0; font-size: 1.2rem; } main { padding: 0 16px; }</style>
<script type="module">
  import { Tidings } from '/tidings.js';
  import '/tidings-inbox.js';
  window.client = new Tidings('/ws', { token: () => '${jwt('a', 3_600_000, Date.now())}', promptDelayMs: 10, baseDelayMs: 50 });
  document.querySelector('tidings-inbox').client = client;
</script>`;
const BODY = '<header><h1>My page</h1><tidings-inbox></tidings-inbox></header><main><p>Its content.</p></main>';

export class Gateway {
  epoch = EPOCH;
  numbers = 0;
  stored = []; // Oldest first.
  read = 0; // The number of the read position.
  isUnreadable = false;
  refusal = null; // A close code and a reason for everyone.
  #sockets = new Set();

  cursor = (number) => `${this.epoch}-1000-${number}`;

  async start(head = HEAD, body = BODY) {
    this.http = createServer(async ({ url }, response) => {
      const isFile = /^\/tidings[\w-]*\.js$/.test(url);
      if (url === '/token') return response.end(jwt('a', 3_600_000, Date.now()));
      response.setHeader('Content-Security-Policy', "script-src 'self' 'unsafe-inline'; style-src 'unsafe-inline'; require-trusted-types-for 'script'");
      response.setHeader('Content-Type', isFile ? 'text/javascript' : 'text/html');
      return response.end(isFile ? await readFile(new URL(`..${url}`, import.meta.url)) : page(head, body));
    });
    this.sockets = new WebSocketServer({ server: this.http, path: '/ws' });
    this.sockets.on('connection', (socket) => this.#welcome(socket));
    this.http.listen(0, '127.0.0.1');
    await once(this.http, 'listening');
    this.url = `http://127.0.0.1:${this.http.address().port}/`;
    return this;
  }

  close() {
    for (const socket of this.#sockets) socket.terminate();
    this.sockets.close();
    this.http.closeAllConnections();
    this.http.close();
  }

  get unread() {
    return this.stored.filter(({ number }) => number > this.read).length;
  }

  #welcome(socket) {
    if (this.refusal) return socket.close(...this.refusal);
    this.#sockets.add(socket);
    socket.on('close', () => this.#sockets.delete(socket));
    socket.on('message', (text) => this.#receive(socket, JSON.parse(text)));
    const cursor = this.cursor(this.numbers);
    const welcome = { connection: 'c', user: '42', instance: 'i', cursor, recovered: false, unread: this.unread };
    return this.#send(socket, { type: 'welcome', ...welcome, expires_in_ms: 3_600_000, heartbeat_ms: 25_000 });
  }

  #send(socket, frame) {
    socket.send(JSON.stringify(frame));
  }

  #receive(socket, frame) {
    if (frame.type === 'ack') this.moveTo(Number(frame.id.split('-')[2]), socket);
    if (frame.type !== 'history') return undefined;
    if (this.isUnreadable) return this.#send(socket, { type: 'error', code: 4102, message: 'unreadable', ref: frame.ref });
    const before = frame.before ? Number(frame.before.split('-')[2]) : Infinity;
    const older = this.stored.filter(({ number }) => number < before).reverse();
    const notifications = older.slice(0, frame.limit ?? 20).map(({ number, ...one }) => one);
    const next = older.length > notifications.length ? notifications.at(-1).id : null;
    return this.#send(socket, { type: 'history', ref: frame.ref, notifications, next });
  }

  tell(frame, except) {
    for (const socket of this.#sockets) if (socket !== except) this.#send(socket, frame);
  }

  moveTo(number, except) {
    this.read = number;
    this.tell({ type: 'read', device: 'default', id: this.cursor(number), unread: this.unread }, except);
  }

  store(data, event = 'notification', ts = Date.UTC(2026, 4, 17, 9, 30) + this.numbers * 60_000) {
    this.numbers += 1;
    const one = { id: this.cursor(this.numbers), event, data, ts };
    this.stored.push({ number: this.numbers, ...one });
    this.tell({ type: 'event', ...one });
    return one.id;
  }

  retract(id) {
    this.stored = this.stored.filter((one) => one.id !== id);
    this.tell({ type: 'retracted', id });
  }

  erase() {
    Object.assign(this, { stored: [], numbers: 0, read: 0, epoch: 'bb00000000000000' });
    this.tell({ type: 'retracted', all: true });
  }

  drop(code, reason = '') {
    for (const socket of this.#sockets) code ? socket.close(code, reason) : socket.terminate();
  }
}

let launched;

/** A page in a profile of its own, with what it logs. */
export async function open(t, gateway, options = {}) {
  const places = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];
  launched ??= chromium.launch({ executablePath: places.find(existsSync), args: ['--no-sandbox', '--disable-gpu'] });
  const context = await (await launched).newContext({ reducedMotion: 'reduce', ...options });
  t.after(() => context.close());
  context.setDefaultTimeout(20_000);
  const logged = [];
  context.on('weberror', (error) => logged.push(String(error.error())));
  context.on('console', (message) => message.type() === 'error' && logged.push(message.text()));
  const tab = await context.newPage();
  await tab.goto(gateway.url);
  return Object.assign(tab, { logged });
}

export async function closeBrowser() {
  await (await launched)?.close();
}
