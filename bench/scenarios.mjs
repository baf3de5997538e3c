// What is read from the reports of `tidings load`, and what was promised. How they are made is in sessions.mjs.

const metric = (key, name, unit, of) => ({ key, name, unit, of });
const ofServer = (key, name, unit, field) => metric(key, name, unit, ({ server }) => server[field]);
const cpuPerDelivery = ofServer('cpu', 'CPU per delivery', 'µs', 'cpu_us_per_delivery');
const cpuPerMessage = ofServer('cpu', 'CPU per message', 'µs', 'cpu_us_per_message');

// Near 100 % the server was the bottleneck; below, the load generator and Redis, on the other core, were.
const busy = metric('busy', 'server busy', '%', (report) => {
  return (report.server.cpu_us_per_message * report.published_per_second) / 10_000;
});

// Used by the server and by Redis, for so many.
const cpuOf = (who, name, unit, count) => metric(who, name, unit, (report) => report[who].cpu_us / count(report));
const commandsOf = (what, name, count) => metric(what, name, '', (report) => report.redis[what] / count(report));
const clients = ({ connections }) => connections;

const below = (key, against, times) => ({ metric: key, against, times, better: 'less' });
// More is only told from less where the other server gave all it had.
const above = (key, against, times) => ({ metric: key, against, times, better: 'more', needsBusy: true });

export const scenarios = [
  {
    name: 'idle',
    title: 'Handshakes and idle connections',
    text: 'Every connection is made, with its token, and then left alone.',
    metrics: [
      ofServer('memory', 'memory per idle connection', 'bytes', 'resident_bytes_per_idle_connection'),
      ofServer('handshake', 'CPU per handshake', 'µs', 'cpu_us_per_handshake'),
    ],
    targets: [{ metric: 'memory', most: 2_500, better: 'less' }, below('handshake', 'floor', 2)],
  },
  {
    name: 'unicast',
    title: 'Unicast, flat out',
    text: 'Messages to users at random, as fast as deliveries come back.',
    metrics: [
      cpuPerDelivery,
      metric('throughput', 'deliveries', '/s', (report) => report.deliveries_per_second),
      busy,
    ],
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
    text: 'Messages to users at random, on a schedule that waits for nobody.',
    metrics: [
      cpuPerDelivery,
      metric('p50', 'latency, p50', 'µs', (report) => report.latency_us.p50),
      metric('p99', 'latency, p99', 'µs', (report) => report.latency_us.p99),
    ],
    targets: [below('cpu', 'floor', 1.3), below('p50', 'floor', 1.2)],
  },
  {
    name: 'fanout',
    title: 'One message to every connection of one user',
    text: 'Two messages a second to one user, who has every connection.',
    metrics: [
      metric('last', 'time to the last copy, p50', 'µs', (report) => report.last_copy_us.p50),
      cpuPerDelivery,
    ],
    targets: [below('last', 'floor', 1)],
  },
  {
    name: 'miss',
    title: 'Messages for nobody here',
    text:
      'Most messages of a large fleet are for users of other instances. As fast as Redis takes them, and one in a ' +
      'thousand is for somebody here, so that the load generator knows how far the server is.',
    metrics: [
      cpuPerMessage,
      metric('rate', 'messages', '/s', (report) => report.published_per_second),
      busy,
    ],
    targets: [below('cpu', 'floor', 1.5), below('cpu', 'ws', 0.35)],
  },
  {
    name: 'burst',
    title: 'Eight messages to one user back to back',
    text: 'The same 10,000 messages a second, eight at a time to one user, or each to a user at random.',
    metrics: [cpuPerDelivery],
    targets: [{ metric: 'cpu', of: 'eight back to back', against: 'eight apart', times: 0.5, better: 'less' }],
  },
  {
    name: 'durable',
    title: 'Durable notifications, 2,000 a second',
    text:
      'The same notifications to all users in turn, 200 at a time every 100 ms: published and not stored, pipelined; ' +
      'stored by way of the outbox, pipelined; or stored by `POST /v1/notifications`, a request for each 200. CPU is for ' +
      '1,000 notifications, up to their delivery.',
    against: 'PUBLISH',
    metrics: [
      cpuOf('server', 'CPU of tidings', 'ms', ({ published }) => published),
      cpuOf('redis', 'CPU of Redis', 'ms', ({ published }) => published),
      commandsOf('commands', 'Redis commands each', ({ published }) => published),
    ],
    targets: [],
  },
  {
    name: 'durable-flat-out',
    title: 'Durable notifications, flat out',
    text:
      'The same as fast as deliveries come back, with at most 2,000 on their way; over HTTP one request after the other. ' +
      'The load generator and Redis share a core, and the work of storing is Redis’s.',
    against: 'PUBLISH',
    metrics: [
      metric('rate', 'deliveries', '/s', (report) => report.deliveries_per_second),
      cpuOf('server', 'CPU of tidings', 'ms', ({ published }) => published),
      cpuOf('redis', 'CPU of Redis', 'ms', ({ published }) => published),
    ],
    targets: [],
  },
  {
    name: 'resume',
    title: 'Everybody is cut and comes back',
    text:
      'All connections end at once, each of another user. Some seconds later all connect again, as fast as they are ' +
      'served: as if new, or each resuming from its last notification with 50 that were stored meanwhile. It takes until ' +
      'the last client has its greeting and all that it missed. Redis commands are all that Redis processed, those that ' +
      'scripts call and those of presence among them; scripts are the calls of one.',
    metrics: [
      metric('seconds', 'time until all are level', 's', ({ seconds }) => seconds),
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
      'In one step of Redis every subscription is killed and a notification is stored for each of 1,000 users that no ' +
      'instance hears of. It takes until each has it, on the connection that it had; up to 100 ms of that is the pause, of ' +
      'a random length, before the instance subscribes again. It then compares all users that are connected with the store.',
    metrics: [
      metric('seconds', 'time until all are level', 'ms', ({ seconds }) => seconds * 1_000),
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
    text: 'All writes to sockets, of handshakes and presence too, as strace counts them. One for each burst is 0.125.',
    metrics: [metric('writes', 'writes per delivery', '', (report, { writes }) => writes / report.deliveries)],
    targets: [{ metric: 'writes', most: 0.14, better: 'less' }],
  },
  {
    name: 'churn',
    title: 'Memory after everybody came and went five times',
    text: 'Resident memory with nobody connected, after the first round and after the fifth, some seconds later each.',
    metrics: [
      metric('first', 'after the first', 'MB', (_, { empty }) => empty[0] / 1e6),
      metric('fifth', 'after the fifth', 'MB', (_, { empty }) => empty[1] / 1e6),
      metric('growth', 'fifth to first', '×', (_, { empty }) => empty[1] / empty[0]),
    ],
    targets: [{ metric: 'growth', most: 1.3, better: 'less' }],
  },
  {
    name: 'large',
    title: 'Memory after 64 KiB to every connection',
    text: 'One notification of 64 KiB to each connection; resident memory before it and 10 s after the last copy.',
    metrics: [
      metric('idle', 'before', 'MB', ({ server }) => server.resident_bytes_idle / 1e6),
      metric('peak', 'at most', 'MB', (_, { peak }) => peak / 1e6),
      metric('end', '10 s after', 'MB', ({ server }) => server.resident_bytes_at_end / 1e6),
      metric('growth', 'after to before', '×', ({ server }) => {
        return server.resident_bytes_at_end / server.resident_bytes_idle;
      }),
    ],
    targets: [{ metric: 'growth', most: 1.5, better: 'less' }],
  },
  {
    name: 'connections',
    title: 'More connections',
    text: '10,000 messages a second, whatever the number of connections.',
    metrics: [cpuPerDelivery],
    targets: [
      { metric: 'cpu', of: '10,000', against: '1,000', times: 1.15, better: 'less' },
      { metric: 'cpu', of: '19,000', against: '1,000', times: 1.15, better: 'less' },
    ],
  },
];
