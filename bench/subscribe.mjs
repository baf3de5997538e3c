// Compares an instance that receives the messages of all users (pattern) with one that subscribes to the channels of its
// own (exact): connecting, and the CPU time of a fleet. Both modes alternate in one run.
//
// usage: node bench/subscribe.mjs [--repeats N] [--quick]
//   --quick   fewer connections, one repeat: a smoke test; writes to target/bench-quick

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

import { fleet } from './fleet.mjs';
import { figure, table } from './text.mjs';

process.chdir(join(import.meta.dirname, '..'));

const { values } = parseArgs({ options: { repeats: { type: 'string' }, quick: { type: 'boolean', default: false } } });
const repeats = Number(values.repeats ?? (values.quick ? 1 : 5));
const folder = values.quick ? 'target/bench-quick' : 'docs/benchmarks';
const share = values.quick ? 10 : 1;

const FLEET = 8;
const MODES = ['pattern', 'exact'];
const CONNECTS = `--connections ${10_000 / share} --connect-rate 100000 --settle 2s --warm-up 0s --duration 100ms --rate 100`;
const SPREAD = `--connections ${4_000 / share} --connect-rate 2000 --settle 1s --rate ${4_000 / share} --warm-up 1s --duration 6s`;

const median = (numbers) => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)];

// The raw figures of each repeat, by name and mode.
async function measure() {
  const raw = { handshake: [], subscribes: [], fleet: [], others: [], one: [] };
  for (let repeat = 0; repeat < repeats; repeat += 1) {
    const line = Object.fromEntries(Object.keys(raw).map((name) => [name, {}]));
    for (const mode of repeat % 2 ? MODES.toReversed() : MODES) {
      const env = { TIDINGS_REDIS__SUBSCRIBE: mode };
      const connects = await fleet(1, env, CONNECTS, { pinned: true });
      line.handshake[mode] = connects.report.server.cpu_us_per_handshake;
      line.subscribes[mode] = connects.subscribes / (10_000 / share);
      const all = await fleet(FLEET, env, SPREAD);
      line.fleet[mode] = all.report.server.cpu_us_per_delivery;
      line.others[mode] = all.missed;
      line.one[mode] = (await fleet(1, env, SPREAD)).report.server.cpu_us_per_delivery;
    }
    for (const name of Object.keys(raw)) raw[name].push(line[name]);
    console.log(`${repeat + 1}/${repeats}: ${JSON.stringify(line)}`);
  }
  return raw;
}

function measured(raw) {
  const middle = (name, mode) => median(raw[name].map((line) => line[mode]));
  const ratio = (name, over = name) => median(raw[name].map((line, at) => line.exact / raw[over][at].pattern));
  const ofOne = median(raw.fleet.map((line, at) => line.exact / raw.one[at].exact));
  const verdict = (value, most) => `${figure(value)} (at most ${most}${value > most ? ', **missed**' : ''})`;
  const both = (name) => MODES.map((mode) => figure(middle(name, mode)));
  const rows = [
    ['CPU of one handshake, µs', ...both('handshake'), verdict(ratio('handshake'), 1.25)],
    ['`SUBSCRIBE` commands per connection', ...both('subscribes'), verdict(middle('subscribes', 'exact'), 0.2)],
    [`CPU of all ${FLEET} instances per delivery, µs`, ...both('fleet'), verdict(ratio('fleet'), 0.45)],
    ['the same, against one instance with all users', '', figure(middle('one', 'exact')), verdict(ofOne, 1.5)],
    ['messages received for users of others', ...both('others'), verdict(middle('others', 'exact'), 0)],
  ];
  return table(['', 'pattern', 'exact', 'exact ÷ pattern, or the value'], rows);
}

function page(raw) {
  return `# Subscribing by pattern or to the own users

\`make bench-subscribe\` generates this page: ${repeats} repeats, in which both modes alternate; medians, and for ratios the
median of the ratios in one repeat. ${(10_000 / share).toLocaleString('en-US')} connects to one instance, as fast as possible, on a core of its own; then ${FLEET}
instances with ${(4_000 / share).toLocaleString('en-US')} connections, and ${(4_000 / share).toLocaleString('en-US')} messages a second to random users, on two cores shared with Redis and the load.

${measured(raw)}
`;
}

const raw = await measure();
mkdirSync(join(folder, 'raw'), { recursive: true });
writeFileSync(join(folder, 'raw', 'subscribe.json'), `${JSON.stringify(raw, null, 2)}\n`);
writeFileSync(join(folder, 'subscribe.md'), page(raw));
console.log(page(raw));
if (!values.quick) {
  const [before, , after] = readFileSync('docs/scale.md', 'utf8').split(/(?<=<!-- measured -->\n)([^]*)(?=\n<!-- end of measured -->)/);
  writeFileSync('docs/scale.md', `${before}${measured(raw)}${after}`);
}
