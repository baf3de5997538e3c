// Reference server: socket.io and ioredis, connected as in their documentation.
//
// usage: SECRET=… node socketio.mjs PORT REDIS_URL
import { createServer } from 'node:http';

import { Redis } from 'ioredis';
import jwt from 'jsonwebtoken';
import { Server } from 'socket.io';

const [port, redisUrl] = process.argv.slice(2);
const server = createServer();
const io = new Server(server);

io.use((socket, next) => {
  try {
    socket.data.user = jwt.verify(socket.handshake.auth.token, process.env.SECRET).sub;
    next();
  } catch (error) {
    next(error);
  }
});
io.on('connection', (socket) => socket.join(`user:${socket.data.user}`));

const redis = new Redis(redisUrl);
await redis.psubscribe('user:*');
redis.on('pmessage', (_pattern, channel, message) => {
  const id = channel.slice('user:'.length);
  const event = JSON.parse(message);
  io.to(`user:${id}`).emit('notification', event);
});

server.listen(Number(port), '127.0.0.1', () => console.log(`listening on 127.0.0.1:${port}`));
