// Renders docs/benchmarks/README.md and its plots from the raw lines.

import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import { promisesOf, ratiosOf, tableOf } from './figures.mjs';
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

function machine({ about }) {
  const { cpu, cores, memory, kernel, versions } = about.machine;
  const list = Object.entries(versions).map(([name, version]) => `${name} ${version}`);
  return `${cpu}, ${cores} cores, ${memory}; Linux ${kernel}. ${list.join(', ')}.`;
}

export function render(folder) {
  const runs = scenarios.flatMap((scenario) => read(folder, scenario));
  if (runs.length === 0) throw new Error(`${folder}/raw is empty`);
  const machines = new Set(runs.map(machine));
  if (machines.size > 1) throw new Error(`raw lines of different machines: ${[...machines].join('\n')}`);
  const dates = runs.map(({ about }) => about.at.slice(0, 10)).toSorted();
  const loads = runs.map(({ about }) => about.load).toSorted((a, b) => a - b);
  const text = `# Benchmarks

\`make bench\` generates this page, its plots and the lines in [raw](raw), which contain every report in full. The figures
are from one machine at one time: compare the ratios between servers within a repeat, and their spread.

Related pages: [instruction counts](instructions.md) of single steps, [CPU profiles](profile.md), and the
[choice](choices.md) of runtime and allocator.

## Targets

A ratio compares tidings with the other server in the same repeat: median (minimum–maximum), or the single value of one
measurement. *Met* means in every repeat.

${promises(runs)}

## Servers

| server | configuration |
| --- | --- |
| tidings | all features on: token verification, heartbeats, presence in Redis, metrics, limits on client input and on queued data; no connection limit; plaintext |
| floor | [a minimal server](../../bench/floor.rs): one thread, no token verification, no state, checks or limits |
| ws | [ws and ioredis](../../bench/peers/ws.mjs): token verification, a heartbeat; no presence, payloads forwarded unparsed |
| socketio | [socket.io and ioredis](../../bench/peers/socketio.mjs): token verification, heartbeats, rooms; no presence |

## Method

Each run uses a fresh Redis and a fresh server. The servers take turns within every repeat, each repeat beginning with a
different one. \`tidings load\` holds the clients, publishes, and checks every delivery: a lost, duplicated or reordered
message or a closed connection aborts the benchmark with an error, so every figure here is from a run without errors.
Unless stated otherwise there are 10,000 connections and payloads of 128 bytes.

CPU is the time that the scheduler counts for the server's threads in \`/proc\`, and that Redis reports for itself
(\`INFO\`); memory is the server's resident set. CPU per handshake includes all work of the server until the connections
have been idle for a while, including presence. Latency is measured from the scheduled time of a message and includes the
load generator's own share, the same for every server: it checks its schedule every 0.2 ms. "Server busy" is the share of
its core; if it is far below 100 %, the load generator and Redis were the bottleneck, and deliveries per second do not
characterize the server. The commands below omit the addresses of the server and Redis, the server's process id
(\`--server-pid\`), and for socket.io \`--client socket-io\` with its path.

${runs.map(sectionOf).join('\n')}
## Environment

${machine(runs[0])}

Measured ${[...new Set(dates)].join(', ')}. The load average before the first run was ${loads.at(-1).toFixed(1)}: other
processes on the machine contribute to the spread.
`;
  writeFileSync(join(folder, 'README.md'), text);
  for (const run of runs) writeFileSync(join(folder, `${run.scenario.name}.svg`), plotOf(run));
}
