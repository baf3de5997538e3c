// The backend of index.html: users sign in and notify each other. socket.io and Redis are used as in their documentation.
// usage: SECRET=… [REDIS_URL=redis://127.0.0.1:6379] node server.mjs [PORT]
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { json, text } from 'node:stream/consumers';

import { Redis } from 'ioredis';
import jwt from 'jsonwebtoken';
import { Server } from 'socket.io';

const { SECRET, REDIS_URL = 'redis://127.0.0.1:6379' } = process.env;
const FILES = {
  '/': ['index.html', 'text/html; charset=utf-8'],
  '/socket.io.min.js': ['node_modules/socket.io/client-dist/socket.io.min.js', 'text/javascript'],
};
const redis = new Redis(REDIS_URL);

// The part that stays as it is with tidings: the page, tokens, and a request that publishes. A real sign-in checks a password.
const routes = {
  'POST /token': async (request) => jwt.sign({ sub: await text(request) }, SECRET, { expiresIn: '1h' }),
  'POST /notify': async (request) => {
    const { to, ...message } = await json(request);
    return String(await redis.publish(`user:${to}`, JSON.stringify(message)));
  },
};
const web = createServer(async (request, response) => {
  const [file, type] = FILES[new URL(request.url, 'http://here').pathname] ?? [];
  if (file) return response.setHeader('Content-Type', type).end(await readFile(new URL(file, import.meta.url)));
  const route = routes[`${request.method} ${request.url}`] ?? (() => response.writeHead(404) && '');
  return response.end(await route(request));
});

// The part that tidings replaces.
const io = new Server(web, { connectionStateRecovery: {} });
io.use((socket, next) => {
  jwt.verify(socket.handshake.auth.token, SECRET, (error, claims) => {
    socket.data.user = claims?.sub;
    next(error);
  });
});
io.on('connection', (socket) => socket.join(`user:${socket.data.user}`));
const subscriber = redis.duplicate();
await subscriber.psubscribe('user:*');
subscriber.on('pmessage', (_pattern, channel, message) => {
  if (message.startsWith('~')) return; // Of a tidings beside this server, and not JSON.
  io.to(channel).emit('notification', JSON.parse(message));
});

web.listen(Number(process.argv[2] ?? 3000), '127.0.0.1', () => console.log(`http://127.0.0.1:${web.address().port}/`));
