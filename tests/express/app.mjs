// The least application with express-session and connect-redis. Prints its port; ends with its standard input.
import process from 'node:process';
import express from 'express';
import session from 'express-session';
import { RedisStore } from 'connect-redis';
import { createClient } from 'redis';

const { REDIS_URL, SECRETS, COOKIE = 'connect.sid', MAX_AGE } = process.env;
const client = createClient({ url: REDIS_URL });
client.on('error', () => {});
await client.connect();

const app = express();
app.use(
  session({
    store: new RedisStore({ client }),
    name: COOKIE,
    secret: SECRETS.split(','),
    resave: false,
    saveUninitialized: false,
    rolling: MAX_AGE !== undefined,
    cookie: MAX_AGE === undefined ? {} : { maxAge: Number(MAX_AGE) },
  }),
);
app.post('/login/:user', (request, response) => {
  request.session.userId = request.params.user;
  response.json({ id: request.sessionID });
});
// As Passport does it, with a number.
app.post('/passport/:user', (request, response) => {
  request.session.passport = { user: Number(request.params.user) };
  response.json({ id: request.sessionID });
});
app.post('/basket', (request, response) => {
  request.session.basket = ['a book'];
  response.json({ id: request.sessionID });
});
// A new id for the same user, as after a change of privileges.
app.post('/regenerate', (request, response, next) => {
  const { userId } = request.session;
  request.session.regenerate((error) => {
    if (error) return next(error);
    request.session.userId = userId;
    response.json({ id: request.sessionID });
  });
});
app.get('/', (request, response) => response.json({ user: request.session.userId ?? null }));
app.post('/logout', (request, response, next) => {
  request.session.destroy((error) => (error ? next(error) : response.json({})));
});

const server = app.listen(0, '127.0.0.1', () => console.log(server.address().port));
process.stdin.on('end', () => process.exit()).resume();
