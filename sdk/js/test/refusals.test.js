// How a refused client learns the reason, and what a token callback may do.
import assert from 'node:assert/strict';
import test from 'node:test';
import { jwt, settled, start, startLive } from './support.js';

test('an attempt whose handshake never opened is followed by one that authenticates by hello', async (t) => {
  const { client, sockets, pass, last } = await start(t, { cursor: 'k-1', device: 'phone' });
  last().drop(1006);
  await pass(client.state.retryInMs);
  assert.deepEqual(last().protocols, ['tidings.v1']);
  assert.match(last().url, /resume=k-1&device=phone&auth=hello/); // Not by a cookie of the page.
  assert.deepEqual(last().sent, []);
  last().open();
  assert.deepEqual(last().sent, [{ type: 'hello', token: jwt('token-2') }]);
  last().welcome({ cursor: 'k-1', recovered: true });
  last().drop(1006);
  await pass(client.state.retryInMs);
  assert.deepEqual([sockets.length, last().protocols.length], [3, 2]); // The next one is as the first.
  assert.doesNotMatch(last().url, /auth=/);
});

test('attempts that never open authenticate by hello and by subprotocol in turns', async (t) => {
  const { client, sockets, pass, last } = await start(t);
  for (let attempts = 0; attempts < 4; attempts += 1) {
    last().drop(1006);
    await pass(client.state.retryInMs);
  }
  assert.deepEqual(sockets.map(({ protocols }) => protocols.length), [2, 1, 2, 1, 2]);
  assert.deepEqual(sockets.map(({ url }) => url.endsWith('?auth=hello')), [false, true, false, true, false]);
  last().welcome();
  assert.equal(client.state.name, 'live');
});

for (const code of [4003, 4004, 4009, 4010, 4012]) {
  test(`a hello that is refused with ${code} ends the client with that code`, async (t) => {
    const { client, sockets, received, pass, last } = await start(t, { token: () => jwt('same') });
    last().drop(1006);
    await pass(client.state.retryInMs);
    last().open();
    last().drop(code, 'because');
    await pass(60_000);
    assert.deepEqual([client.state.name, client.state.code], ['closed', code]);
    assert.equal(received.error.at(-1).code, code);
    assert.equal(sockets.length, 2);
  });
}

test('an expired or bad token is replaced once: a second refusal in a row is final', async (t) => {
  for (const code of [4009, 4010]) {
    const { client, sockets, pass, last } = await start(t);
    last().drop(1006);
    for (let refusals = 0; refusals < 2; refusals += 1) {
      await pass(client.state.retryInMs);
      assert.deepEqual(last().protocols, ['tidings.v1']);
      last().open();
      last().drop(code, 'refused');
    }
    assert.deepEqual(client.state, { name: 'closed', code, reason: 'refused' });
    assert.equal(sockets.length, 3);
  }
});

test('after three attempts that never opened, the state names possible causes', async (t) => {
  const { client, received, pass, last } = await start(t);
  for (let attempts = 1; attempts <= 3; attempts += 1) {
    last().drop(1006);
    assert.equal(/Origin.*capacity.*network/.test(client.state.reason), attempts === 3, client.state.reason);
    assert.equal(client.state.code, 1006);
    await pass(client.state.retryInMs);
  }
  assert.match(received.error[2].message, /Origin/);
  last().open();
  last().drop(1006);
  assert.doesNotMatch(client.state.reason, /Origin/); // This one was opened.
});

const PAGE = '<!doctype html><title>502 Bad Gateway</title>';

const NO_JWT = {
  'an error page': PAGE, 'a host name': 'api.example.com', 'a list in three parts': `${btoa('[1]')}.e30.sig`,
  'an object': { token: jwt() }, 'a list': [jwt()], 'an empty text': '', false: false,
};

for (const [what, value] of Object.entries(NO_JWT)) {
  test(`a token callback that gives ${what} is called again: when connecting, and at a refresh`, async (t) => {
    let given = value;
    const { client, sockets, received, pass, last } = await start(t, { token: () => given });
    assert.deepEqual([client.state.name, client.state.code, sockets.length], ['waiting', 'bad_token', 0]);
    assert.doesNotMatch(JSON.stringify([received.error[0].message, client.state]), /Bad Gateway|sig/);
    given = jwt('good');
    await pass(client.state.retryInMs);
    last().welcome({ heartbeat_ms: 0, expires_in_ms: 100_000 });
    given = value;
    await pass(80_000);
    assert.deepEqual([client.state.name, received.error.at(-1).code, last().auths], ['live', 'bad_token', []]);
    given = jwt('better');
    await pass(10_000);
    assert.deepEqual(last().auths, [jwt('better')]);
  });
}

for (const nothing of [null, undefined]) {
  test(`a token callback that gives ${nothing} ends the client: connecting, at a refresh, at a drain`, async (t) => {
    const never = await start(t, { token: () => nothing });
    assert.deepEqual([never.client.state.name, never.client.state.code], ['closed', 'no_token']);
    assert.equal(never.sockets.length, 0);
    for (const leave of [
      (socket) => socket.authenticated(10_000),
      (socket) => socket.frame({ type: 'reconnect', after_ms: 0 }),
    ]) {
      let given = jwt();
      const { client, sockets, pass, last } = await startLive(t, { token: () => given });
      given = nothing;
      leave(last());
      await pass(5_000);
      assert.deepEqual([client.state.name, client.state.code], ['closed', 'no_token']);
      assert.ok(last().closedByClient);
      assert.equal(sockets.length, 1);
    }
  });
}

test('an attempt after two that never opened has 70 s, because a browser may hold its handshake back', async (t) => {
  const { client, sockets, received, pass, last } = await start(t);
  for (let attempt = 0; attempt < 2; attempt += 1) {
    await pass(client.state.retryInMs ?? 0);
    await pass(10_000);
    assert.deepEqual([client.state.name, client.state.code], ['waiting', 'connect_timeout']);
  }
  await pass(client.state.retryInMs);
  await pass(69_999);
  assert.deepEqual([client.state.name, sockets.length, received.error.length], ['connecting', 3, 2]);
  last().open();
  await pass(9_999); // From the open, the welcome has the ordinary time.
  assert.equal(client.state.name, 'connecting');
  await pass(1);
  assert.deepEqual([client.state.name, client.state.code], ['waiting', 'connect_timeout']);
});

test('the time of an attempt begins when its token is there', async (t) => {
  let give;
  const { client, pass, last } = await start(t, { token: () => new Promise((resolve) => (give = resolve)) });
  await pass(9_000);
  give(jwt());
  await settled();
  await pass(9_000);
  assert.equal(client.state.name, 'connecting');
  last().welcome();
  assert.equal(client.state.name, 'live');
});
