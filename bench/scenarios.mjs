// The metrics extracted from reports of `tidings load`, and their targets. sessions.mjs defines the runs.

const metric = (key, name, unit, of) => ({ key, name, unit, of });
const ofServer = (key, name, unit, field) => metric(key, name, unit, ({ server }) => server[field]);
const cpuPerDelivery = ofServer('cpu', 'CPU per delivery', 'µs', 'cpu_us_per_delivery');
const cpuPerMessage = ofServer('cpu', 'CPU per message', 'µs', 'cpu_us_per_message');
const rate = (key, name, of) => ({ ...metric(key, name, '/s', of), isRate: true });

// Some servers take messages from Redis, others from their publishers: only the sum does the same work.
const cpuWithRedis = (name, count) => metric('sum', name, 'µs', (report) => {
  return (report.server.cpu_us + report.redis.cpu_us) / count(report);
});
const cpuWithRedisPerDelivery = cpuWithRedis('CPU with Redis per delivery', ({ deliveries }) => deliveries);

// Near 100 % the server was the bottleneck; otherwise the load generator and Redis, on the other core, were.
const busy = metric('busy', 'server busy', '%', (report) => {
  return (report.server.cpu_us_per_message * report.published_per_second) / 10_000;
});

// Used by the server or by Redis, per counted unit.
const cpuOf = (who, name, unit, count) => metric(who, name, unit, (report) => report[who].cpu_us / count(report));
const commandsOf = (what, name, count) => metric(what, name, '', (report) => report.redis[what] / count(report));
const clients = ({ connections }) => connections;

const below = (key, against, times) => ({ metric: key, against, times, better: 'less' });
// A valid comparison requires that the other server was the bottleneck.
const above = (key, against, times) => ({ metric: key, against, times, better: 'more', needsBusy: true });

export const scenarios = [
  {
    name: 'idle',
    title: 'Handshakes and idle connections',
    text: 'All connections are opened, each with a token, and then left idle.',
    metrics: [
      ofServer('memory', 'memory per idle connection', 'bytes', 'resident_bytes_per_idle_connection'),
      ofServer('handshake', 'CPU per handshake', 'µs', 'cpu_us_per_handshake'),
    ],
    peers: ['memory', 'handshake'],
    targets: [{ metric: 'memory', most: 2_500, better: 'less' }, below('handshake', 'floor', 2)],
  },
  {
    name: 'unicast',
    title: 'Unicast, flat out',
    text: 'Messages to random users, as fast as deliveries return.',
    metrics: [
      cpuPerDelivery,
      cpuWithRedisPerDelivery,
      rate('throughput', 'deliveries', (report) => report.deliveries_per_second),
      busy,
    ],
    peers: ['cpu', 'sum', 'throughput'],
    targets: [
      below('cpu', 'floor', 1.15),
      below('cpu', 'ws', 0.7),
      below('cpu', 'socketio', 0.4),
      above('throughput', 'floor', 0.87),
      above('throughput', 'socketio', 2.5),
    ],
  },
  {
    name: 'open-loop',
    title: '10,000 messages a second',
    text: 'Messages to random users, on a fixed schedule that does not wait for deliveries.',
    metrics: [
      cpuPerDelivery,
      cpuWithRedisPerDelivery,
      metric('p50', 'latency, p50', 'µs', (report) => report.latency_us.p50),
      metric('p99', 'latency, p99', 'µs', (report) => report.latency_us.p99),
    ],
    peers: ['cpu', 'sum', 'p50', 'p99'],
    targets: [below('cpu', 'floor', 1.3), below('p50', 'floor', 1.2)],
  },
  {
    name: 'fanout',
    title: 'One message to every connection of one user',
    text: 'Two messages a second to one user, who has all connections.',
    metrics: [
      metric('last', 'time to the last copy, p50', 'µs', (report) => report.last_copy_us.p50),
      cpuPerDelivery,
    ],
    targets: [below('last', 'floor', 1)],
  },
  {
    name: 'broadcast',
    title: 'One message to every connection',
    text: 'Two messages a second to all connections: to the one user who has them, or as broadcasts to as many users.',
    metrics: [
      metric('last', 'time to the last copy, p50', 'µs', (report) => report.last_copy_us.p50),
      cpuPerDelivery,
    ],
    targets: [
      { metric: 'last', of: 'broadcast', against: 'one user', times: 1, better: 'less' },
      { metric: 'cpu', of: 'broadcast', against: 'one user', times: 1, better: 'less' },
    ],
  },
  {
    name: 'miss',
    title: 'Messages without a local recipient',
    text:
      'Most messages of a large fleet are for users of other instances. Messages are published as fast as Redis accepts ' +
      'them; one in a thousand is for a local user, which shows the load generator the progress of the server. For Nchan ' +
      'and NATS they are messages to a channel, or a subject, without a subscriber.',
    metrics: [
      cpuPerMessage,
      cpuWithRedis('CPU with Redis per message', ({ published }) => published),
      metric('rate', 'messages', '/s', (report) => report.published_per_second),
      busy,
    ],
    peers: ['cpu', 'sum'],
    targets: [below('cpu', 'floor', 1.5), below('cpu', 'ws', 0.35)],
  },
  {
    name: 'burst',
    title: 'Eight messages to one user back to back',
    text: 'The same 10,000 messages a second, in groups of eight to one user, or each to a random user.',
    metrics: [cpuPerDelivery],
    targets: [{ metric: 'cpu', of: 'eight back to back', against: 'eight apart', times: 0.5, better: 'less' }],
  },
  {
    name: 'durable',
    title: 'Durable notifications, 2,000 a second',
    text:
      'The same notifications to all users in turn, 200 at a time every 100 ms: published without storing, pipelined; ' +
      'stored through the outbox, pipelined; or stored by `POST /v1/notifications`, one request per 200. Nchan stores ' +
      'them in Redis, one request each, pipelined. CPU is per 1,000 notifications, including their delivery.',
    against: 'PUBLISH',
    metrics: [
      cpuOf('server', 'CPU of the server', 'ms', ({ published }) => published),
      cpuOf('redis', 'CPU of Redis', 'ms', ({ published }) => published),
      commandsOf('commands', 'Redis commands per notification', ({ published }) => published),
    ],
    targets: [],
  },
  {
    name: 'durable-flat-out',
    title: 'Durable notifications, flat out',
    text:
      'The same as fast as deliveries return, with at most 2,000 in flight; over HTTP one request after the other. ' +
      'The load generator and Redis share a core, and Redis does the work of storing.',
    against: 'PUBLISH',
    metrics: [
      metric('rate', 'deliveries', '/s', (report) => report.deliveries_per_second),
      cpuOf('server', 'CPU of the server', 'ms', ({ published }) => published),
      cpuOf('redis', 'CPU of Redis', 'ms', ({ published }) => published),
    ],
    targets: [],
  },
  {
    name: 'resume',
    title: 'Mass reconnect',
    text:
      'All connections, each of a different user, end at once. Some seconds later all reconnect, as fast as they are ' +
      'served: as new clients, or each resuming from its last notification with 50 stored meanwhile. The time ends when ' +
      'the last client has received its welcome and everything it missed. Redis commands are all that Redis processed, ' +
      'including those called by scripts and those of presence; scripts are script calls.',
    metrics: [
      metric('seconds', 'time to catch up', 's', ({ seconds }) => seconds),
      cpuOf('server', 'CPU of tidings per client', 'µs', clients),
      cpuOf('redis', 'CPU of Redis per client', 'µs', clients),
      commandsOf('commands', 'Redis commands per client', clients),
      commandsOf('scripts', 'scripts per client', clients),
    ],
    targets: [],
  },
  {
    name: 'refill',
    title: 'A lost subscription',
    text:
      'In one Redis step every subscription is killed and a notification is stored for each of 1,000 users, which no ' +
      'instance receives. The time ends when each user has received it, on the existing connection; up to 100 ms of it is ' +
      'the random pause before the instance subscribes again. It then compares all connected users with the store.',
    metrics: [
      metric('seconds', 'time to catch up', 'ms', ({ seconds }) => seconds * 1_000),
      cpuOf('server', 'CPU of tidings', 'ms', () => 1_000),
      cpuOf('redis', 'CPU of Redis', 'ms', () => 1_000),
      commandsOf('commands', 'Redis commands', () => 1),
      commandsOf('scripts', 'scripts', () => 1),
    ],
    targets: [],
  },
  {
    name: 'writes',
    title: 'Writes of a burst',
    text: 'All writes to sockets counted by strace, including those of handshakes and presence. One per burst is 0.125.',
    metrics: [metric('writes', 'writes per delivery', '', (report, { writes }) => writes / report.deliveries)],
    targets: [{ metric: 'writes', most: 0.14, better: 'less' }],
  },
  {
    name: 'churn',
    title: 'Memory after five rounds of connections',
    text: 'All clients connect and disconnect five times; resident memory some seconds after the first and the fifth round.',
    metrics: [
      metric('first', 'after round 1', 'MB', (_, { empty }) => empty[0] / 1e6),
      metric('fifth', 'after round 5', 'MB', (_, { empty }) => empty[1] / 1e6),
      metric('growth', 'round 5 / round 1', '×', (_, { empty }) => empty[1] / empty[0]),
    ],
    targets: [{ metric: 'growth', most: 1.3, better: 'less' }],
  },
  {
    name: 'large',
    title: 'Memory after 64 KiB to every connection',
    text: 'One notification of 64 KiB to each connection; resident memory before it, and 10 s after the last copy.',
    metrics: [
      metric('idle', 'before', 'MB', ({ server }) => server.resident_bytes_idle / 1e6),
      metric('peak', 'peak', 'MB', (_, { peak }) => peak / 1e6),
      metric('end', '10 s after', 'MB', ({ server }) => server.resident_bytes_at_end / 1e6),
      metric('growth', 'after / before', '×', ({ server }) => {
        return server.resident_bytes_at_end / server.resident_bytes_idle;
      }),
    ],
    targets: [{ metric: 'growth', most: 1.5, better: 'less' }],
  },
  {
    name: 'connections',
    title: 'Number of connections',
    text: '10,000 messages a second, with different numbers of connections.',
    metrics: [cpuPerDelivery],
    targets: [
      { metric: 'cpu', of: '10,000', against: '1,000', times: 1.15, better: 'less' },
      { metric: 'cpu', of: '19,000', against: '1,000', times: 1.15, better: 'less' },
    ],
  },
];
