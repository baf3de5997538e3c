// docs/benchmarks/README.md and its plots, from the raw lines alone.

import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import { promisesOf, ratiosOf, tableOf } from './figures.mjs';
import { plot } from './plot.mjs';
import { scenarios } from './scenarios.mjs';
import { rowsOf } from './sessions.mjs';
import { range, table } from './text.mjs';

const PINNED = 'The server has one core, the load generator and Redis the other.';

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
  return `\nTo ${scenario.against} in the same repeat:\n\n${table(head, rows)}\n`;
}

function sectionOf({ scenario, lines }) {
  const head = ['', ...scenario.metrics.map(({ name, unit }) => (unit ? `${name} (${unit})` : name))];
  const rows = tableOf(scenario, lines);
  const flags = [...new Set(lines.map((line) => line.flags))];
  const cores = rowsOf(scenario)[0].pinned ? PINNED : 'Nothing is pinned.';
  const repeats = new Set(lines.map(({ repeat }) => repeat)).size;
  return `## ${scenario.title}

${scenario.text} ${cores}
${repeats === 1 ? 'Measured once.' : `Median of ${repeats} (least–most).`}

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
  return table(['', 'what', 'promised', 'measured', ''], rows);
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

\`make bench\` makes this page, its plots and the lines in [raw](raw), which hold every report in full. Figures are of one
machine at one time: what counts are the ratios between servers of the same repeat, and how far they spread.

Beside it: [instructions](instructions.md) of single steps, [profiles](profile.md) that say where the CPU goes, and the
[choices](choices.md) of runtime and allocator.

## What was promised

A ratio is of tidings to the other server in the same repeat: its median (least–most), or the one value where it was
measured once. *Met* means in every repeat.

${promises(runs)}

## Who is compared

| | |
| --- | --- |
| tidings | everything on: tokens verified, heartbeats, presence in Redis, metrics, bounds of what clients send and of what waits; no limit of connections is set; plaintext |
| floor | [the least program](../../bench/floor.rs): one thread, no token verified, nothing kept, checked or bounded |
| ws | [ws and ioredis](../../bench/peers/ws.mjs): tokens verified, a heartbeat; no presence, payloads passed on unparsed |
| socketio | [socket.io and ioredis](../../bench/peers/socketio.mjs): tokens verified, heartbeats, rooms; no presence |

## How

Each run has a Redis and a server of its own. The servers take turns within every repeat, and another begins each time.
\`tidings load\` holds the clients, publishes, and checks every delivery: a run in which one is lost, comes twice or out
of order, or in which a connection is closed, ends everything with an error. So every figure here is of a faultless run.
Connections are 10,000 and payloads 128 bytes where nothing else is said.

CPU is what the scheduler counts for the server's threads in \`/proc\`, and what Redis counts for itself (\`INFO\`); memory
is the server's resident set. A handshake is charged with all that the server does until the connections have been idle
for a while, presence included. Latency counts from when a message was due, and holds the load generator's own share,
the same for every server: it looks at its schedule every
0.2 ms. "Server busy" is the share of its core; where it is far below 100 %, the load generator and Redis were the
bottleneck, and deliveries per second say nothing about the server. The commands below leave out where the server and
Redis are, its process id (\`--server-pid\`), and for socket.io \`--client socket-io\` with its path.

${runs.map(sectionOf).join('\n')}
## Where

${machine(runs[0])}

Measured ${[...new Set(dates)].join(', ')}. The load average before the first run was ${loads.at(-1).toFixed(1)}: what
else ran here is in the spread.
`;
  writeFileSync(join(folder, 'README.md'), text);
  for (const run of runs) writeFileSync(join(folder, `${run.scenario.name}.svg`), plotOf(run));
}
