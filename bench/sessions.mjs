// The connections and publications of each session: one server process serves several scenarios in turn.

const EVERYBODY = ['tidings', 'floor', 'ws', 'socketio', 'nchan', 'nchan-redis', 'nats'];
const CONNECTIONS = '--connections 10000';
const AT_ONCE = '--connect-rate 100000 --settle 500ms';

const SECOND_WARM = '--warm-up 1s';
const OPEN_LOOP = `--rate 10000 ${SECOND_WARM} --duration 5s`;

// All users in turn, in batches, so that each way of publishing does the same work.
const IN_TURN = `--mode turn --burst 200 ${SECOND_WARM} --duration 5s`;
const WAYS = { PUBLISH: 'pubsub', 'XADD to the outbox': 'outbox', 'batches over HTTP': 'http' };

const stored = (server, variant, way) => ({
  servers: [server],
  pinned: true,
  connect: `${CONNECTIONS} ${AT_ONCE}`,
  phases: [
    { scenario: 'durable', variant, flags: `${IN_TURN} --rate 2000${way}` },
    { scenario: 'durable-flat-out', variant, flags: `${IN_TURN} --flat-out --window 2000${way}` },
  ],
});

// Disconnected clients stay away for longer than presence takes to register it.
const AWAY = '--connect-rate 100000 --settle 8s';

// Each session ends, or reconnects all clients, before its first heartbeat is due, about 25 s after a connect. The order
// matters for memory, which is read before anything is published.
export const sessions = [
  {
    servers: EVERYBODY,
    pinned: true,
    connect: `${CONNECTIONS} --connect-rate 2000 --settle 2s`,
    phases: [
      { scenario: 'idle', flags: '--rate 100 --warm-up 0s --duration 200ms' },
      { scenario: 'unicast', flags: `--flat-out --window 2000 ${SECOND_WARM} --duration 5s` },
      { scenario: 'miss', flags: `--mode miss --flat-out --window 20000 ${SECOND_WARM} --duration 4s` },
    ],
  },
  {
    servers: EVERYBODY,
    pinned: false,
    connect: `${CONNECTIONS} ${AT_ONCE}`,
    phases: [{ scenario: 'open-loop', flags: OPEN_LOOP }],
  },
  {
    servers: ['tidings', 'floor'],
    pinned: false,
    connect: `${CONNECTIONS} ${AT_ONCE}`,
    phases: [{ scenario: 'fanout', flags: `--mode fanout --rate 2 ${SECOND_WARM} --duration 6s` }],
  },
  ...Object.entries({ 'one user': 'fanout', broadcast: 'broadcast' }).map(([variant, mode]) => ({
    servers: ['tidings'],
    pinned: false,
    connect: `${CONNECTIONS} ${AT_ONCE}`,
    phases: [{ scenario: 'broadcast', variant, flags: `--mode ${mode} --rate 2 ${SECOND_WARM} --duration 6s` }],
  })),
  ...[1_000, 10_000, 19_000].map((count) => ({
    servers: ['tidings', 'floor'],
    pinned: true,
    connect: `--connections ${count} ${AT_ONCE}`,
    phases: [{ scenario: 'connections', variant: count.toLocaleString('en-US'), flags: OPEN_LOOP }],
  })),
  {
    servers: ['tidings'],
    pinned: true,
    connect: `${CONNECTIONS} ${AT_ONCE}`,
    phases: [
      { scenario: 'burst', variant: 'eight apart', flags: `${OPEN_LOOP} --burst 1` },
      { scenario: 'burst', variant: 'eight back to back', flags: `${OPEN_LOOP} --burst 8` },
    ],
  },
  ...Object.entries(WAYS).map(([variant, way]) => stored('tidings', variant, ` --publish ${way}`)),
  stored('nchan-redis', 'POST', ''),
  {
    servers: ['tidings'],
    pinned: true,
    connect: `${CONNECTIONS} ${AWAY}`,
    phases: [
      { scenario: 'resume', variant: 'nothing to replay', flags: '--mode reconnect' },
      { scenario: 'resume', variant: '50 to replay', flags: '--mode resume --stored 500000' },
      { scenario: 'refill', flags: '--mode refill --stored 1000' },
    ],
  },
  {
    servers: ['tidings'],
    pinned: true,
    tool: 'strace',
    connect: `--connections 100 ${AT_ONCE}`,
    phases: [{ scenario: 'writes', flags: '--rate 8000 --burst 8 --warm-up 0s --duration 3s' }],
  },
  {
    servers: ['tidings'],
    pinned: false,
    rounds: 5,
    connect: `${CONNECTIONS} ${AT_ONCE}`,
    phases: [{ scenario: 'churn', flags: '--rate 1000 --warm-up 0s --duration 500ms' }],
  },
  {
    servers: ['tidings'],
    pinned: true,
    connect: `${CONNECTIONS} ${AT_ONCE}`,
    phases: [
      { scenario: 'large', flags: '--mode fanout --payload 65536 --rate 1 --warm-up 0s --duration 1500ms --linger 10s' },
    ],
  },
];

// The sessions of some scenarios, reduced to their phases.
export function sessionsOf(only) {
  const cut = sessions.map((session) => {
    return { ...session, phases: session.phases.filter(({ scenario }) => !only || only.includes(scenario)) };
  });
  return cut.filter(({ phases }) => phases.length > 0);
}

// The rows of a scenario: a server, and its variant, if any.
export function rowsOf({ name }) {
  return sessionsOf([name]).flatMap(({ servers, pinned, phases }) =>
    phases.flatMap(({ variant = '' }) => servers.map((server) => ({ server, variant, pinned }))),
  );
}
