// Measures the inbox: pages, read positions, broadcasts, escalation. What is compared alternates in one run.
//
// usage: node bench/inbox.mjs [--repeats N] [--only NAME,…] [--quick] [--before BINARY] [--render]
//   --quick   a tenth of the users and of the time, one repeat: a smoke test; writes to target/bench-quick
//   --before  another build of tidings, whose commands per acknowledgement and memory are compared as well
//   --render  renders the page from the raw figures, without measuring

import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

import { spread } from './figures.mjs';
import { bursts, bystanders, copies, due, idle, pages, pending, reads } from './inbox-runs.mjs';
import { environment, machine } from './machine.mjs';
import { sessionsOf } from './sessions.mjs';
import { figure, range, table } from './text.mjs';

process.chdir(join(import.meta.dirname, '..'));

const text = { type: 'string' };
const flag = { type: 'boolean', default: false };
const { values } = parseArgs({ options: { repeats: text, only: text, quick: flag, before: text, render: flag } });
const repeats = Number(values.repeats ?? (values.quick ? 1 : 5));
const folder = values.quick ? 'target/bench-quick' : 'docs/benchmarks';
const path = join(folder, 'raw', 'inbox.json');
const cut = values.quick ? 10 : 1;

const BEFORE = 'the build of --before';
const builds = values.before ? { [BEFORE]: { BINARY: values.before }, 'this build': {} } : { 'this build': {} };

// Runs a function of each row; the order rotates, so that no row always follows the same one.
async function inTurn(rows, turn, run) {
  const entries = Object.entries(rows);
  const found = {};
  for (let at = 0; at < entries.length; at += 1) {
    const [name, options] = entries[(at + turn) % entries.length];
    found[name] = await run(options);
  }
  return found;
}

const CPU = { cpu: 'CPU of tidings (µs)', redis: 'CPU of Redis (µs)', commands: 'Redis commands', scripts: 'scripts' };
const SIZES = { '1,000 connections': 1_000, '10,000 connections': 10_000 };

const SCENARIOS = {
  pages: {
    what:
      'Each of 1,000 connections, of as many users, has 40 stored notifications. A second has 1,000 pages of 20, of ' +
      'random users: requested by `history` frames, or by `GET /v1/users/{id}/notifications?order=newest&limit=20`. ' +
      'Figures are per page; commands include the script, those that it calls, and some 40 a second of the instance itself',
    metrics: CPU,
    run: (turn) => {
      const query = 'order=newest&limit=20';
      const before = values.before ? { [`listing over HTTP, ${BEFORE}`]: { env: builds[BEFORE], query: 'limit=20' } } : {};
      const rows = { 'history over the socket': {}, 'listing over HTTP': { query }, ...before };
      return inTurn(rows, turn, (row) => pages({ users: 1_000 / cut, rate: 1_000 / cut, seconds: 5, ...row }));
    },
  },
  reads: {
    what:
      'Each of 1,000 users has two connections, on one instance or on two. In a second, one of the two acknowledges once, ' +
      'which moves the read position and sends a `read` frame to the other; or one message is published, which both ' +
      'receive. Figures are per acknowledgement or message, of all instances',
    metrics: CPU,
    run: async (turn) => {
      const options = { users: 1_000 / cut, rate: 1_000 / cut, seconds: 5, turn };
      return Object.assign({}, ...[await reads({ ...options, instances: 1 }), await reads({ ...options, instances: 2 })]);
    },
  },
  bursts: {
    what:
      '10,000 acknowledgements a second, 1,000 at once, by 2,000 users in turn. Figures are per acknowledgement; of those ' +
      'in half a second, the furthest of each device is written, by one script',
    metrics: { ...CPU, perWrite: 'Redis commands per write' },
    run: (turn) => {
      const rows = Object.entries(builds).map(([name, env]) => [`one connection, ${name}`, { env }]);
      const all = Object.fromEntries([...rows, ['two connections, this build', { connections: 2 }]]);
      return inTurn(all, turn, (row) => bursts({ users: 2_000 / cut, rate: 10_000 / cut, seconds: 3, ...row }));
    },
  },
  copies: {
    what:
      'Two messages a second to each of 10,000 connections: to the one user who has them, or as broadcasts to as many users. ' +
      'Server, load generator and Redis share two cores',
    metrics: { last: 'time to the last copy, p50 (µs)', cpu: 'CPU of tidings per copy (µs)' },
    run: (turn) => {
      const rows = sessionsOf(['broadcast']).map((session) => [session.phases[0].variant, { ...session, quick: values.quick }]);
      return inTurn(Object.fromEntries(rows), turn, copies);
    },
  },
  bystanders: {
    what:
      '1,000 messages a second to 50 users, while 10,000 other connections are idle, all receive two broadcasts a second, ' +
      'or receive two messages a second of one user who has them all',
    metrics: { p50: 'latency, p50 (ms)', p99: 'latency, p99 (ms)', max: 'latency, maximum (ms)' },
    run: (turn) => {
      const rows = { idle: 'unicast', broadcasts: 'broadcast', 'one user': 'fanout' };
      const options = { crowd: 10_000 / cut, users: 50, rate: 1_000, seconds: 8 };
      return inTurn(rows, turn, (mode) => bystanders({ ...options, mode }));
    },
  },
  due: {
    what: '10,000 unread notifications, one of each user, whose escalation is due in the same second',
    metrics: { late: 'delay of the last entry (ms)', within: 'from the first time to the last (ms)' },
    run: async () => ({ escalation: await due({ users: 10_000 / cut, batches: 5 }) }),
  },
  pending: {
    what: 'Redis at rest with one instance: without, and with 100,000 escalations that are due in a day',
    metrics: { share: 'CPU of Redis (% of a core)' },
    run: (turn) => {
      const rows = { 'no escalation': { users: 0, each: 0 }, '100,000 escalations': { users: 10_000 / cut, each: 10 } };
      return inTurn(rows, turn, (row) => pending({ ...row, seconds: 10 }));
    },
  },
  idle: {
    what: 'Memory of idle connections, each of another user',
    metrics: { memory: 'per connection (bytes)' },
    run: (turn) => {
      const row = ([size, connections]) => Object.entries(builds).map(([name, env]) => [`${size}, ${name}`, { connections, env }]);
      return inTurn(Object.fromEntries(Object.entries(SIZES).flatMap(row)), turn, idle);
    },
  },
};

// What is measured of which row, at most so much, or so many times that of another row.
const TARGETS = [
  ['pages', 'cpu', 'history over the socket', 0.5, 'listing over HTTP'],
  ['pages', 'cpu', 'history over the socket', 0.5, `listing over HTTP, ${BEFORE}`],
  ['pages', 'commands', 'history over the socket', 4],
  ['pages', 'scripts', 'history over the socket', 1],
  ['reads', 'cpu', 'ack and read frame, 1 inst.', 2, 'PUBLISH to both, 1 inst.'],
  ['reads', 'cpu', 'ack and read frame, 2 inst.', 2, 'PUBLISH to both, 2 inst.'],
  ['bursts', 'perWrite', 'one connection, this build', 1, `one connection, ${BEFORE}`],
  ['copies', 'cpu', 'broadcast', 1, 'one user'],
  ['copies', 'last', 'broadcast', 1, 'one user'],
  ['bystanders', 'p99', 'broadcasts', 2, 'idle'],
  ['due', 'late', 'escalation', 3_000],
  ['pending', 'share', '100,000 escalations', 1],
  ...Object.keys(SIZES).map((size) => ['idle', 'memory', `${size}, this build`, 1, `${size}, ${BEFORE}`]),
];

async function measureAll(about) {
  const wanted = values.only?.split(',') ?? Object.keys(SCENARIOS);
  const raw = [];
  for (let repeat = 0; repeat < repeats; repeat += 1) {
    raw.push({});
    for (const name of wanted) {
      raw[repeat][name] = await SCENARIOS[name].run(repeat);
      console.log(`${repeat + 1}/${repeats} ${name}: ${JSON.stringify(raw[repeat][name])}`);
      write({ ...about, raw });
    }
  }
}

// An interrupted repeat lacks some rows.
const present = (values) => values.filter(Number.isFinite);

// Commands are those of the instance itself, too, some 40 in a second.
const precision = { commands: 0, scripts: 0 };

function verdict(metric, most, { median, max, count }) {
  const rounded = (value) => Number(value.toFixed(precision[metric] ?? 2));
  if (rounded(median) > most) return `**missed** by ${figure((median / most - 1) * 100)} %`;
  return count > 1 && rounded(max) > most ? 'met in the median' : 'met';
}

function targetsTable(raw) {
  const rows = TARGETS.flatMap(([scenario, metric, row, most, against]) => {
    const valueOf = (repeat, name) => repeat[scenario]?.[name]?.[metric];
    const found = present(raw.map((repeat) => valueOf(repeat, row) / (against ? valueOf(repeat, against) : 1)));
    if (found.length === 0) return [];
    const target = against ? `≤ ${most} × ${against}` : `≤ ${figure(most)}`;
    return [[row, SCENARIOS[scenario].metrics[metric], target, range(spread(found)), verdict(metric, most, spread(found))]];
  });
  return table(['what', 'metric', 'target', 'measured', 'result'], rows);
}

function sectionOf(raw, [name, { what, metrics }]) {
  const rows = [...new Set(raw.flatMap((repeat) => Object.keys(repeat[name] ?? {})))];
  if (rows.length === 0) return '';
  const cellOf = (row, key) => range(spread(present(raw.map((repeat) => repeat[name]?.[row]?.[key]))));
  const cells = rows.map((row) => [row, ...Object.keys(metrics).map((key) => cellOf(row, key))]);
  return `## ${name}\n\n${what}.\n\n${table(['', ...Object.values(metrics)], cells)}\n`;
}

function page({ raw, ...about }) {
  return `# The inbox

\`make bench-inbox\` generates this page: up to ${raw.length} ${raw.length === 1 ? 'repeat' : 'repeats'}, each on a fresh Redis, in which the rows of a table take turns;
median (minimum–maximum), and for ratios the median of the ratios in one repeat. Only the ratios count: the figures are
from one machine at one time. The instances share one core; the clients and Redis share the other. With
\`ARGS="--before BINARY"\` another build is compared as well.

${targetsTable(raw)}

${Object.entries(SCENARIOS).map((scenario) => sectionOf(raw, scenario)).filter(Boolean).join('\n')}
${environment(about)}`;
}

function write(measured) {
  mkdirSync(join(folder, 'raw'), { recursive: true });
  writeFileSync(path, `${JSON.stringify(measured, null, 2)}\n`);
  writeFileSync(join(folder, 'inbox.md'), page(measured));
}

if (values.render) {
  write(JSON.parse(readFileSync(path, 'utf8')));
} else {
  execFileSync('cargo', ['build', '--release', '--locked', '--bin', 'tidings'], { stdio: 'inherit' });
  execFileSync('npm', ['ci', '--prefix', 'bench/peers', '--no-audit', '--no-fund', '--silent'], { stdio: 'inherit' });
  await measureAll({ at: new Date().toISOString(), load: os.loadavg()[0], machine: machine() });
}
console.log(`written: ${folder}/inbox.md`);
