// The least application with @fastify/session and connect-redis. Prints its port; ends with its standard input.
import process from 'node:process';
import fastifyCookie from '@fastify/cookie';
import fastifySession from '@fastify/session';
import { RedisStore } from 'connect-redis';
import Fastify from 'fastify';
import { createClient } from 'redis';

const { REDIS_URL, SECRETS } = process.env;
const client = createClient({ url: REDIS_URL });
client.on('error', () => {});
await client.connect();

const app = Fastify();
app.register(fastifyCookie);
app.register(fastifySession, {
  store: new RedisStore({ client }),
  // The two options of docs/sessions.md: the plugin's own defaults differ from those of express-session.
  cookieName: 'connect.sid',
  cookiePrefix: 's:',
  secret: SECRETS.split(','),
  saveUninitialized: false,
  cookie: { secure: false },
});
app.post('/login/:user', async (request) => {
  request.session.userId = request.params.user;
  return { id: request.session.sessionId };
});
app.post('/logout', async (request) => {
  await request.session.destroy();
  return {};
});

await app.listen({ host: '127.0.0.1', port: 0 });
console.log(app.server.address().port);
process.stdin.on('end', () => process.exit()).resume();
