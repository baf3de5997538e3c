// Clients of the inbox: WebSocket connections that request pages, acknowledge, and count what they receive.

import { createHmac } from 'node:crypto';
import { readFileSync, readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { setTimeout as sleep } from 'node:timers/promises';

const peers = createRequire(new URL('peers/', import.meta.url));
const { WebSocket } = peers('ws');
export const { Redis } = peers('ioredis');

const AT_ONCE = 200;
const TICK_MS = 5;
const PATIENCE_MS = 15_000;

export function token(user, secret) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const signed = `${part({ alg: 'HS256', typ: 'JWT' })}.${part({ sub: user, exp: Math.floor(Date.now() / 1_000) + 3_600 })}`;
  return `${signed}.${createHmac('sha256', secret).update(signed).digest('base64url')}`;
}

// One connection. `counts` has the received frames of each type; `ids` the stored events, oldest first.
class Client {
  counts = { event: 0, read: 0, history: 0 };
  ids = [];
  next = 0;
  onEvent = () => {};

  constructor(server, user) {
    this.user = user;
    const protocols = ['tidings.v1', `bearer.${token(user, server.env.SECRET)}`];
    this.socket = new WebSocket(`ws://${server.load[1]}/ws`, protocols, { perMessageDeflate: false });
    this.welcome = new Promise((resolve, reject) => {
      this.socket.once('error', reject);
      this.socket.on('message', (text) => this.receive(JSON.parse(text), resolve));
    });
  }

  receive(frame, welcomed) {
    if (frame.type === 'welcome') return welcomed();
    if (frame.type === 'ping') return this.send({ type: 'pong' });
    if (frame.type === 'error') throw new Error(JSON.stringify(frame));
    if (frame.type === 'event' && frame.id) this.ids.push(frame.id);
    if (frame.type === 'event') this.onEvent(frame);
    if (frame.type === 'history') this.rows = frame.notifications.length;
    this.counts[frame.type] += 1;
  }

  send(frame) {
    this.socket.send(JSON.stringify(frame));
  }

  // Acknowledges the oldest stored event that is not acknowledged yet.
  ack() {
    if (this.next === this.ids.length) throw new Error('nothing left to acknowledge');
    this.send({ type: 'ack', id: this.ids[this.next++] });
  }
}

// Connections of users u0, u1, …; `serverOf` gives the server of each of a user's connections.
export async function connect(users, serversOfUser) {
  const clients = [];
  for (let first = 0; first < users; first += AT_ONCE) {
    const some = Array.from({ length: Math.min(AT_ONCE, users - first) }, (_, at) => `u${first + at}`);
    const opened = some.map((user) => serversOfUser.map((server) => new Client(server, user)));
    await Promise.all(opened.flat().map(({ welcome }) => welcome));
    clients.push(...opened);
  }
  return clients;
}

export const total = (clients, type) => clients.flat().reduce((sum, { counts }) => sum + counts[type], 0);

export async function until(what, condition, every = TICK_MS) {
  for (const deadline = Date.now() + PATIENCE_MS; !(await condition()); await sleep(every)) {
    if (Date.now() > deadline) throw new Error(`not within ${PATIENCE_MS} ms: ${what}`);
  }
}

// Calls `act` at a fixed rate, in groups of what is due every so many milliseconds.
export async function paced(rate, seconds, act, every = TICK_MS) {
  const start = performance.now();
  for (let done = 0; done < rate * seconds; await sleep(1)) {
    const groups = Math.floor((performance.now() - start) / every) + 1;
    const due = Math.min(rate * seconds, Math.floor((groups * every * rate) / 1_000));
    for (; done < due; done += 1) act(done);
  }
}

export async function admin(server, method, path, body) {
  const headers = { 'content-type': 'application/json' };
  const answer = await fetch(`http://${server.load[3]}${path}`, { method, headers, body: JSON.stringify(body) });
  if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${await answer.text()}`);
  return answer.json();
}

// CPU time in µs since the start, of all threads that live.
export function cpuOf(servers) {
  const ofThread = (pid, thread) => Number(readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'utf8').split(' ')[0]);
  const ofProcess = (pid) => readdirSync(`/proc/${pid}/task`).reduce((sum, thread) => sum + ofThread(pid, thread), 0);
  return servers.reduce((sum, { child }) => sum + ofProcess(child.pid), 0) / 1_000;
}

// What the servers and Redis use during `work`: CPU in µs; commands include those that scripts call.
export async function usage(servers, redis, work) {
  const read = async () => {
    const info = await redis.info('all');
    const field = (name) => Number(new RegExp(`^${name}:(?:calls=)?([\\d.]+)`, 'm').exec(info)?.[1] ?? 0);
    return {
      cpu: cpuOf(servers),
      redis: (field('used_cpu_sys') + field('used_cpu_user')) * 1e6,
      commands: field('total_commands_processed'),
      scripts: field('cmdstat_eval') + field('cmdstat_evalsha'),
    };
  };
  const before = await read();
  await work();
  const after = await read();
  return Object.fromEntries(Object.keys(after).map((key) => [key, after[key] - before[key]]));
}
