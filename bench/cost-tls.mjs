// Clients over TLS: what a handshake costs the server, full or with a session ticket, and the memory of idle connections.

import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import https from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import tls from 'node:tls';

import { cpuOf, token, until } from './inbox-client.mjs';
import { LOAD_CORE, SERVER_CORE, residentBytes, startRedis, startServer, stop } from './servers.mjs';

const SOURCES = 16;
const AT_ONCE = 50;
const DEADLINE_MS = 30_000;
// Longer than presence takes to register the last connection.
const SETTLE_MS = 2_000;

function certificate(folder) {
  const [cert, key] = ['cert.pem', 'key.pem'].map((name) => join(folder, name));
  const kind = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2'];
  const name = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost'];
  execFileSync('openssl', ['req', '-x509', ...kind, ...name, '-keyout', key, '-out', cert], { stdio: 'ignore' });
  return { cert, key };
}

function isReady({ port, ca }) {
  const options = { host: '127.0.0.1', port, path: '/readyz', ca, servername: 'localhost', agent: false };
  return new Promise((resolve, reject) => {
    https.get(options, (answer) => resolve(answer.resume().statusCode === 200)).on('error', reject);
  });
}

// One connection, once it has its welcome. Gives the socket, and the last session ticket that it received.
async function connect({ port, ca, secret }, user, session) {
  // From several addresses: one whose ports are in use, or were a minute ago, connects slowly.
  const localAddress = `127.0.0.${1 + (Number(user.slice(1)) % SOURCES)}`;
  const socket = tls.connect({ host: '127.0.0.1', port, localAddress, ca, servername: 'localhost', session });
  const opened = { socket, session: undefined };
  socket.on('session', (ticket) => (opened.session = ticket));
  const signal = AbortSignal.timeout(DEADLINE_MS);
  await once(socket, 'secureConnect', { signal });
  if (Boolean(session) !== socket.isSessionReused()) throw new Error(`a session was reused: ${socket.isSessionReused()}`);
  socket.write(
    `GET /ws HTTP/1.1\r\nHost: localhost:${port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n` +
      'Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n' +
      `Sec-WebSocket-Protocol: tidings.v1, bearer.${token(user, secret)}\r\n\r\n`,
  );
  for (let text = ''; !text.includes('"welcome"'); ) text += (await once(socket, 'data', { signal }))[0];
  socket.resume();
  return opened;
}

async function connectAll(to, users, session) {
  const opened = [];
  while (opened.length < users) {
    const some = Array.from({ length: Math.min(AT_ONCE, users - opened.length) }, (_, at) => `u${opened.length + at}`);
    opened.push(...(await Promise.all(some.map((user) => connect(to, user, session)))));
  }
  return opened;
}

// CPU of the server per handshake of so many clients, with a session or without, and what they then hold, in bytes.
async function handshakes(server, to, users, session) {
  const [cpu, memory] = [cpuOf([server]), residentBytes(server)];
  const opened = await connectAll(to, users, session);
  const used = (cpuOf([server]) - cpu) / users;
  await sleep(SETTLE_MS);
  return { opened, cpu: used, memory: (residentBytes(server) - memory) / users };
}

export async function overTls({ users, env, resumes }) {
  const folder = mkdtempSync(join(tmpdir(), 'tidings-bench-'));
  const { cert, key } = certificate(folder);
  const redis = await startRedis(LOAD_CORE);
  const secured = { TIDINGS_SERVER__TLS_CERT_FILE: cert, TIDINGS_SERVER__TLS_KEY_FILE: key };
  const server = await startServer('tidings-tls', redis, SERVER_CORE, { ...env, ...secured });
  const to = { port: Number(server.load[1].split(':')[1]), ca: readFileSync(cert), secret: server.env.SECRET };
  await until('the server is ready', () => isReady(to));
  // Memory that the first connections cause, and all use, does not count.
  const [first] = await connectAll(to, AT_ONCE);
  const full = await handshakes(server, to, users);
  await sleep(100);
  const resumed = resumes ? await handshakes(server, to, users, first.session) : undefined;
  await stop(server.child, 'SIGKILL');
  await stop(redis.child);
  for (const { socket } of [...full.opened, ...(resumed?.opened ?? [])]) socket.destroy();
  rmSync(folder, { recursive: true });
  return { full: full.cpu, memory: full.memory, ...(resumed && { resumed: resumed.cpu }) };
}
