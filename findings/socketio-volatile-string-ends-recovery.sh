#!/usr/bin/env bash
# One volatile event with a string as its last argument ends the connection state recovery of Socket.IO 4.8.4.
#
# With connectionStateRecovery, the server appends an offset to each event, except to volatile ones, which it does not
# store. The client keeps the last argument of every event as its offset if that argument is a string, whether it is an
# offset or data. After a volatile event ("clock", "12:00") it reconnects with the offset "12:00", which the server does
# not know: the session is not recovered, and the event that the server sent during the interruption is lost. After the
# same event with a number, it is recovered. Needs Node.js 20 or newer.
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
npm install --silent --no-audit --no-fund socket.io@4.8.4 socket.io-client@4.8.4

cat >run.mjs <<'NODE'
import assert from 'node:assert';
import { once } from 'node:events';
import { createRequire } from 'node:module';
import { setTimeout as wait } from 'node:timers/promises';
import { Server } from 'socket.io';
import { io } from 'socket.io-client';

const version = (name) => createRequire(import.meta.url)(`${name}/package.json`).version;
console.log('socket.io', version('socket.io'), 'socket.io-client', version('socket.io-client'));

const next = (emitter, name) => new Promise((resolve) => emitter.once(name, (...args) => resolve(args)));

/** Whether a client recovers, and receives what it missed, if the last event before its connection broke is this one. */
async function reconnectAfter(volatile) {
  const server = new Server({ connectionStateRecovery: {}, serveClient: false });
  server.listen(0, { host: '127.0.0.1' });
  if (!server.httpServer.listening) await once(server.httpServer, 'listening');
  const accepted = next(server, 'connection');
  const url = `http://127.0.0.1:${server.httpServer.address().port}`;
  const client = io(url, { transports: ['websocket'], reconnectionDelay: 300, reconnectionDelayMax: 300 });
  const connected = next(client, 'connect');
  const [socket] = await accepted;
  await connected;

  const received = [];
  client.onAny((name) => received.push(name));
  const stored = next(client, 'stored');
  socket.join('room');
  server.to('room').emit('stored', 1);
  await stored;
  if (volatile) {
    const clock = next(client, 'clock');
    socket.volatile.emit('clock', volatile.value);
    await clock;
  }

  const left = next(socket, 'disconnect');
  client.io.engine.close();
  await left;
  server.to('room').emit('missed', 2);
  await next(client, 'connect');
  // The missed events precede the answer to the connect packet, so they are there by now; a little more, to be sure.
  await wait(200);
  const seen = { recovered: client.recovered, receivedMissed: received.includes('missed') };
  client.close();
  await server.close();
  return seen;
}

const all = { recovered: true, receivedMissed: true };
for (const [name, volatile, expected] of [
  ['no volatile event', null, all],
  ['a volatile event with a number', { value: 1200 }, all],
  ['a volatile event with a string', { value: '12:00' }, { recovered: false, receivedMissed: false }],
]) {
  const seen = await reconnectAfter(volatile);
  console.log(`${name}:`, seen);
  assert.deepEqual(seen, expected);
}
NODE
node run.mjs
echo "as described"
