// Compares tidings in several environments, interleaved: allocators, thread counts, builds.
//
// usage: node bench/compare.mjs --only SCENARIO [--repeats N] [--unpinned] LABEL[:NAME=VALUE]…
//   for example: node bench/compare.mjs --only churn glibc mimalloc:LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libmimalloc.so.2
//   or, with another build: node bench/compare.mjs --only unicast before:BINARY=../before/target/release/tidings now

import { join } from 'node:path';
import { parseArgs } from 'node:util';

import { labelOf, spread } from './figures.mjs';
import { measure } from './measure.mjs';
import { scenarios } from './scenarios.mjs';
import { sessionsOf } from './sessions.mjs';
import { range, table } from './text.mjs';

process.chdir(join(import.meta.dirname, '..'));

const text = { type: 'string' };
const options = { only: text, repeats: { ...text, default: '3' }, unpinned: { type: 'boolean', default: false } };
const { values, positionals } = parseArgs({ options, allowPositionals: true });

function wayOf(argument) {
  const [, label, name, value] = /^([^:]+)(?::(\w+)=(.*))?$/.exec(argument);
  return { label, env: name ? { [name]: value } : {}, lines: [] };
}

try {
  const scenario = scenarios.find(({ name }) => name === values.only);
  if (!scenario) throw new Error(`--only must be one of ${scenarios.map(({ name }) => name).join(', ')}`);
  const ways = positionals.map(wayOf);
  for (let repeat = 0; repeat < Number(values.repeats); repeat += 1) {
    for (let turn = 0; turn < ways.length; turn += 1) {
      const way = ways[(turn + repeat) % ways.length];
      for (const session of sessionsOf([values.only])) {
        const pinned = session.pinned && !values.unpinned;
        const measured = await measure({ ...session, pinned }, 'tidings', { env: way.env });
        way.lines.push(...measured.map(({ line }) => line));
      }
    }
  }
  const head = ['', ...scenario.metrics.map(({ name, unit }) => (unit ? `${name} (${unit})` : name))];
  const rows = ways.flatMap(({ label, lines }) =>
    [...new Set(lines.map(({ variant }) => variant))].map((variant) => {
      const mine = lines.filter((line) => line.variant === variant);
      const cells = scenario.metrics.map(({ of }) => range(spread(mine.map(({ report, extra }) => of(report, extra)))));
      return [labelOf({ server: label, variant }), ...cells];
    }),
  );
  console.log(table(head, rows));
} catch (error) {
  console.error(`compare: ${error.message}`);
  process.exit(1);
}
