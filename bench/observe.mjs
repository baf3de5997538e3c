// Measures what metrics, spans and logs cost, and whether the latency that an instance reports is the one of the clients.
//
// usage: node bench/observe.mjs [--repeats N] [--quick] [--render]
//   --quick   1,000 connections, short runs, one repeat: a smoke test; writes to target/bench-quick
//   --render  renders the page from the raw figures, without measuring

import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

import { spread } from './figures.mjs';
import { counter } from './fleet.mjs';
import { cpuOf, until } from './inbox-client.mjs';
import { environment, machine } from './machine.mjs';
import { measure } from './measure.mjs';
import { LOAD_CORE, SERVER_CORE, start, startRedis, startServer, stop, tidings } from './servers.mjs';
import { sessionsOf } from './sessions.mjs';
import { range, table } from './text.mjs';

process.chdir(join(import.meta.dirname, '..'));

const flag = { type: 'boolean', default: false };
const { values } = parseArgs({ options: { repeats: { type: 'string' }, quick: flag, render: flag } });
const repeats = Number(values.repeats ?? (values.quick ? 1 : 5));
const folder = values.quick ? 'target/bench-quick' : 'docs/benchmarks';
const path = join(folder, 'raw', 'observe.json');
const connections = values.quick ? 1_000 : 10_000;

const WITHOUT = join('target', 'unobserved');
const LEVEL = { TIDINGS_LOG__LEVEL: 'info' };
const BUILDS = { with: LEVEL, without: { ...LEVEL, BINARY: join(WITHOUT, 'release', 'tidings') } };
const SCRAPES = 200;

// This commit without metrics (bench/unobserved takes the place of the library), and without spans and log lines.
function build() {
  execFileSync('cargo', ['build', '--release', '--locked', '--bin', 'tidings'], { stdio: 'inherit' });
  const source = join(WITHOUT, 'source');
  rmSync(source, { recursive: true, force: true });
  execFileSync('git', ['clone', '--quiet', '--shared', '.', source]);
  const flags = ['--features', 'tracing/release_max_level_off', '--config', 'patch.crates-io.prometheus.path="bench/unobserved"'];
  const cargo = ['build', '--release', '--bin', 'tidings', ...flags, '--target-dir', join(process.cwd(), WITHOUT)];
  execFileSync('cargo', cargo, { stdio: 'inherit', cwd: source });
}

// CPU of a handshake and of a delivery, in µs.
async function cost(env) {
  const found = {};
  for (const session of sessionsOf(['idle', 'unicast', 'open-loop'])) {
    for (const { scenario, line } of await measure(session, 'tidings', { env, quick: values.quick })) {
      const { server } = line.report;
      found[scenario] = scenario === 'idle' ? server.cpu_us_per_handshake : server.cpu_us_per_delivery;
    }
  }
  return found;
}

async function metricsOf(server) {
  const answer = await fetch(`http://${server.load[3]}/metrics`, { signal: AbortSignal.timeout(10_000) });
  return answer.text();
}

// The deliveries up to each bound of a bucket, in seconds: [bound, count].
function buckets(text) {
  const lines = text.matchAll(/^tidings_delivery_seconds_bucket\{le="([^"]+)"\} (\d+)$/gm);
  return [...lines].map(([, bound, count]) => [bound === '+Inf' ? Infinity : Number(bound), Number(count)]);
}

// 10,000 messages a second: the buckets of the 99th percentile, as the instance counts and as the clients measure; then
// the CPU of a scrape while the connections are idle.
async function view() {
  const redis = await startRedis(LOAD_CORE);
  const server = await startServer('tidings', redis, SERVER_CORE, LEVEL);
  const phases = ['--rate', '10000', '--warm-up', '0s', '--duration', '5s', '--linger', '8s'];
  const flags = ['--connections', `${connections}`, '--connect-rate', '2000', '--settle', '500ms', ...phases, '--json'];
  const load = start([tidings, 'load', ...server.load, '--server-pid', `${server.child.pid}`, ...flags], { core: LOAD_CORE, env: server.env });
  const received = () => counter(server, 'tidings_messages_received_total');
  await until('the first message is received', async () => (await received()) > 0, 500);
  let earlier;
  await until('the last message is received', async () => earlier === (earlier = await received()), 500);
  const before = cpuOf([server]);
  let text;
  for (let scrape = 0; scrape < SCRAPES; scrape += 1) text = await metricsOf(server);
  const scrapeUs = (cpuOf([server]) - before) / SCRAPES;
  if ((await load.done) !== 0) throw new Error(load.output.stderr + load.output.stdout);
  const { latency_us: latency } = JSON.parse(load.output.stdout);
  await stop(server.child, 'SIGKILL');
  await stop(redis.child);
  const counted = buckets(text);
  const total = counted.at(-1)[1];
  const own = counted.findIndex(([, count]) => count >= 0.99 * total);
  const clients = counted.findIndex(([bound]) => bound * 1e6 >= latency.p99);
  return { scrape: scrapeUs / 1_000, measured: total, p99: counted[own][0] * 1_000, clients: latency.p99 / 1_000, apart: Math.abs(own - clients) };
}

async function measureAll(about) {
  const raw = [];
  for (let repeat = 0; repeat < repeats; repeat += 1) {
    const found = {};
    const names = Object.keys(BUILDS);
    for (const name of repeat % 2 ? names.toReversed() : names) found[name] = await cost(BUILDS[name]);
    found.view = await view();
    raw.push(found);
    console.log(`${repeat + 1}/${repeats}: ${JSON.stringify(found)}`);
    write({ ...about, raw });
  }
}

const of = (raw, valueOf) => spread(raw.map(valueOf));

function row(title, target, most, found, [with_, without] = []) {
  const verdict = found.median > most ? '**missed**' : found.max > most ? 'met in the median' : 'met';
  return [title, with_ ? range(with_) : '', without ? range(without) : '', range(found), target, verdict];
}

function page({ raw, ...about }) {
  const ratio = (title, key) => {
    const both = ['with', 'without'].map((name) => of(raw, (found) => found[name][key]));
    return row(title, '≤ 1.02 ×', 1.02, of(raw, (found) => found.with[key] / found.without[key]), both);
  };
  const rows = [
    ratio('CPU of a handshake (µs)', 'idle'),
    ratio('CPU per delivery, flat out (µs)', 'unicast'),
    ratio('CPU per delivery, 10,000 messages a second (µs)', 'open-loop'),
    row('CPU of a scrape (ms)', '< 5', 5, of(raw, ({ view }) => view.scrape)),
    row('99th percentile: buckets between the two', '≤ 1', 1, of(raw, ({ view }) => view.apart)),
  ];
  const p99 = (key) => range(of(raw, ({ view }) => view[key]));
  return `# What metrics, spans and logs cost

\`make bench-observe\` generates this page: ${raw.length} ${raw.length === 1 ? 'repeat' : 'repeats'} with ${connections.toLocaleString('en-US')} connections, \`log.level\` at \`info\`. Both
builds are of one commit: the one without has a library of metrics whose counters and histograms do nothing, and no spans or
log lines; it still reads the clock once per read of the subscription and once per measured delivery. Figures are medians
(minimum–maximum); ratios are the median of the ratios in one repeat. A ratio below 1 shows what the layout of a build and the
machine do to these figures: the cost is less than that.

${table(['', 'with', 'without', 'compared', 'target', 'result'], rows)}

At 10,000 messages a second \`tidings_delivery_seconds\` puts the 99th percentile at or below ${p99('p99')} ms, from one
delivery in 32. The clients measure ${p99('clients')} ms from the scheduled time of the publication: their figure includes
the publisher, Redis, and the load generator's own share.

${environment(about)}`;
}

function write(measured) {
  mkdirSync(join(folder, 'raw'), { recursive: true });
  writeFileSync(path, `${JSON.stringify(measured, null, 2)}\n`);
  writeFileSync(join(folder, 'observe.md'), page(measured));
}

if (values.render) {
  write(JSON.parse(readFileSync(path, 'utf8')));
} else {
  build();
  await measureAll({ at: new Date().toISOString(), load: os.loadavg()[0], machine: machine() });
}
console.log(`written: ${folder}/observe.md`);
