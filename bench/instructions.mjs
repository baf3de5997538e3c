// Writes instruction counts of the hot path to docs/benchmarks: stable even on a noisy machine.
//
// usage: node bench/instructions.mjs [--check]
//   --check   writes nothing, and fails if a count exceeds the recorded one by more than 5 %

import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

import { figure, table } from './text.mjs';

process.chdir(join(import.meta.dirname, '..'));

const COUNTS = 'docs/benchmarks/raw/instructions.json';
const PAGE = 'docs/benchmarks/instructions.md';
const MOST = 1.05;

// Iterations of each benchmark: TIMES in benches/instructions.rs.
const TIMES = 100;

const WHAT = {
  parse: 'read one message from Redis',
  lookup_hit: 'look up a user with a connection',
  lookup_miss: 'look up a user without a connection',
  check: 'check that a payload of 128 bytes is JSON',
  encode: 'wrap it into a WebSocket frame',
  push: 'queue a frame and write it to the socket',
  route_hit: 'complete delivery of a message to one connection, from the channel name to the socket',
  route_miss: 'complete handling of a message without a local recipient',
};

const output = (command, ...args) => execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });

function versionOf(command) {
  try {
    return /\d+\.\d+\.\d+/.exec(output(command, '--version'))[0];
  } catch {
    return undefined;
  }
}

function prepare() {
  if (!versionOf('valgrind')) throw new Error('valgrind is missing: apt-get install valgrind');
  const wanted = /name = "gungraun"\nversion = "([^"]+)"/.exec(readFileSync('Cargo.lock', 'utf8'))[1];
  const runner = versionOf('gungraun-runner');
  if (runner !== wanted) {
    const how = `cargo install gungraun-runner --version =${wanted} --locked`;
    throw new Error(`gungraun-runner ${wanted} is required, found ${runner ?? 'none'}: ${how}`);
  }
}

const instructionsOf = ({ profiles }) => profiles[0].data.total.metrics.Ir.values.new;

// Name => instructions per iteration.
function measure() {
  const text = output('cargo', 'bench', '--locked', '--bench', 'instructions', '--', '--output-format=json');
  const summaries = text.trim().split('\n').filter((line) => line.startsWith('{')).map((line) => JSON.parse(line));
  return Object.fromEntries(summaries.map((summary) => [summary.function_name, instructionsOf(summary) / TIMES]));
}

function write(found) {
  const about = { rustc: versionOf('rustc'), valgrind: versionOf('valgrind'), instructions: found };
  writeFileSync(COUNTS, `${JSON.stringify(about, null, 2)}\n`);
  const rows = Object.entries(found).map(([name, count]) => [WHAT[name] ?? name, figure(count)]);
  writeFileSync(
    PAGE,
    `# Instructions

\`make bench-instructions\` generates this page. Valgrind counts executed instructions without the kernel: the counts are
stable even on a noisy machine, for one compiler (here rustc ${about.rustc}). Payloads are 128 bytes; 10,000 users are
connected, with one connection each; each figure is the mean of ${TIMES} iterations.

${table(['operation', 'instructions'], rows)}

\`make bench-instructions ARGS=--check\` fails if a count has grown by more than 5 %.
`,
  );
}

// The benchmarks whose count grew too much.
function grown(found) {
  const { rustc, instructions } = JSON.parse(readFileSync(COUNTS, 'utf8'));
  if (rustc !== versionOf('rustc')) throw new Error(`${COUNTS} was counted with rustc ${rustc}: run without --check first`);
  return Object.entries(found).filter(([name, count]) => count > instructions[name] * MOST || !(name in instructions));
}

try {
  const { values } = parseArgs({ options: { check: { type: 'boolean', default: false } } });
  prepare();
  const found = measure();
  console.log(table(['', 'instructions'], Object.entries(found).map(([name, count]) => [name, figure(count)])));
  if (values.check) {
    const names = grown(found).map(([name]) => name);
    if (names.length > 0) throw new Error(`more than 5 % above ${COUNTS}: ${names.join(', ')}`);
  } else {
    write(found);
    console.log(`written: ${PAGE}`);
  }
} catch (error) {
  console.error(`instructions: ${error.message}`);
  process.exit(1);
}
