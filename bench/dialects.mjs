// Compares clients of Server-Sent Events and socket.io with those of tidings.v1, and with socket.io's own server. All
// alternate in one run.
//
// usage: node bench/dialects.mjs [--repeats N] [--quick] [--before BINARY] [--render]
//   --quick   fewer connections, one repeat: a smoke test; writes to target/bench-quick
//   --before  another build of tidings, which tidings.v1 is compared with as well
//   --render  renders the page from the raw figures, without measuring

import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

import { spread } from './figures.mjs';
import { machine } from './machine.mjs';
import { measure } from './measure.mjs';
import { figure, range, table } from './text.mjs';

process.chdir(join(import.meta.dirname, '..'));

const text = { type: 'string' };
const flag = { type: 'boolean', default: false };
const { values } = parseArgs({ options: { repeats: text, quick: flag, before: text, render: flag } });
const repeats = Number(values.repeats ?? (values.quick ? 1 : 5));
const folder = values.quick ? 'target/bench-quick' : 'docs/benchmarks';

const IDLE = { scenario: 'idle', flags: '--rate 100 --warm-up 0s --duration 200ms' };
const FLAT_OUT = '--flat-out --window 2000 --warm-up 1s --duration 3s';
const FANOUT = '--mode fanout --warm-up 1s --duration 5s';

const SESSIONS = {
  unicast: {
    what: 'Messages to random users, as fast as deliveries return; memory before them, while the connections are idle',
    servers: ['tidings', 'tidings-sse', 'tidings-socketio', 'socketio'],
    connect: '--connections 10000 --connect-rate 2000 --settle 2s',
    phases: [IDLE, { scenario: 'unicast', flags: FLAT_OUT }],
  },
  fanout: {
    what: 'Two messages a second to one user, who has all connections',
    servers: ['tidings', 'tidings-sse', 'tidings-socketio'],
    connect: '--connections 10000 --connect-rate 2000 --settle 500ms',
    phases: [{ scenario: 'fanout', flags: `--rate 2 ${FANOUT}` }],
  },
  polling: {
    what: 'Long-polling: one message a second to one user, who has all sessions',
    servers: ['tidings-polling', 'socketio-polling'],
    connect: '--connections 5000 --connect-rate 1000 --settle 2s',
    phases: [{ scenario: 'polling', flags: `--rate 1 ${FANOUT}` }],
  },
  each: {
    what: 'Long-polling: one message a second to each of as many users; memory before them, while the sessions are at rest',
    servers: ['tidings-polling', 'socketio-polling'],
    connect: '--connections 5000 --connect-rate 1000 --settle 2s',
    phases: [IDLE, { scenario: 'each', flags: '--mode turn --rate 5000 --warm-up 1s --duration 5s' }],
  },
};
if (values.before) SESSIONS.unicast.servers.push('before');

const METRICS = {
  memory: { name: 'memory per idle connection (bytes)', of: ({ server }) => server.resident_bytes_per_idle_connection },
  cpu: { name: 'CPU per delivery (µs)', of: ({ server }) => server.cpu_us_per_delivery },
  last: { name: 'time to the last copy, p50 (µs)', of: (report) => report.last_copy_us?.p50 },
};

const LABELS = {
  tidings: 'tidings.v1',
  'tidings-sse': 'Server-Sent Events',
  'tidings-socketio': 'socket.io over WebSocket',
  'tidings-polling': 'socket.io over long-polling',
  socketio: "socket.io's server, WebSocket",
  'socketio-polling': "socket.io's server, long-polling",
  before: `tidings.v1, the build of --before`,
};

// What is measured of which server, relative to the other, or by itself.
const TARGETS = [
  ['unicast', 'cpu', 'tidings-socketio', 'tidings', 1.1],
  ['unicast', 'memory', 'tidings-socketio', 'tidings', 1.1],
  ['unicast', 'cpu', 'tidings-socketio', 'socketio', 0.2],
  ['unicast', 'memory', 'tidings-socketio', 'socketio', 0.25],
  // At least 0.95 times as fast.
  ['fanout', 'last', 'tidings-socketio', 'tidings', 1 / 0.95],
  ['unicast', 'cpu', 'tidings-sse', 'tidings', 1.1],
  ['unicast', 'memory', 'tidings-sse', 'tidings', 1.25],
  ['each', 'memory', 'tidings-polling', undefined, 6_000],
  ['polling', 'cpu', 'tidings-polling', 'socketio-polling', 0.35],
  ['each', 'cpu', 'tidings-polling', 'socketio-polling', 0.35],
  ['unicast', 'memory', 'tidings', 'before', 1],
  ['unicast', 'cpu', 'tidings', 'before', 1.02],
];

function prepare() {
  execFileSync('cargo', ['build', '--release', '--locked', '--bin', 'tidings'], { stdio: 'inherit' });
  execFileSync('npm', ['ci', '--prefix', 'bench/peers', '--no-audit', '--no-fund', '--silent'], { stdio: 'inherit' });
}

// The metrics of one server in one session. Memory is that before the first message, CPU that of the last phase.
async function figuresOf(session, server) {
  const [name, env] = server === 'before' ? ['tidings', { BINARY: values.before }] : [server, {}];
  const lines = await measure({ ...session, pinned: true }, name, { quick: values.quick, env });
  const { report } = lines.at(-1).line;
  return Object.fromEntries(Object.entries(METRICS).map(([key, { of }]) => [key, of(report)]));
}

// One entry per repeat: session => server => metrics. The order rotates, so that no server always follows the same one.
// The page is written after each session, so that a later failure does not lose the earlier ones.
async function measureAll(about) {
  const raw = [];
  for (let repeat = 0; repeat < repeats; repeat += 1) {
    raw.push({});
    for (const [name, session] of Object.entries(SESSIONS)) {
      raw[repeat][name] = {};
      for (let turn = 0; turn < session.servers.length; turn += 1) {
        const server = session.servers[(turn + repeat) % session.servers.length];
        raw[repeat][name][server] = await figuresOf(session, server);
        console.log(`${repeat + 1}/${repeats} ${name}, ${server}: ${JSON.stringify(raw[repeat][name][server])}`);
      }
      write({ ...about, raw });
    }
  }
}

function verdict(most, { median, min, max, count }) {
  if (median > most) return `**missed** by ${figure((median / most - 1) * 100)} %`;
  return count > 1 && max > most ? 'met in the median' : 'met';
}

// An interrupted repeat lacks some servers.
const present = (values) => values.filter(Number.isFinite);

function targetsTable(raw) {
  return table(
    ['clients', 'metric', 'target', 'measured', 'result'],
    TARGETS.flatMap(([session, metric, server, against, most]) => {
      const valueOf = (repeat, of) => repeat[session]?.[of]?.[metric];
      const found = present(raw.map((repeat) => valueOf(repeat, server) / (against ? valueOf(repeat, against) : 1)));
      if (found.length === 0) return [];
      const target = against ? `≤ ${Number(most.toFixed(3))} × ${LABELS[against]}` : `≤ ${most}`;
      const name = session === 'unicast' || !against ? METRICS[metric].name : `${METRICS[metric].name}, ${session}`;
      return [[LABELS[server], name, target, range(spread(found)), verdict(most, spread(found))]];
    }),
  );
}

function sectionOf(raw, [name, { what, servers, connect, phases }]) {
  const valuesOf = (server, key) => present(raw.map((repeat) => repeat[name]?.[server]?.[key]));
  const metrics = Object.keys(METRICS).filter((key) => servers.some((server) => valuesOf(server, key).length > 0));
  const cellOf = (found) => (found.length > 0 ? range(spread(found)) : 'not measured');
  const rows = servers.map((server) => [LABELS[server], ...metrics.map((key) => cellOf(valuesOf(server, key)))]);
  const [first, ...others] = phases.map(({ flags }) => flags);
  const then = others.map((flags) => ` --then "${flags}"`).join('');
  return `## ${name}

${what}.

${table(['', ...metrics.map((key) => METRICS[key].name)], rows)}

\`\`\`sh
# tidings load ${connect} ${first}${then}
\`\`\`
`;
}

// A `note` in the raw figures says what the tool does not know, such as an interrupted run.
function page({ at, load, note, machine: { cpu, cores, kernel, versions }, raw }) {
  const before = values.before ? ' with `ARGS="--before BINARY"`' : '';
  return `# Clients of other protocols

\`make bench-dialects\`${before} generates this page: ${raw.length} ${raw.length === 1 ? 'repeat' : 'repeats'}, in which all servers take turns, each on a fresh
Redis; median (minimum–maximum), and for ratios the median of the ratios in one repeat. Only the ratios count: the
figures are from one machine at one time. The server is pinned to one core, the load generator and Redis to the other.
Payloads are 128 bytes. The clients are those of \`tidings load --client\`; a polling client uses one connection for one
request at a time, so that a session at rest has one connection with one held request. A lost, duplicated or reordered
message or a closed connection aborts the run. [socket.io's server](../../bench/peers/socketio.mjs) verifies tokens,
and has no presence.
${note ? `\n${note}\n` : ''}
${targetsTable(raw)}

${Object.entries(SESSIONS).map((session) => sectionOf(raw, session)).join('\n')}
## Environment

${cpu}, ${cores} cores; Linux ${kernel}; tidings ${versions.tidings}, rustc ${versions.rustc}, node ${versions.node}, socket.io ${versions['socket.io']}. Measured
${at.slice(0, 10)}; the load average before the first run was ${load.toFixed(1)}.
`;
}

function write(measured) {
  mkdirSync(join(folder, 'raw'), { recursive: true });
  writeFileSync(join(folder, 'raw', 'dialects.json'), `${JSON.stringify(measured, null, 2)}\n`);
  writeFileSync(join(folder, 'dialects.md'), page(measured));
}

if (values.render) {
  write(JSON.parse(readFileSync(join(folder, 'raw', 'dialects.json'), 'utf8')));
} else {
  prepare();
  await measureAll({ at: new Date().toISOString(), load: os.loadavg()[0], machine: machine() });
}
console.log(`written: ${folder}/dialects.md`);
