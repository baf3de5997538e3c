// Writes docs/capacity.md from the raw lines of the benchmarks: slopes, a worked example, and ceilings.
//
// usage: node bench/capacity.mjs

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

import { spread } from './figures.mjs';
import { figure, table } from './text.mjs';

const root = join(import.meta.dirname, '..');
const raw = (name) => readFileSync(join(root, 'docs/benchmarks/raw', name), 'utf8');

// Figures of other pages, each measured there.
const PRESENCE_BYTES = 182; // presence.md
const USER_BYTES = 5_000; // delivery.md: a user's history, beside the data
const STORED_BYTES = 50; // delivery.md: each notification, beside its data
const CHANNEL_BYTES = 230; // scale.md: each user and instance, with exact
const BACKLOG_BYTES = 268_435_456; // the default of send_queue.max_total_bytes

const median = (values) => spread(values).median;

/** The median of a value over the repeats of a scenario. */
function measured(scenario, variant, of) {
  const [, ...lines] = raw(`${scenario}.jsonl`).trim().split('\n').map((line) => JSON.parse(line));
  const ours = lines.filter((line) => line.server === 'tidings' && line.variant === variant);
  if (ours.length === 0) throw new Error(`${scenario}: no line of tidings, ${variant}`);
  return median(ours.map(({ report }) => of(report)));
}

const perHandshake = ({ server }) => server.cpu_us_per_handshake;
const perDelivery = ({ server }) => server.cpu_us_per_delivery;
const perConnection = ({ server }) => server.resident_bytes_per_idle_connection;
const redisPer = (of) => (report) => report.redis.cpu_us / of(report);

/** @returns µs of CPU, and bytes */
function slopes() {
  const dialects = JSON.parse(raw('dialects.json')).raw;
  const subscribe = JSON.parse(raw('subscribe.json'));
  const cost = JSON.parse(raw('cost.json')).raw;
  const tls = (of) => median(cost.tls.map(({ now }) => of(now)));
  const idle = (scenario, server) => median(dialects.map((repeat) => repeat[scenario][server].memory));
  const fleet = (mode) => median(subscribe.fleet.map((repeat) => repeat[mode]));
  return {
    base: measured('idle', '', (report) => report.server.resident_bytes_idle - report.connections * perConnection(report)),
    connection: measured('idle', '', perConnection),
    sse: idle('unicast', 'tidings-sse'),
    socketio: idle('unicast', 'tidings-socketio'),
    polling: idle('each', 'tidings-polling'),
    tls: tls(({ memory }) => memory) - median(cost.flat.map(({ now }) => now.idle.memory)),
    handshake: measured('idle', '', perHandshake),
    tlsHandshake: tls(({ full }) => full),
    tlsResumed: tls(({ resumed }) => resumed),
    delivery: measured('connections', '10,000', perDelivery),
    flatOut: measured('unicast', '', perDelivery),
    perSecond: measured('unicast', '', (report) => report.deliveries_per_second),
    fanout: measured('fanout', '', perDelivery),
    // Each message wakes every instance of the fleet of the benchmark: its own, and seven others.
    miss: (fleet('pattern') - fleet('exact')) / 7,
    missFlatOut: measured('miss', '', ({ server }) => server.cpu_us_per_message),
    publish: measured('durable', 'PUBLISH', redisPer(({ published }) => published)),
    outbox: measured('durable', 'XADD to the outbox', redisPer(({ published }) => published)),
    http: measured('durable', 'batches over HTTP', redisPer(({ published }) => published)),
    outboxOwn: measured('durable', 'XADD to the outbox', ({ server }) => server.cpu_us_per_message),
    reconnect: measured('resume', 'nothing to replay', redisPer(({ connections }) => connections)),
    reconnectOwn: measured('resume', 'nothing to replay', ({ server, connections }) => server.cpu_us / connections),
    resume: measured('resume', '50 to replay', redisPer(({ connections }) => connections)),
    resumeOwn: measured('resume', '50 to replay', ({ server, connections }) => server.cpu_us / connections),
  };
}

const count = (value) => Math.round(value).toLocaleString('en-US');
const round = (value) => count(Number(value.toPrecision(2)));
const bytes = (value) => (value >= 1e6 ? size(value) : `${count(value)} B`);
const micros = (value) => `${figure(value)} µs`;
const percent = (microsPerSecond) => `${figure(microsPerSecond / 10_000)} % of a core`;
const seconds = (us) => `${figure(us / 1e6)} s`;

function size(value) {
  return value >= 1e9 ? `${figure(value / 1e9)} GB` : `${count(value / 1e6)} MB`;
}

const README = '[README](benchmarks/README.md)';
const COST = '[cost](benchmarks/cost.md)';
const DIALECTS = '[dialects](benchmarks/dialects.md)';

function memory(of) {
  return table(['memory of an instance', 'bytes', 'measured in'], [
    ['without a connection', size(of.base), README],
    ['each idle connection: `tidings.v1`, raw', bytes(of.connection), README],
    ['Server-Sent Events', bytes(of.sse), DIALECTS],
    ['socket.io over WebSocket', bytes(of.socketio), DIALECTS],
    ['socket.io over long-polling', bytes(of.polling), DIALECTS],
    ['in addition with TLS at tidings', bytes(of.tls), COST],
    ['for slow clients of the whole instance, at most', bytes(BACKLOG_BYTES), '`send_queue.max_total_bytes`'],
  ]);
}

function cpu(of) {
  return table(['CPU of an instance', 'µs', 'measured in'], [
    ['each handshake with a token, presence included', micros(of.handshake), README],
    ['each over TLS at tidings; with a resumed session', `${micros(of.tlsHandshake)}; ${micros(of.tlsResumed)}`, COST],
    ['each delivery, at 10,000 messages a second', micros(of.delivery), README],
    ['the same, as fast as the core allows', micros(of.flatOut), README],
    ['each delivery of a message to many connections', micros(of.fanout), README],
    ['each message for users of other instances, with `redis.subscribe = "pattern"`', micros(of.miss), '[subscribe](benchmarks/subscribe.md): the difference of both modes, for each of the seven other instances'],
    ['the same in bursts', micros(of.missFlatOut), README],
    ['the same with `exact`', '0', '[subscribe](benchmarks/subscribe.md)'],
    ['each client of a mass reconnect; with 50 notifications to replay', `${micros(of.reconnectOwn)}; ${micros(of.resumeOwn)}`, README],
  ]);
}

function redis(of) {
  return table(['Redis', '', 'measured in'], [
    ['CPU of an ephemeral notification, with one instance', micros(of.publish), README],
    ['CPU of a durable one, through the outbox', micros(of.outbox), README],
    ['CPU of a durable one, in batches over HTTP', micros(of.http), README],
    ['CPU of each client of a mass reconnect; with 50 notifications to replay', `${micros(of.reconnect)}; ${micros(of.resume)}`, README],
    ['commands of an idle instance', '43 a second', '[presence.md](presence.md#cost)'],
    ['memory of each user online', bytes(PRESENCE_BYTES), '[presence.md](presence.md#cost)'],
    ['memory of each user with stored notifications', bytes(USER_BYTES), '[delivery.md](delivery.md#redis-settings)'],
    ['memory of each stored notification', `its data and ${STORED_BYTES} B`, '[delivery.md](delivery.md#redis-settings)'],
    ['memory of each user and instance, with `exact`', bytes(CHANNEL_BYTES), '[scale.md](scale.md#subscribing)'],
  ]);
}

/** The numbers that a reader would know of their own application. */
const EXAMPLE = { users: 100_000, connections: 120_000, rate: 2_000, durable: 200, instances: 3, history: 300_000, kept: 50, payload: 300 };

function example(of) {
  const { users, connections, rate, durable, instances, history, kept, payload } = EXAMPLE;
  const left = instances - 1;
  const each = connections / left;
  const resident = of.base + each * of.connection;
  const deliveries = (rate * connections) / users / left;
  const missed = rate - rate / left;
  const busy = deliveries * of.delivery + missed * of.miss;
  const redisBusy = (rate - durable) * of.publish * left + durable * of.outbox;
  const stored = history * (USER_BYTES + kept * (payload + STORED_BYTES));
  return table([`for each of the ${left} instances that are left`, 'calculation', 'result'], [
    ['connections', `${count(connections)} ÷ ${left}`, count(each)],
    ['memory', `${bytes(of.base)} + ${count(each)} × ${bytes(of.connection)}`, size(resident)],
    ['memory with slow clients, at most', `+ ${bytes(BACKLOG_BYTES)}`, size(resident + BACKLOG_BYTES)],
    ['descriptors', 'connections + 100', count(each + 100)],
    ['CPU at the peak', `${count(deliveries)} deliveries × ${micros(of.delivery)} + ${count(missed)} messages of others × ${micros(of.miss)}`, percent(busy)],
    ['CPU to take over a dead instance\'s clients', `${count(connections / instances / left)} × ${micros(of.handshake)}`, seconds((connections / instances / left) * of.handshake)],
    ['CPU after a loss of all connections', `${count(each)} × ${micros(of.resumeOwn)}`, seconds(each * of.resumeOwn)],
    ['Redis: CPU at the peak', `${count(rate - durable)} × ${micros(of.publish)} × ${left} instances, at most, + ${count(durable)} × ${micros(of.outbox)}`, percent(redisBusy)],
    ['Redis: CPU after a loss of all connections', `${count(connections)} × ${micros(of.resume)}`, seconds(connections * of.resume)],
    ['Redis: presence', `${count(users)} × ${bytes(PRESENCE_BYTES)}`, size(users * PRESENCE_BYTES)],
    ['Redis: history', `${count(history)} × (${bytes(USER_BYTES)} + ${kept} × (${payload} + ${STORED_BYTES}) B)`, size(stored)],
  ]);
}

function ceilings(of) {
  return table(['what', 'ceiling', 'beyond it'], [
    ['deliveries of one instance, which one core writes', `${round(of.perSecond)} a second, measured`, 'more instances'],
    ['messages that one instance receives, with `pattern`', `${round(1e6 / of.missFlatOut)} a second in bursts, by its CPU; ${round(1e6 / of.miss)} one at a time`, '`redis.subscribe = "exact"`'],
    ['one Redis, ephemeral notifications, with one instance', `${round(1e6 / of.publish)} a second, by its CPU`, 'a [cluster](scale.md) with `sharded`'],
    ['one Redis, durable ones over HTTP', `${round(1e6 / of.http)} a second, by its CPU`, 'a [cluster](scale.md)'],
    ['one Redis, durable ones through the outbox', `${round(1e6 / of.outbox)} a second, by its CPU`, '`POST /v1/notifications`, on any instance'],
    ['one relay: one instance at a time relays the outbox', `${round(1e6 / of.outboxOwn)} a second, by its CPU: Redis is the earlier limit`, '`POST /v1/notifications`'],
    ['clients that one Redis can resume, with 50 notifications each', `${round(1e6 / of.resume)} a second, by its CPU`, 'a cluster; a longer `drain.window` for planned restarts'],
    ['clients of one proxy to one instance', '28,232 with the default port range', '[deploy.md](deploy.md#system-limits)'],
  ]);
}

const page = (of) => `# Capacity

\`node bench/capacity.mjs\` generates this page from the raw lines of the [benchmarks](benchmarks/README.md), of which each figure is a
median; figures of other pages are linked. They are from one machine at one time, and yours differs: [check them](#check-it-on-your-machine).

## Memory

${memory(of)}

Memory grows with connections, not with users or messages. Events that wait for slow clients add to it, up to the limit of the
instance. Set the memory limit of a container to the sum for your connections, at least a quarter above it.

## CPU

${cpu(of)}

A single runtime uses all cores, but messages pass through one task, which also writes them to the sockets: plan deliveries with
one core, at half of its time, so that bursts and a reconnect have the other half. A mass reconnect also uses the other cores.

## Redis

${redis(of)}

Redis executes commands on one core. What it stores depends on your notifications: \`history.max_len\` and \`history.ttl\` limit it, and
\`MEMORY USAGE\` of some users' keys shows what they take.

## A worked example

${count(EXAMPLE.users)} users are online at the peak, with ${count(EXAMPLE.connections)} connections of \`tidings.v1\` through a proxy that terminates TLS. Backends publish
${count(EXAMPLE.rate)} notifications a second, ${count(EXAMPLE.durable)} of them durable, through the outbox. Redis keeps ${EXAMPLE.kept} of ${EXAMPLE.payload} bytes for each of ${count(EXAMPLE.history)} users. There are
${EXAMPLE.instances} instances, and one of them may be down. \`redis.subscribe\` is \`pattern\`.

${example(of)}

So memory and CPU of the instances are small; the history decides the size of Redis.

## Ceilings

${ceilings(of)}

"By its CPU" is a second of one core divided by the measured CPU of one operation: the most that could be reached, not a rate at which
anything was measured.

## Check it on your machine

Run an instance with your configuration (without TLS, and without limits per address, which the load generator would reach), then, with
its process id, and \`TIDINGS_CONFIG\` or the same environment, from which \`tidings load\` takes the addresses, the secret and Redis. The
file of [deploy.md](deploy.md#2-the-gateways) is readable only by the user \`tidings\`: begin with
\`sudo -u tidings env TIDINGS_CONFIG=/etc/tidings/tidings.toml bash\`.

\`\`\`sh
pid=$(pgrep --full 'tidings serve')
# Memory of an idle connection, CPU of a handshake.
tidings load --server-pid "$pid" --connections 10000 --rate 100 --duration 1s
# CPU of a delivery, at your rate; then as fast as possible.
tidings load --server-pid "$pid" --connections 10000 --rate 2000
tidings load --server-pid "$pid" --connections 10000 --flat-out --window 2000
# The outbox, and batches over HTTP: CPU of Redis for durable notifications.
tidings load --server-pid "$pid" --connections 10000 --mode turn --burst 200 --rate 2000 --publish outbox
tidings load --server-pid "$pid" --connections 10000 --mode turn --burst 200 --rate 2000 --publish http
# A mass reconnect, with 50 notifications to replay for each client.
tidings load --server-pid "$pid" --connections 10000 --mode resume --stored 500000 --settle 8s
\`\`\`

It reports any lost, duplicated or reordered message. Do not run it against a fleet in use: its users are real to Redis, and so are
its notifications.
`;

export function writeCapacity() {
  writeFileSync(join(root, 'docs/capacity.md'), page(slopes()));
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) writeCapacity();
