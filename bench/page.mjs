// Renders docs/benchmarks/README.md and its plots from the raw lines.

import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import { PEERS, peersOf, promisesOf, ratiosOf, tableOf } from './figures.mjs';
import { plot } from './plot.mjs';
import { scenarios } from './scenarios.mjs';
import { rowsOf } from './sessions.mjs';
import { range, table } from './text.mjs';

const PINNED = 'The server is pinned to one core, the load generator and Redis to the other.';

function read(folder, scenario) {
  const path = join(folder, 'raw', `${scenario.name}.jsonl`);
  if (!existsSync(path)) return [];
  const [about, ...lines] = readFileSync(path, 'utf8').trim().split('\n').map((line) => JSON.parse(line));
  return [{ scenario, about, lines }];
}

function ratiosText(scenario, lines) {
  if (!scenario.against) return '';
  const rows = ratiosOf(scenario, lines).map(({ label, cells }) => [label, ...cells.map(range)]);
  const head = ['', ...scenario.metrics.map(({ name }) => `${name} (×)`)];
  return `\nRelative to ${scenario.against} in the same repeat:\n\n${table(head, rows)}\n`;
}

function sectionOf({ scenario, lines }) {
  const head = ['', ...scenario.metrics.map(({ name, unit }) => (unit ? `${name} (${unit})` : name))];
  const rows = tableOf(scenario, lines);
  const flags = [...new Set(lines.map((line) => line.flags))];
  const cores = rowsOf(scenario)[0].pinned ? PINNED : 'No process is pinned.';
  const repeats = new Set(lines.map(({ repeat }) => repeat)).size;
  return `## ${scenario.title}

${scenario.text} ${cores}
${repeats === 1 ? 'Measured once.' : `Median of ${repeats} (minimum–maximum).`}

${table(head, rows.map(({ label, cells }) => [label, ...cells.map(range)]))}
${ratiosText(scenario, lines)}
![${scenario.title}](${scenario.name}.svg)

\`\`\`sh
node bench/run.mjs --only ${scenario.name} --repeats ${repeats}
${flags.map((flag) => `# tidings load ${flag}`).join('\n')}
\`\`\`
`;
}

function plotOf({ scenario, lines }) {
  const rows = tableOf(scenario, lines);
  const panels = scenario.metrics.map((metric, at) => ({
    ...metric,
    bars: rows.map(({ label, cells }) => ({ label, ...cells[at] })),
  }));
  return plot(scenario.title, panels.filter(({ key }) => key !== 'busy'));
}

function promises(runs) {
  const rows = runs.flatMap(({ scenario, lines }) =>
    promisesOf(scenario, lines).map(({ what, promised, unit, found, verdict }) => [
      scenario.title, what, promised, `${range(found)} ${unit}`.trim(), verdict,
    ]),
  );
  return table(['scenario', 'metric', 'target', 'measured', 'result'], rows);
}

function cellOf({ found, waited, isWorse }) {
  if (!found) return '–';
  if (waited) return `undecided: ${waited} was not the bottleneck`;
  return isWorse ? `**${range(found)}**` : range(found);
}

function peers(runs) {
  const rows = runs.flatMap(({ scenario, lines }) =>
    peersOf(scenario, lines).map(({ metric: { name, isRate }, cells }) => [
      scenario.title, name, isRate ? 'above 1' : 'below 1', ...cells.map(cellOf),
    ]),
  );
  return table(['scenario', 'metric', 'tidings is better', ...PEERS], rows);
}

// Where a peer was not installed, its version is missing.
function machine(runs) {
  const all = {};
  for (const { versions, ...hardware } of runs.map(({ about }) => about.machine)) {
    for (const [name, value] of Object.entries({ ...hardware, ...versions })) {
      if ((all[name] ??= value) !== value) throw new Error(`raw lines of different machines: ${name} ${all[name]}, ${value}`);
    }
  }
  const { cpu, cores, memory, kernel, ...versions } = all;
  const list = Object.entries(versions).map(([name, version]) => `${name} ${version}`);
  return `${cpu}, ${cores} cores, ${memory}; Linux ${kernel}. ${list.join(', ')}.`;
}

// The runs of other servers that failed, of all.
function repeated(runs) {
  const lines = runs.flatMap((run) => run.lines);
  const of = (server) => lines.filter((line) => line.server === server && line.failed > 0).reduce((sum, { failed }) => sum + failed, 0);
  const failed = PEERS.map((server) => [server, of(server)]).filter(([, count]) => count > 0);
  return failed.length ? failed.map(([server, count]) => `${server}: ${count}`).join(', ') : 'none';
}

export function render(folder) {
  const runs = scenarios.flatMap((scenario) => read(folder, scenario));
  if (runs.length === 0) throw new Error(`${folder}/raw is empty`);
  const dates = runs.map(({ about }) => about.at.slice(0, 10)).toSorted();
  const loads = runs.map(({ about }) => about.load).toSorted((a, b) => a - b);
  const text = `# Benchmarks

\`make bench\` generates this page, its plots and the lines in [raw](raw), which contain every report in full. The figures
are from one machine at one time: compare the ratios between servers within a repeat, and their spread.

Related pages: [cost](cost.md) beside an earlier build, the cost of [metrics and logs](observe.md), the [inbox](inbox.md), the
clients of [other protocols](dialects.md), [instruction counts](instructions.md) of single steps, [CPU profiles](profile.md),
and the [choice](choices.md) of runtime and allocator.

## Targets

A ratio compares tidings with the other server in the same repeat: median (minimum–maximum), or the single value of one
measurement. *Met* means in every repeat.

${promises(runs)}

## Other servers

Tidings relative to each other server: the ratio in the same repeat. **Bold**: the other server is better, in the median.

${peers(runs)}

## Servers

| server | input | token of a client | configuration |
| --- | --- | --- | --- |
| tidings | PUBLISH to Redis | a JWT, verified | all features on: heartbeats, presence in Redis, metrics, limits on client input and on queued data; no connection limit; plaintext |
| floor | PUBLISH to Redis | not verified | [a minimal server](../../bench/floor.rs): one thread, no state, checks or limits |
| ws | PUBLISH to Redis | a JWT, verified | [ws and ioredis](../../bench/peers/ws.mjs): a heartbeat; no presence, payloads forwarded unparsed |
| socketio | PUBLISH to Redis | a JWT, verified | [socket.io and ioredis](../../bench/peers/socketio.mjs): heartbeats, rooms; no presence |
| nchan | POST /pub/USER to nginx | none | [Nchan](../../bench/peers/nchan.mjs), Debian's module for nginx: one worker, messages in its memory, not stored; WebSocket clients of /sub/USER, heartbeats; no presence |
| nchan-redis | POST /pub/USER to nginx | none | the same with Redis, where Nchan stores every message (\`nchan_redis_pass\`) |
| nats | PUB over TCP | none | [NATS](../../bench/servers.mjs), Debian's package: not stored (no JetStream); its protocol over WebSocket, one subscription per client, heartbeats; no presence |

Nchan and NATS are skipped where Debian's libnginx-mod-nchan or nats-server is missing. As they run here, both let every
client subscribe to every user's messages. Both can check a client, Nchan by a request to a backend and NATS by a JWT with
permissions, at a cost that these figures do not contain; those of tidings, ws and socketio contain it.

Each server receives messages by its own input, pipelined: Nchan by requests on 16 connections that are kept alive, NATS on
one. Nchan and NATS spend CPU on that, where for the other servers Redis does: "CPU with Redis" adds up both. nchan-redis
stores each message: its counterparts are the durable notifications below, while the table above compares it with PUBLISH.
nginx allocates about 400 bytes for each possible connection at its start; memory per idle connection does not contain them.

sockudo is not compared: the load generator has no client of the Pusher protocol, whose publishers sign each request.

## Method

Each run uses a fresh Redis and a fresh server. The servers take turns within every repeat, each repeat beginning with a
different one. \`tidings load\` holds the clients, publishes, and checks every delivery: a lost, duplicated or reordered
message or a closed connection aborts the benchmark with an error, so every figure here is from a run without errors. Runs of
other servers that failed so, and were repeated: ${repeated(runs)}.
Unless stated otherwise there are 10,000 connections and payloads of 128 bytes.

CPU is the time that the scheduler counts for the server's threads in \`/proc\`, and that Redis reports for itself
(\`INFO\`); memory is the server's resident set. CPU per handshake includes all work of the server until the connections
have been idle for a while, including presence. Latency is measured from the scheduled time of a message and includes the
load generator's own share, the same for every server: it checks its schedule every 0.2 ms. "Server busy" is the share of
its core; if it is far below 100 %, the load generator and Redis were the bottleneck, and deliveries per second do not
characterize the server. The commands below omit the addresses of the server and Redis, the server's process id
(\`--server-pid\`), and for socket.io, Nchan and NATS \`--client\`.

${runs.map(sectionOf).join('\n')}
## Environment

${machine(runs)}

Measured ${[...new Set(dates)].join(', ')}. The load average before the first run was ${loads.at(-1).toFixed(1)}: other
processes on the machine contribute to the spread.
`;
  writeFileSync(join(folder, 'README.md'), text);
  for (const run of runs) writeFileSync(join(folder, `${run.scenario.name}.svg`), plotOf(run));
}
