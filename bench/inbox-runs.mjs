// The runs of bench/inbox.mjs. Each starts its own Redis and servers, and returns figures by row.

import { setTimeout as sleep } from 'node:timers/promises';
import http from 'node:http';

import { Redis, admin, connect, paced, total, until, usage } from './inbox-client.mjs';
import { measure } from './measure.mjs';
import { scenarios } from './scenarios.mjs';
import { LOAD_CORE, SERVER_CORE, start, startRedis, startServer, stop, tidings } from './servers.mjs';

const TEXT = 'x'.repeat(100);
const data = { text: TEXT };

// Longer than the pause between two writes of acknowledgements.
const REST_MS = 1_000;

// Notifications of each user, of which a page has some.
const STORED = 40;

// Runs `work` with a Redis and so many servers of a build, all of which share the core of the servers.
async function withServers(count, env, work) {
  const child = await startRedis(LOAD_CORE);
  const servers = [];
  while (servers.length < count) servers.push(await startServer('tidings', child, SERVER_CORE, env));
  const redis = new Redis(child.url);
  const result = await work(servers, redis, child);
  redis.disconnect();
  for (const server of servers) await stop(server.child, 'SIGKILL');
  await stop(child.child);
  return result;
}

const names = (users) => Array.from({ length: users }, (_, at) => `u${at}`);

async function store(server, users, count) {
  for (let done = 0; done < count; done += 1) {
    await admin(server, 'POST', '/v1/notifications', { users: names(users), data, durable: true });
  }
}

const per = (used, count) => Object.fromEntries(Object.entries(used).map(([key, value]) => [key, value / count]));

// As many pages of random users, each requested by the user's connection, or from the admin listener.
export async function pages({ users, rate, seconds, env = {}, query }) {
  return withServers(1, env, async ([server], redis) => {
    const clients = (await connect(users, [server])).flat();
    await store(server, users, STORED);
    await until('the stored events', () => total(clients, 'event') === users * STORED);
    await sleep(REST_MS);
    const count = rate * seconds;
    const any = () => Math.floor(Math.random() * users);
    const agent = new http.Agent({ keepAlive: true, maxSockets: 16 });
    let listed = 0;
    const list = () => {
      const url = `http://${server.load[3]}/v1/users/u${any()}/notifications?${query}`;
      http.get(url, { agent }, (answer) => answer.resume().once('end', () => (listed += answer.statusCode === 200)));
    };
    const ask = () => clients[any()].send({ type: 'history', limit: 20 });
    const used = await usage([server], redis, async () => {
      await paced(rate, seconds, query ? list : ask);
      await until('the pages', () => listed + total(clients, 'history') === count);
    });
    agent.destroy();
    if (clients.some(({ rows = 20 }) => rows !== 20)) throw new Error('a page without 20 notifications');
    return per(used, count);
  });
}

// Acknowledgements that move a read position, each followed by the frame to the other connection; and messages.
export async function reads({ users, rate, seconds, instances, turn }) {
  return withServers(instances, {}, async (servers, redis) => {
    const clients = await connect(users, [servers[0], servers.at(-1)]);
    const each = Math.ceil((rate * seconds) / users) + 1;
    await store(servers[0], users, each);
    await until('the stored events', () => total(clients, 'event') === users * each * 2);
    await sleep(REST_MS);
    const count = rate * seconds;
    const ack = async () => {
      await paced(rate, seconds, (at) => clients[at % users][0].ack());
      await until('the read frames', () => total(clients, 'read') === count);
    };
    const publish = async () => {
      const before = total(clients, 'event');
      await paced(rate, seconds, (at) => redis.publish(`user:u${at % users}`, JSON.stringify(data)));
      await until('the messages', () => total(clients, 'event') - before === count * 2);
    };
    const ways = { [`ack and read frame, ${instances} inst.`]: ack, [`PUBLISH to both, ${instances} inst.`]: publish };
    const rows = {};
    for (const [name, work] of turn % 2 ? Object.entries(ways).toReversed() : Object.entries(ways)) {
      rows[name] = per(await usage(servers, redis, work), count);
    }
    return rows;
  });
}

// Acknowledgements of all users in turn, so many at once every 100 ms.
export async function bursts({ users, rate, seconds, env = {}, connections = 1 }) {
  return withServers(1, env, async ([server], redis) => {
    const clients = await connect(users, Array(connections).fill(server));
    const each = Math.ceil((rate * seconds) / users) + 1;
    await store(server, users, each);
    await until('the stored events', () => total(clients, 'event') === users * each * connections);
    await sleep(REST_MS);
    const used = await usage([server], redis, async () => {
      await paced(rate, seconds, (at) => clients[at % users][0].ack(), 100);
      await sleep(REST_MS);
    });
    // A device has one position written for all that it acknowledges in half a second.
    return { ...per(used, rate * seconds), perWrite: used.commands / used.scripts };
  });
}

async function connections(server) {
  const text = await fetch(`http://${server.load[3]}/metrics`).then((answer) => answer.text());
  return Number(/^tidings_connections (\d+)$/m.exec(text)[1]);
}

// Messages to some users while the load generator, which has all other connections, publishes.
export async function bystanders({ crowd, users, rate, seconds, mode }) {
  return withServers(1, {}, async ([server], redis, { child }) => {
    const flags = `--connections ${crowd} --connect-rate 2000 --settle 2s --mode ${mode} --rate 2 --warm-up 0s --json`;
    const command = [tidings, 'load', ...server.load, ...flags.split(' '), '--duration', `${seconds + 4}s`];
    const clients = (await connect(users, [server])).flat();
    const latencies = [];
    for (const client of clients) {
      client.onEvent = ({ event, data: { at } }) => event === 'notification' && at && latencies.push(performance.now() - at);
    }
    // Its work, on the same core, must not delay those whose latency is measured.
    const load = start(['nice', '-n', '5', ...command, '--server-pid', `${server.child.pid}`], { core: LOAD_CORE, env: server.env });
    const crowded = until('the crowd', async () => (await connections(server)) >= crowd + users, 250);
    await Promise.race([crowded, load.done.then(() => Promise.reject(new Error(load.output.stderr)))]);
    await sleep(3_000);
    await paced(rate, seconds, (at) => {
      redis.publish(`user:u${at % users}`, JSON.stringify({ at: performance.now() }));
    });
    await until('the messages', () => latencies.length === rate * seconds);
    if ((await load.done) !== 0) throw new Error(load.output.stderr + load.output.stdout);
    latencies.sort((one, other) => one - other);
    const at = (share) => latencies[Math.floor(latencies.length * share)];
    return { p50: at(0.5), p99: at(0.99), max: latencies.at(-1) };
  });
}

// Notifications stored over some seconds, all due in the same second; the delay of the last entry after its time.
export async function due({ users, batches }) {
  return withServers(1, {}, async ([server], redis) => {
    await sleep(REST_MS);
    const first = Date.now();
    const size = users / batches;
    const seconds = new Map();
    for (let batch = 0; batch < batches; batch += 1) {
      await sleep(Math.max(0, first + batch * 1_000 - Date.now()));
      const some = Array.from({ length: size }, (_, at) => `u${batch * size + at}`);
      const escalate = batches + 2 - batch;
      some.forEach((user) => seconds.set(user, escalate));
      await admin(server, 'POST', '/v1/notifications', { users: some, data, durable: true, escalate_s: escalate });
    }
    await until('the entries', async () => (await redis.xlen('tidings:unread')) === users);
    const late = (await redis.xrange('tidings:unread', '-', '+')).map(([id, fields]) => {
      const entry = Object.fromEntries(fields.map((value, at) => [value, fields[at + 1]]).filter((_, at) => at % 2 === 0));
      const due = Number(entry.ts) + seconds.get(entry.user) * 1_000;
      return { late: Number(id.split('-')[0]) - due, due };
    });
    const within = Math.max(...late.map(({ due }) => due)) - Math.min(...late.map(({ due }) => due));
    return { late: Math.max(...late.map(({ late }) => late)), within };
  });
}

// The share of one core that Redis uses at rest with so many deadlines in a day.
export async function pending({ users, each, seconds }) {
  return withServers(1, {}, async ([server], redis) => {
    for (let done = 0; done < each; done += 1) {
      const body = { users: names(users), data, durable: true, escalate_s: 86_400 };
      await admin(server, 'POST', '/v1/notifications', body);
    }
    await sleep(REST_MS);
    const used = await usage([server], redis, () => sleep(seconds * 1_000));
    return { share: used.redis / seconds / 1e4 };
  });
}

export async function idle({ connections: count, env = {} }) {
  const connect = `--connections ${count} --connect-rate 2000 --settle 2s`;
  const phases = [{ scenario: 'idle', flags: '--rate 100 --warm-up 0s --duration 200ms' }];
  const [{ line }] = await measure({ connect, phases, pinned: true }, 'tidings', { env });
  return { memory: line.report.server.resident_bytes_per_idle_connection };
}

// A run of the scenario `broadcast` of `make bench`.
export async function copies({ quick, ...session }) {
  const { metrics } = scenarios.find(({ name }) => name === 'broadcast');
  const [{ line }] = await measure(session, 'tidings', { quick });
  return Object.fromEntries(metrics.map(({ key, of }) => [key, of(line.report)]));
}
