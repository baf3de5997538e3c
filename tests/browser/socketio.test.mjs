// examples/socket-io-page: a page written for socket.io, with Node's server and with tidings.
import assert from 'node:assert/strict';
import { scenario, SECRET } from './support.mjs';

async function signIn(stage, url, user) {
  // While its server is away, a page logs each attempt.
  const page = await stage.page(url, { mayLog: /Failed to load resource|WebSocket connection to|CORS policy/ });
  await page.getByLabel('user').fill(user);
  await page.getByRole('button', { name: 'Sign in' }).click();
  const state = (text) => page.getByRole('status').filter({ hasText: text }).waitFor();
  await state(/^connected$/);
  return {
    state,
    send: async (to, text) => {
      await page.getByLabel('to').fill(to);
      await page.getByLabel('message').fill(text);
      await page.getByRole('button', { name: 'Send' }).click();
    },
    receives: (text) => page.getByRole('listitem').filter({ hasText: text }).waitFor(),
    all: () => page.getByRole('listitem').allTextContents(),
  };
}

/** What users do with the page, at this URL; `restart` kills the server of its socket, and starts it again. */
async function play(stage, url, restart) {
  const [ann, bob] = await Promise.all([signIn(stage, url, 'ann'), signIn(stage, url, 'bob')]);
  await ann.send('bob', 'hello');
  await bob.receives('ann: hello');
  await bob.send('ann', 'good morning');
  await ann.receives('bob: good morning');

  await restart(() => ann.state(/^disconnected/));
  await Promise.all([ann.state(/^connected$/), bob.state(/^connected$/)]);
  await bob.send('ann', 'still here?');
  await ann.receives('bob: still here?');
  assert.deepEqual(await bob.all(), ['ann: hello']);
  assert.deepEqual(await ann.all(), ['bob: good morning', 'bob: still here?']);
}

scenario('a page written for socket.io works with its own server, and with tidings once its URL changes', async (stage) => {
  const redis = await stage.redis();
  const node = await stage.example({ redis, secret: SECRET });
  await play(stage, node.url, async (left) => {
    await node.end('SIGKILL');
    await left();
    await stage.example({ redis, secret: SECRET, port: node.port });
  });

  const gateway = await stage.gateway({ redis, secret: SECRET });
  await play(stage, `${node.url}?server=${gateway.url}`, async (left) => {
    await gateway.end('SIGKILL');
    await left();
    await stage.gateway({ redis, secret: SECRET, listen: gateway.public });
  });
});
