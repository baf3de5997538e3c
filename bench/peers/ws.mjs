// Minimal Node server: ws and ioredis, a map of users, and payloads forwarded unparsed.
//
// usage: SECRET=… node ws.mjs PORT REDIS_URL
import { createServer } from 'node:http';

import { Redis } from 'ioredis';
import jwt from 'jsonwebtoken';
import { WebSocketServer } from 'ws';

const HEARTBEAT_MS = 25_000;

const [port, redisUrl] = process.argv.slice(2);
const server = createServer();
const wss = new WebSocketServer({
  noServer: true,
  perMessageDeflate: false,
  handleProtocols: (offered) => offered.has('tidings.v1') && 'tidings.v1',
});
const sockets = new Map();

function userOf(request) {
  const offered = (request.headers['sec-websocket-protocol'] ?? '').split(/\s*,\s*/);
  const bearer = offered.find((protocol) => protocol.startsWith('bearer.')) ?? '';
  return jwt.verify(bearer.slice('bearer.'.length), process.env.SECRET).sub;
}

function refuse(socket) {
  socket.end('HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 0\r\n\r\n');
}

function join(user, socket) {
  const mine = sockets.get(user) ?? new Set();
  sockets.set(user, mine.add(socket));
  socket.alive = true;
  socket.on('pong', () => (socket.alive = true));
  socket.on('error', (error) => console.error(`user ${user}: ${error.message}`));
  socket.on('close', () => {
    mine.delete(socket);
    if (mine.size === 0 && sockets.get(user) === mine) sockets.delete(user);
  });
  socket.send('{"type":"welcome"}');
}

server.on('upgrade', (request, socket, head) => {
  let user;
  try {
    user = userOf(request);
  } catch {
    return refuse(socket);
  }
  wss.handleUpgrade(request, socket, head, (accepted) => join(user, accepted));
});

setInterval(() => {
  for (const socket of wss.clients) {
    if (socket.alive) socket.ping();
    else socket.terminate();
    socket.alive = false;
  }
}, HEARTBEAT_MS);

const redis = new Redis(redisUrl);
await redis.psubscribe('user:*');
redis.on('pmessage', (_pattern, channel, message) => {
  const mine = sockets.get(channel.slice('user:'.length));
  if (mine) for (const socket of mine) socket.send(`{"event":"notification","data":${message}}`);
});

server.listen(Number(port), '127.0.0.1', () => console.log(`listening on 127.0.0.1:${port}`));
