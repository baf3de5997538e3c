// Measures what a connection, a message and a notification cost, beside the floor and beside an earlier build, in turn.
//
// usage: node bench/cost.mjs --before BINARY [--commit NAME] [--repeats N] [--only PART,…] [--quick] [--render]
//   --before  the earlier build of tidings
//   --commit  its commit, if its version does not name that
//   --quick   1,000 connections, short runs, one repeat: a smoke test; writes to target/bench-quick
//   --render  renders the page from the raw figures, without measuring

import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

import { overTls } from './cost-tls.mjs';
import { spread } from './figures.mjs';
import { fleet } from './fleet.mjs';
import { environment, machine } from './machine.mjs';
import { measure } from './measure.mjs';
import { scenarios } from './scenarios.mjs';
import { sessionsOf } from './sessions.mjs';
import { figure, range, table } from './text.mjs';

process.chdir(join(import.meta.dirname, '..'));

const text = { type: 'string' };
const flag = { type: 'boolean', default: false };
const { values } = parseArgs({ options: { before: text, commit: text, repeats: text, only: text, quick: flag, render: flag } });
const repeats = Number(values.repeats ?? (values.quick ? 1 : 5));
const folder = values.quick ? 'target/bench-quick' : 'docs/benchmarks';
const path = join(folder, 'raw', 'cost.json');
const cut = values.quick ? 10 : 1;

// Without --before, a smoke test compares this build with itself.
const BEFORE = { server: 'tidings', env: values.before ? { BINARY: values.before } : {} };
const NOW = { server: 'tidings', env: {} };
const BOTH = { before: BEFORE, now: NOW };
const ALL = { ...BOTH, floor: { server: 'floor', env: {} } };

const FLEET = `--connections ${4_000 / cut} --connect-rate 2000 --settle 1s --rate ${4_000 / cut} --warm-up 1s --duration 6s`;

// The metrics of every phase of a session: { 'scenario, variant': { key: value } }.
async function phasesOf(session, { server, env }) {
  const lines = await measure(session, server, { env, quick: values.quick });
  const entry = ({ scenario, line }) => {
    const { metrics } = scenarios.find(({ name }) => name === scenario);
    const figures = metrics.map(({ key, of }) => [key, of(line.report, line.extra)]);
    return [[scenario, line.variant].filter(Boolean).join(', '), Object.fromEntries(figures)];
  };
  return Object.fromEntries(lines.map(entry));
}

const sessionWith = (names, variant) => {
  return sessionsOf(names).find(({ phases }) => phases.some((phase) => !variant || phase.variant === variant));
};

async function small(build) {
  const session = { ...sessionWith(['idle']), connect: '--connections 1000 --connect-rate 2000 --settle 2s' };
  return (await phasesOf(session, build)).idle;
}

async function leaving({ server, env }) {
  const session = { ...sessionWith(['churn']), rounds: 3 };
  const [{ line }] = await measure(session, server, { env, quick: values.quick });
  const { before, empty } = line.extra;
  return { before: before / 1e6, after: empty.at(-1) / 1e6, growth: empty.at(-1) / before };
}

async function ofFleet({ env }) {
  const { report } = await fleet(8, env, FLEET);
  return { cpu: report.server.cpu_us_per_delivery, p50: report.latency_us.p50, p99: report.latency_us.p99 };
}

// What is run, of which builds.
const PARTS = {
  flat: { builds: ALL, run: (build) => phasesOf(sessionWith(['idle', 'unicast', 'miss']), build) },
  small: { builds: ALL, run: small },
  'open-loop': { builds: ALL, run: (build) => phasesOf(sessionWith(['open-loop']), build) },
  fanout: { builds: ALL, run: (build) => phasesOf(sessionWith(['fanout']), build) },
  leaving: { builds: BOTH, run: leaving },
  reconnect: { builds: BOTH, run: (build) => phasesOf(sessionWith(['resume']), build) },
  ...Object.fromEntries(
    Object.entries({ outbox: 'XADD to the outbox', batches: 'batches over HTTP' }).map(([name, variant]) => {
      const run = (build) => phasesOf(sessionWith(['durable', 'durable-flat-out'], variant), build);
      return [name, { builds: BOTH, run }];
    }),
  ),
  fleet: {
    builds: { ...BOTH, off: { server: 'tidings', env: { TIDINGS_REDIS__BATCH_READS: 'false' } } },
    run: ofFleet,
  },
  tls: { builds: BOTH, run: (build) => overTls({ users: 3_000 / cut, env: build.env, resumes: build === NOW }) },
};

const at = (...keys) => (figures) => keys.reduce((value, key) => value?.[key], figures);

// Title, part, value, unit, and targets: at most (or at least) so many times the value of another build.
const RECONNECT = ['resume, nothing to replay', 'resume, 50 to replay'];
const DURABLE = (way) => [`durable, ${way}`, `durable-flat-out, ${way}`];
const [OUTBOX, HTTP] = ['XADD to the outbox', 'batches over HTTP'].map(DURABLE);
const ROWS = [
  ['CPU of a handshake, 2,000 a second', 'flat', at('idle', 'handshake'), 'µs', { before: 0.55, floor: 2.1 }],
  ['Redis commands of a connect, with presence', 'reconnect', at(RECONNECT[0], 'commands'), '', { most: 4.5 }],
  ['memory of an idle connection, of 10,000', 'flat', at('idle', 'memory'), 'bytes', { before: 0.6 }],
  ['memory of an idle connection, of 1,000', 'small', at('memory'), 'bytes', { before: 0.4 }],
  ['memory after three storms of 10,000, over that at the start', 'leaving', at('growth'), '×', { most: 1.3 }],
  ['TLS: memory of an idle connection', 'tls', at('memory'), 'bytes', { before: 0.55 }],
  ['TLS: CPU of a full handshake', 'tls', at('full'), 'µs', { before: 0.85 }],
  ['TLS: CPU of a resumed handshake, over a full one', 'tls', (all) => all.resumed / all.full, '×', { most: 0.4 }],
  ['8 instances, 4,000 messages a second: CPU of all per delivery', 'fleet', at('cpu'), 'µs', { before: 0.35 }],
  ['the same: latency, p50', 'fleet', at('p50'), 'µs', { more: 1_000 }],
  ['outbox: CPU of Redis per notification', 'outbox', at(OUTBOX[0], 'redis'), 'µs', { before: 0.5 }],
  ['outbox: Redis commands per notification', 'outbox', at(OUTBOX[0], 'commands'), '', { most: 7 }],
  ['outbox, flat out', 'outbox', at(OUTBOX[1], 'rate'), '/s', { atLeast: 1.8 }],
  ['HTTP batches: CPU of Redis per notification', 'batches', at(HTTP[0], 'redis'), 'µs', { before: 0.5 }],
  ['HTTP batches: Redis commands per notification', 'batches', at(HTTP[0], 'commands'), '', { most: 6 }],
  ['HTTP batches, flat out', 'batches', at(HTTP[1], 'rate'), '/s', { atLeast: 1.8 }],
  ['10,000 clients that resume 50 each', 'reconnect', at(RECONNECT[1], 'seconds'), 's', { before: 0.5 }],
  ['the same: CPU of Redis per client', 'reconnect', at(RECONNECT[1], 'redis'), 'µs', { before: 0.5 }],
  ['the same: CPU of tidings per client', 'reconnect', at(RECONNECT[1], 'server'), 'µs', { before: 1.03 }],
  ['unicast, flat out: CPU per delivery', 'flat', at('unicast', 'cpu'), 'µs', { before: 1.03 }],
  ['10,000 messages a second: CPU per delivery', 'open-loop', at('open-loop', 'cpu'), 'µs', { before: 1.03 }],
  ['fan-out: time to the last copy, p50', 'fanout', at('fanout', 'last'), 'µs', { before: 1.03 }],
  ['no local recipient: CPU per message', 'flat', at('miss', 'cpu'), 'µs', { before: 1.03 }],
];

// How a value is compared: the figure that the target limits, and the limit in words.
const COMPARISONS = {
  before: ({ now, before }) => now / before,
  floor: ({ now, floor }) => now / floor,
  atLeast: ({ now, before }) => now / before,
  more: ({ now, off }) => now - off,
  most: ({ now }) => now,
};
const WORDS = {
  before: (limit) => `≤ ${limit} × before`,
  floor: (limit) => `≤ ${limit} × floor`,
  atLeast: (limit) => `≥ ${limit} × before`,
  more: (limit) => `≤ ${figure(limit)} more than without batch_reads`,
  most: (limit) => `≤ ${limit}`,
};

async function measureAll(about) {
  const wanted = values.only?.split(',') ?? Object.keys(PARTS);
  const earlier = values.only && existsSync(path) ? JSON.parse(readFileSync(path, 'utf8')).raw : {};
  const raw = { ...earlier, ...Object.fromEntries(wanted.map((name) => [name, []])) };
  for (let repeat = 0; repeat < repeats; repeat += 1) {
    for (const name of wanted) {
      const { builds, run } = PARTS[name];
      const [labels, found] = [Object.keys(builds), {}];
      for (let turn = 0; turn < labels.length; turn += 1) {
        // The order rotates, so that no build always follows the same one.
        const label = labels[(turn + repeat) % labels.length];
        found[label] = await run(builds[label]);
      }
      raw[name].push(found);
      console.log(`${repeat + 1}/${repeats} ${name}: ${JSON.stringify(found)}`);
      write({ ...about, raw });
    }
  }
}

// An interrupted repeat lacks some builds.
const present = (numbers) => numbers.filter(Number.isFinite);

function verdict(name, limit, { median, min, max }) {
  const better = name === 'atLeast' ? (value) => value >= limit : (value) => value <= limit;
  if (!better(median)) return '**missed**';
  return better(min) && better(max) ? 'met' : 'met in the median';
}

function rowsOf(raw, [title, part, valueOf, unit, targets]) {
  const repeated = (raw[part] ?? []).map((found) => {
    return Object.fromEntries(Object.entries(found).map(([label, figures]) => [label, valueOf(figures)]));
  });
  const cellOf = (label) => {
    const found = present(repeated.map((one) => one[label]));
    return found.length ? range(spread(found)) : '';
  };
  return Object.entries(targets).flatMap(([name, limit]) => {
    const found = present(repeated.map(COMPARISONS[name]));
    if (found.length === 0) return [];
    const compared = spread(found);
    const what = unit ? `${title} (${unit})` : title;
    const cells = ['before', 'now', 'floor'].map(cellOf);
    return [[what, ...cells, range(compared), WORDS[name](limit), verdict(name, limit, compared)]];
  });
}

function page({ before, raw, ...about }) {
  const count = Math.max(...Object.values(raw).map((all) => all.length));
  const rows = ROWS.flatMap((row) => rowsOf(raw, row));
  return `# Cost, beside an earlier build

\`make bench-cost ARGS="--before BINARY"\` generates this page: ${count} ${count === 1 ? 'repeat' : 'repeats'}, in which the builds and the floor take
turns, each with a fresh Redis. Figures are medians (minimum–maximum); what is compared is the median of the ratios in one
repeat. Only the ratios count: the figures are from one machine at one time. The [README](README.md) describes the runs
and the floor; before is ${before}. The [choices](choices.md#costs-beyond-their-targets) say what was tried for
targets that are missed.

${table(['', 'before', 'now', 'floor', 'compared', 'target', 'result'], rows)}

${environment(about)}`;
}

function write(measured) {
  mkdirSync(join(folder, 'raw'), { recursive: true });
  writeFileSync(path, `${JSON.stringify(measured, null, 2)}\n`);
  writeFileSync(join(folder, 'cost.md'), page(measured));
}

if (values.render) {
  write(JSON.parse(readFileSync(path, 'utf8')));
} else {
  if (!values.before && !values.quick) throw new Error('--before BINARY is missing: the earlier build of tidings');
  for (const what of [['--bin', 'tidings'], ['--example', 'floor']]) {
    execFileSync('cargo', ['build', '--release', '--locked', ...what], { stdio: 'inherit' });
  }
  execFileSync('npm', ['ci', '--prefix', 'bench/peers', '--no-audit', '--no-fund', '--silent'], { stdio: 'inherit' });
  const version = values.before && execFileSync(values.before, ['--version'], { encoding: 'utf8' }).trim();
  const commit = values.commit ? ` of commit ${values.commit}` : '';
  const before = version ? `\`${version}\`${commit}` : 'this build itself';
  await measureAll({ at: new Date().toISOString(), load: os.loadavg()[0], before, machine: machine() });
}
console.log(`written: ${folder}/cost.md`);
