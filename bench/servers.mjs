// The processes of a run: Redis, the measured server, and the measuring tools.

import { execFileSync, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { NCHAN_MODULE, nchanConfiguration } from './peers/nchan.mjs';

const READY_MS = 15_000;
const STOP_MS = 30_000;
export const SERVER_CORE = '0';
export const LOAD_CORE = '1';

const target = process.env.CARGO_TARGET_DIR ?? 'target';
export const tidings = `${target}/release/tidings`;
const floor = `${target}/release/examples/floor`;
const secret = randomBytes(32).toString('hex');

// Debian's nginx and nats-server are there, and an unprivileged user's PATH often lacks it.
process.env.PATH += ':/usr/sbin';

export function has(tool) {
  try {
    execFileSync('which', [tool], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

// With `group`, the process has started others, which end with it.
function send(signal, child) {
  if (!child.group) return child.kill(signal);
  try {
    return process.kill(-child.pid, signal);
  } catch (error) {
    if (error.code !== 'ESRCH') throw error;
    return false;
  }
}

// No process outlives a failed run.
const running = new Set();
process.on('exit', () => running.forEach((child) => send('SIGKILL', child)));
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => process.exit(1));

// With a core, the process and all its threads are pinned to it.
export function start(command, { core, env, group = false } = {}) {
  const [program, ...args] = core ? ['taskset', '-c', core, ...command] : command;
  const stdio = ['ignore', 'pipe', 'pipe'];
  const child = spawn(program, args, { env: { ...process.env, ...env }, stdio, detached: group });
  child.group = group;
  child.output = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr']) {
    child[name].setEncoding('utf8').on('data', (text) => (child.output[name] += text));
  }
  running.add(child);
  child.done = new Promise((resolve) => {
    child.once('error', (error) => resolve(error.message));
    child.once('close', (code, signal) => resolve(signal ?? code));
  }).finally(() => running.delete(child));
  return child;
}

function told(child) {
  return `${child.spawnargs.join(' ')}\n${child.output.stdout}${child.output.stderr}`;
}

export async function stop(child, signal = 'SIGTERM') {
  if (!running.has(child)) throw new Error(`ended by itself: ${told(child)}`);
  const deadline = setTimeout(() => send('SIGKILL', child), STOP_MS);
  send(signal, child);
  await child.done;
  clearTimeout(deadline);
}

async function ready(child, condition) {
  for (const deadline = Date.now() + READY_MS; Date.now() < deadline && running.has(child); await sleep(50)) {
    if (await condition()) return child;
  }
  throw new Error(`not ready: ${told(child)}`);
}

// Below the ephemeral range, from which tens of thousands of outgoing connections take their ports.
const PORTS = { from: 10_000, count: 20_000 };

// All are held until the last is found, so that they differ.
async function freePorts(count) {
  const servers = [];
  while (servers.length < count) {
    const port = PORTS.from + Math.floor(Math.random() * PORTS.count);
    const server = net.createServer().listen(port, '127.0.0.1');
    if (await once(server, 'listening').then(() => true, () => false)) servers.push(server);
  }
  const ports = servers.map((server) => server.address().port);
  await Promise.all(servers.map((server) => once(server.close(), 'close')));
  return ports;
}

async function accepts(port) {
  const socket = net.connect(port, '127.0.0.1');
  const answer = await once(socket, 'connect').then(() => true, () => false);
  socket.destroy();
  return answer;
}

async function isReady(port) {
  return fetch(`http://127.0.0.1:${port}/readyz`).then((answer) => answer.ok, () => false);
}

// Nchan accepts a message once its worker runs, and is connected to Redis.
async function acceptsMessage(port, admin) {
  const message = { method: 'POST', body: 'ready' };
  return fetch(`http://127.0.0.1:${admin}/pub/ready`, message).then((answer) => answer.ok, () => false);
}

export async function startRedis(core) {
  const [port] = await freePorts(1);
  const flags = ['--port', port, '--bind', '127.0.0.1', '--save', '', '--maxmemory-policy', 'noeviction'].map(String);
  const child = await ready(start(['redis-server', ...flags], { core }), () => accepts(port));
  return { child, address: `127.0.0.1:${port}`, url: `redis://127.0.0.1:${port}` };
}

const gateway = {
  // All features are on: tokens are verified, heartbeats sent, presence maintained, metrics counted.
  command(port, redis, admin, binary) {
    const listen = ['--listen', `127.0.0.1:${port}`, '--admin-listen', `127.0.0.1:${admin}`];
    return [binary, 'serve', ...listen, '--redis-url', redis.url];
  },
  ready: isReady,
};

// Configurations, and the files that nginx creates.
const folder = mkdtempSync(join(os.tmpdir(), 'tidings-bench-'));
process.on('exit', () => rmSync(folder, { recursive: true, force: true }));

function written(name, text) {
  const path = join(folder, name);
  writeFileSync(path, text);
  return path;
}

const nchan = (storeOf) => ({
  missing: () => (has('nginx') && existsSync(NCHAN_MODULE) ? undefined : 'libnginx-mod-nchan'),
  command(port, redis, admin) {
    return ['nginx', '-e', 'stderr', '-p', folder, '-c', written('nginx.conf', nchanConfiguration(port, admin, storeOf(redis)))];
  },
  ready: acceptsMessage,
  group: true,
  flags: ['--client', 'nchan'],
});

const nats = {
  missing: () => (has('nats-server') ? undefined : 'nats-server'),
  command(port, redis, admin) {
    const listeners = `listen: "127.0.0.1:${admin}"\nwebsocket { listen: "127.0.0.1:${port}", no_tls: true }\n`;
    return ['nats-server', '--config', written('nats.conf', listeners)];
  },
  ready: accepts,
  flags: ['--client', 'nats'],
};

const node = { command: (port, redis) => ['node', 'bench/peers/socketio.mjs', `${port}`, redis.url], ready: accepts };

// How each server is started, and the load generator flags for it.
const kinds = {
  tidings: gateway,
  'tidings-tls': { ...gateway, ready: accepts },
  'tidings-sse': { ...gateway, flags: ['--client', 'sse'] },
  'tidings-socketio': { ...gateway, flags: ['--client', 'socket-io'] },
  'tidings-polling': { ...gateway, flags: ['--client', 'polling'] },
  floor: { command: (port, redis) => [floor, `127.0.0.1:${port}`, redis.address], ready: accepts },
  ws: { command: (port, redis) => ['node', 'bench/peers/ws.mjs', `${port}`, redis.url], ready: accepts },
  socketio: { ...node, flags: ['--client', 'socket-io'] },
  'socketio-polling': { ...node, flags: ['--client', 'polling'] },
  nchan: nchan(() => undefined),
  'nchan-redis': nchan((redis) => redis.url),
  nats,
};

// What a server needs that is not installed.
export function missing(name) {
  return kinds[name].missing?.();
}

// `BINARY` selects another build of tidings.
export async function startServer(name, redis, core, { BINARY: binary = tidings, ...more } = {}) {
  const kind = kinds[name];
  const [port, admin] = await freePorts(2);
  const env = { SECRET: secret, TIDINGS_AUTH__HMAC_SECRET: secret, TIDINGS_LOG__LEVEL: 'warn' };
  const child = start(kind.command(port, redis, admin, binary), { core, env: { ...env, ...more }, group: kind.group });
  await ready(child, () => kind.ready(port, admin));
  const listeners = ['--target', `127.0.0.1:${port}`, '--admin-listen', `127.0.0.1:${admin}`];
  const load = [...listeners, '--redis-url', redis.url, ...(kind.flags ?? [])];
  return { child, pids: processesOf(child), env, load };
}

// `taskset` becomes the program it starts, so its process id is the server's. The workers of nginx are its children.
function processesOf({ pid }) {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').match(/\d+/g) ?? [];
  return [pid, ...children.map(Number)];
}

export function residentBytes({ pids }) {
  const each = pids.map((pid) => /VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]);
  return each.reduce((sum, kilobytes) => sum + Number(kilobytes) * 1_024, 0);
}
