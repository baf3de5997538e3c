// The consumers of examples/escalation, with entries and mail servers that fail.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFile, symlink, writeFile } from 'node:fs/promises';
import net from 'node:net';
import path from 'node:path';
import { createInterface } from 'node:readline';

import { scenario, until } from '../browser/support.mjs';

const ROOT = path.join(import.meta.dirname, '../..');
const EXAMPLES = path.join(ROOT, 'examples/escalation');
const PYTHON = path.join(path.resolve(ROOT, process.env.CARGO_TARGET_DIR ?? 'target'), 'clients/bin/python');
const [STREAM, GROUP] = ['tidings:unread', 'mail'];
const MINUTES_MS = '120000';

/** Adds an entry as tidings does. */
const add = (redis, user, data) =>
  redis.cli('XADD', STREAM, '*', 'user', user, 'id', `cursor-${user}`, 'event', 'paid', 'data', data, 'ts', '1');

/** An entry that another consumer took two minutes ago, and did not acknowledge. */
async function leave(redis, user, data) {
  const entry = await add(redis, user, data);
  await redis.cli('XGROUP', 'CREATE', STREAM, GROUP, '0');
  await redis.cli('XREADGROUP', 'GROUP', GROUP, 'another', 'STREAMS', STREAM, '>');
  await expire(redis, entry);
}

const expire = (redis, entry) => redis.cli('XCLAIM', STREAM, GROUP, 'another', '0', entry, 'IDLE', MINUTES_MS);

/** The ids of the entries that are not acknowledged. */
const pending = async (redis) => (await redis.cli('XPENDING', STREAM, GROUP, '-', '+', '100')).match(/^\d+-\d+$/gm) ?? [];

/** A mail server that refuses some recipients: `refuse` maps one to a reply. Gives the mails, a recipient and a text each. */
async function mailServer(stage) {
  const mails = [];
  const refuse = new Map();
  const server = net.createServer(async (socket) => {
    socket.on('error', () => {}).write('220 sink\r\n');
    let [to, text] = ['', null];
    for await (const line of createInterface(socket)) {
      if (line === '.') {
        mails.push([to, text.slice(text.indexOf('') + 1).join('\n')]);
        text = null;
        socket.write('250 ok\r\n');
      } else if (text) {
        text.push(line);
      } else if (/^data$/i.test(line)) {
        text = [];
        socket.write('354 go on\r\n');
      } else {
        to = /^rcpt to:<(.*)>/i.exec(line)?.[1] ?? to;
        const isEnd = /^quit/i.test(line);
        socket.write(`${(/^rcpt/i.test(line) && refuse.get(to)) || (isEnd ? '221 bye' : '250 ok')}\r\n`);
        if (isEnd) socket.end();
      }
    }
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  stage.onClose(() => server.close());
  return { mails, refuse, address: `127.0.0.1:${server.address().port}` };
}

const address = (user) => `user-${user}@example.com`;

const python = (stage, redis, smtp) =>
  stage.run(PYTHON, [path.join(EXAMPLES, 'mail.py')], { REDIS_URL: `redis://127.0.0.1:${redis.port}`, SMTP: smtp });

scenario('mail.py: an entry that was not acknowledged is mailed from an idle stream, and no read times out', async (stage) => {
  const redis = await stage.redis();
  const smtp = await mailServer(stage);
  await leave(redis, '41', '{"text":"left behind"}');
  const program = python(stage, redis, smtp.address);
  await until('a mail', () => smtp.mails.length > 0);
  assert.deepEqual(smtp.mails, [[address('41'), 'left behind']]);
  await until('acknowledged', async () => (await pending(redis)).length === 0);
  const code = 'import mail; print(mail.backplane.connection_pool.connection_kwargs["socket_timeout"] * 1000 - mail.BLOCK_MS)';
  const check = stage.run(PYTHON, ['-c', code], { PYTHONPATH: EXAMPLES, PYTHONDONTWRITEBYTECODE: '1' });
  assert.equal(await check.ended, 0, check.output);
  assert.ok(Number(check.output) > 1_000, check.output);
  assert.equal(program.output, '');
});

scenario('mail.py: an entry that fails holds up no other, and is tried again unless it can never be mailed', async (stage) => {
  const redis = await stage.redis();
  const smtp = await mailServer(stage);
  smtp.refuse.set(address('43'), '550 no such user').set(address('44'), '450 later');
  const entries = [];
  for (const [user, data] of [['41', '{"text":5}'], ['42', '{"text"'], ['43', '1'], ['44', '"greylisted"'], ['45', 'null']]) {
    entries.push(await add(redis, user, data));
  }
  const program = python(stage, redis, smtp.address);
  await until('the last mail', () => smtp.mails.length >= 2);
  assert.deepEqual(smtp.mails.splice(0), [[address('41'), '{"text":5}'], [address('45'), 'null']]);
  await until('all but one are acknowledged', async () => String(await pending(redis)) === entries[3]);
  for (const [entry, why] of [[1, 'JSONDecodeError'], [2, '550'], [3, '450']]) {
    assert.match(program.output, new RegExp(`^${entries[entry]}: .*${why}`, 'm'));
  }
  smtp.refuse.clear();
  await expire(redis, entries[3]);
  await add(redis, '46', '{"text":"the next"}'); // Ends the wait.
  await until('both', () => smtp.mails.length >= 2);
  assert.deepEqual(smtp.mails.map(([to]) => to).sort(), [address('44'), address('46')]);
}, 60_000);

/** What a mail service does in the place of the example's own `sendMail`. */
const SEND = `if (to === '${address('43')}') throw Object.assign(new Error('no such user'), { code: 'EENVELOPE', responseCode: 550 });
  if (to === '${address('44')}') throw Object.assign(new Error('refused'), { code: 'ECONNECTION' });
  console.log`;

scenario('mail.mjs: an entry that fails holds up no other, and is tried again unless it can never be mailed', async (stage) => {
  const redis = await stage.redis();
  await leave(redis, '41', 'null');
  const entries = [];
  for (const [user, data] of [['42', '{"text"'], ['43', '1'], ['44', '2'], ['45', '{"text":5}']]) {
    entries.push(await add(redis, user, data));
  }
  const folder = await stage.folder();
  await symlink(path.join(ROOT, 'tests/clients/node_modules'), path.join(folder, 'node_modules'));
  const code = await readFile(path.join(EXAMPLES, 'mail.mjs'), 'utf8');
  await writeFile(path.join(folder, 'mail.mjs'), code.replace('console.log', SEND));
  const program = stage.run('node', [path.join(folder, 'mail.mjs')], { REDIS_URL: `redis://127.0.0.1:${redis.port}` });
  await until('the last mail', () => program.output.includes(address('45')));
  await until('all but one are acknowledged', async () => String(await pending(redis)) === entries[2]);
  const lines = program.output.trim().split('\n');
  const mails = lines.filter((line) => line.startsWith('{')).map((line) => JSON.parse(line)).map(({ to, text }) => [to, text]);
  assert.deepEqual(mails, [[address('41'), 'null'], [address('45'), '{"text":5}']]);
  for (const [entry, why] of [[0, 'JSON'], [1, 'no such user'], [2, 'refused']]) {
    assert.ok(lines.some((line) => line.startsWith(`${entries[entry]}: `) && line.includes(why)), program.output);
  }
});
