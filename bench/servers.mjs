// The processes of a run: Redis, the measured server, and the measuring tools.

import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import net from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

const READY_MS = 15_000;
const STOP_MS = 30_000;
export const SERVER_CORE = '0';
export const LOAD_CORE = '1';

const target = process.env.CARGO_TARGET_DIR ?? 'target';
export const tidings = `${target}/release/tidings`;
const floor = `${target}/release/examples/floor`;
const secret = randomBytes(32).toString('hex');

// No process outlives a failed run.
const running = new Set();
process.on('exit', () => running.forEach((child) => child.kill('SIGKILL')));
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => process.exit(1));

// With a core, the process and all its threads are pinned to it.
export function start(command, { core, env } = {}) {
  const [program, ...args] = core ? ['taskset', '-c', core, ...command] : command;
  const child = spawn(program, args, { env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'] });
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
  const deadline = setTimeout(() => child.kill('SIGKILL'), STOP_MS);
  child.kill(signal);
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

export async function startRedis(core) {
  const [port] = await freePorts(1);
  const flags = ['--port', port, '--bind', '127.0.0.1', '--save', '', '--maxmemory-policy', 'noeviction'].map(String);
  const child = await ready(start(['redis-server', ...flags], { core }), () => accepts(port));
  return { child, address: `127.0.0.1:${port}`, url: `redis://127.0.0.1:${port}` };
}

// How each server is started, and the load generator flags for it.
const kinds = {
  tidings: {
    // All features are on: tokens are verified, heartbeats sent, presence maintained, metrics counted.
    command(port, redis, admin, binary) {
      const listen = ['--listen', `127.0.0.1:${port}`, '--admin-listen', `127.0.0.1:${admin}`];
      return [binary, 'serve', ...listen, '--redis-url', redis.url];
    },
    ready: isReady,
  },
  floor: { command: (port, redis) => [floor, `127.0.0.1:${port}`, redis.address], ready: accepts },
  ws: { command: (port, redis) => ['node', 'bench/peers/ws.mjs', `${port}`, redis.url], ready: accepts },
  socketio: {
    command: (port, redis) => ['node', 'bench/peers/socketio.mjs', `${port}`, redis.url],
    ready: accepts,
    flags: ['--client', 'socket-io', '--path', '/socket.io/?EIO=4&transport=websocket'],
  },
};

// `BINARY` selects another build of tidings.
export async function startServer(name, redis, core, { BINARY: binary = tidings, ...more } = {}) {
  const kind = kinds[name];
  const [port, admin] = await freePorts(2);
  const env = { SECRET: secret, TIDINGS_AUTH__HMAC_SECRET: secret, TIDINGS_LOG__LEVEL: 'warn' };
  const child = start(kind.command(port, redis, admin, binary), { core, env: { ...env, ...more } });
  await ready(child, () => kind.ready(port));
  const listeners = ['--target', `127.0.0.1:${port}`, '--admin-listen', `127.0.0.1:${admin}`];
  const load = [...listeners, '--redis-url', redis.url, ...(kind.flags ?? [])];
  return { child, env, load };
}

// `taskset` becomes the program it starts, so its process id is the server's.
export function residentBytes(child) {
  const [, kilobytes] = /VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${child.pid}/status`, 'utf8'));
  return Number(kilobytes) * 1_024;
}
