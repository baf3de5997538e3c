// What is measured: the flags of `tidings load`, who is measured, what is read from the report, and what was promised.

const EVERYBODY = ['tidings', 'floor', 'ws', 'socketio'];

const cpuPerDelivery = { key: 'cpu', name: 'CPU per delivery', unit: 'µs', of: (report) => report.server.cpu_us_per_delivery };
const cpuPerMessage = { key: 'cpu', name: 'CPU per message', unit: 'µs', of: (report) => report.server.cpu_us_per_message };
// Near 100 % the server was the bottleneck; below, the load generator and Redis, on the other core, were.
const busy = {
  key: 'busy',
  name: 'server busy',
  unit: '%',
  of: (report) => (report.server.cpu_us_per_message * report.published_per_second) / 10_000,
};

const below = (metric, against, times) => ({ metric, against, times, better: 'less' });
// More is only told from less where the other server gave all it had.
const above = (metric, against, times) => ({ metric, against, times, better: 'more', needsBusy: true });

export const scenarios = [
  {
    name: 'idle',
    title: 'Handshakes and idle connections',
    text: 'Every connection is made, with its token, and then left alone.',
    servers: EVERYBODY,
    pinned: true,
    flags: ['--settle', '3s', '--warm-up', '0s', '--duration', '1s', '--rate', '100'],
    metrics: [
      { key: 'memory', name: 'memory per idle connection', unit: 'bytes', of: (report) => report.server.resident_bytes_per_idle_connection },
      { key: 'handshake', name: 'CPU per handshake', unit: 'µs', of: (report) => report.server.cpu_us_per_handshake },
    ],
    targets: [{ metric: 'memory', most: 2_500, better: 'less' }, below('handshake', 'floor', 2)],
  },
  {
    name: 'unicast',
    title: 'Unicast, flat out',
    text: 'Messages to users at random, as fast as deliveries come back (at most 1,000 outstanding).',
    servers: EVERYBODY,
    pinned: true,
    flags: ['--flat-out'],
    metrics: [
      cpuPerDelivery,
      { key: 'throughput', name: 'deliveries', unit: '/s', of: (report) => report.deliveries_per_second },
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
    text: 'Messages to users at random on a schedule that waits for nobody. Latency counts from when a message was due.',
    servers: EVERYBODY,
    pinned: false,
    flags: ['--rate', '10000'],
    metrics: [
      cpuPerDelivery,
      { key: 'p50', name: 'latency, p50', unit: 'µs', of: (report) => report.latency_us.p50 },
      { key: 'p99', name: 'latency, p99', unit: 'µs', of: (report) => report.latency_us.p99 },
    ],
    targets: [below('cpu', 'floor', 1.3), below('p50', 'floor', 1.2)],
  },
  {
    name: 'fanout',
    title: 'One message to every connection of one user',
    text: 'Two messages a second to one user, who has every connection.',
    servers: EVERYBODY,
    pinned: true,
    flags: ['--mode', 'fanout', '--rate', '2'],
    metrics: [
      { key: 'last', name: 'time to the last copy, p50', unit: 'µs', of: (report) => report.last_copy_us.p50 },
      cpuPerDelivery,
    ],
    targets: [below('last', 'floor', 1)],
  },
  {
    name: 'miss',
    title: 'Messages for nobody here',
    text: 'Most messages of a large fleet are for users of other instances: 20,000 a second of them.',
    servers: EVERYBODY,
    pinned: true,
    flags: ['--mode', 'miss', '--rate', '20000'],
    metrics: [cpuPerMessage, busy],
    targets: [below('cpu', 'floor', 1.5), below('cpu', 'ws', 0.35)],
  },
  {
    name: 'burst',
    title: 'Eight messages to one user back to back',
    text: 'The same 10,000 messages a second, eight at a time to one user, or each to a user at random.',
    servers: ['tidings'],
    variants: { 'eight apart': ['--burst', '1'], 'eight back to back': ['--burst', '8'] },
    pinned: true,
    flags: ['--rate', '10000'],
    metrics: [cpuPerDelivery],
    targets: [{ metric: 'cpu', of: 'eight back to back', against: 'eight apart', times: 0.5, better: 'less' }],
  },
  {
    name: 'writes',
    title: 'Writes of a burst',
    text: 'The writes to sockets of the whole run, handshakes and presence among them, counted by strace, for each delivery.',
    servers: ['tidings'],
    pinned: true,
    tool: 'strace',
    flags: ['--connections', '100', '--rate', '8000', '--burst', '8', '--warm-up', '0s'],
    metrics: [{ key: 'writes', name: 'writes per delivery', unit: '', of: (report, extra) => extra.writes / report.deliveries }],
    targets: [{ metric: 'writes', most: 0.14, better: 'less' }],
  },
  {
    name: 'churn',
    title: 'Memory after everybody came and went five times',
    text: 'Resident memory with nobody connected, after the first round and after the fifth, some seconds later each.',
    servers: EVERYBODY,
    pinned: false,
    rounds: 5,
    flags: ['--connect-rate', '4000', '--settle', '500ms', '--warm-up', '0s', '--duration', '500ms', '--rate', '1000'],
    metrics: [
      { key: 'first', name: 'after the first', unit: 'MB', of: (_, extra) => extra.empty[0] / 1e6 },
      { key: 'fifth', name: 'after the fifth', unit: 'MB', of: (_, extra) => extra.empty[1] / 1e6 },
      { key: 'growth', name: 'fifth to first', unit: '×', of: (_, extra) => extra.empty[1] / extra.empty[0] },
    ],
    targets: [{ metric: 'growth', most: 1.3, better: 'less' }],
  },
  {
    name: 'large',
    title: 'Memory after 64 KiB to every connection',
    text: 'One notification of 64 KiB to each connection; resident memory before it and 10 s after the last copy.',
    servers: ['tidings'],
    pinned: true,
    flags: ['--mode', 'fanout', '--payload', '65536', '--rate', '1', '--warm-up', '0s', '--duration', '1500ms', '--linger', '10s'],
    metrics: [
      { key: 'idle', name: 'before', unit: 'MB', of: (report) => report.server.resident_bytes_idle / 1e6 },
      { key: 'peak', name: 'at most', unit: 'MB', of: (_, extra) => extra.peak / 1e6 },
      { key: 'end', name: '10 s after', unit: 'MB', of: (report) => report.server.resident_bytes_at_end / 1e6 },
      { key: 'growth', name: 'after to before', unit: '×', of: ({ server }) => server.resident_bytes_at_end / server.resident_bytes_idle },
    ],
    targets: [{ metric: 'growth', most: 1.5, better: 'less' }],
  },
  {
    name: 'connections',
    title: 'More connections',
    text: '10,000 messages a second, whatever the number of connections.',
    servers: ['tidings', 'floor'],
    variants: {
      '1,000': ['--connections', '1000'],
      '10,000': ['--connections', '10000'],
      '19,000': ['--connections', '19000'],
    },
    pinned: true,
    flags: ['--rate', '10000'],
    metrics: [cpuPerDelivery],
    targets: [
      { metric: 'cpu', of: '10,000', against: '1,000', times: 1.15, better: 'less' },
      { metric: 'cpu', of: '19,000', against: '1,000', times: 1.15, better: 'less' },
    ],
  },
];

// The rows of a scenario: a server, and the variant where there are some.
export function rowsOf(scenario) {
  const variants = Object.entries(scenario.variants ?? { '': [] });
  return variants.flatMap(([variant, flags]) => scenario.servers.map((server) => ({ server, variant, flags })));
}
