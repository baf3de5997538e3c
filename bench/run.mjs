// Runs every benchmark: builds, measures, and writes docs/benchmarks.
//
// usage: node bench/run.mjs [--repeats N] [--only SCENARIO,…] [--quick] [--render]
//   --quick   1,000 connections, short runs, one repeat: a smoke test; writes to target/bench-quick
//   --render  renders the page from the raw lines, without measuring

import { execFileSync } from 'node:child_process';
import { appendFileSync, mkdirSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

import { writeCapacity } from './capacity.mjs';
import { labelOf } from './figures.mjs';
import { machine } from './machine.mjs';
import { measure } from './measure.mjs';
import { render } from './page.mjs';
import { scenarios } from './scenarios.mjs';
import { has, missing } from './servers.mjs';
import { sessionsOf } from './sessions.mjs';
import { figure } from './text.mjs';

process.chdir(join(import.meta.dirname, '..'));

const run = (command, ...args) => execFileSync(command, args, { stdio: 'inherit' });

function options() {
  const text = { type: 'string' };
  const flag = { type: 'boolean', default: false };
  const { values } = parseArgs({ options: { repeats: text, only: text, quick: flag, render: flag } });
  const repeats = Number(values.repeats ?? (values.quick ? 1 : 5));
  if (!Number.isInteger(repeats) || repeats < 1) throw new Error('--repeats must be a whole number, at least 1');
  const names = scenarios.map(({ name }) => name);
  const only = values.only?.split(',');
  if (only?.some((name) => !names.includes(name))) throw new Error(`--only takes a list of ${names.join(', ')}`);
  return { ...values, only, repeats, folder: values.quick ? 'target/bench-quick' : 'docs/benchmarks' };
}

function prepare() {
  for (const tool of ['taskset', 'redis-server']) if (!has(tool)) throw new Error(`${tool} is missing`);
  if (os.cpus().length < 2) throw new Error('two cores are required: one for the server, one for the load');
  // Separately: a joint build would enable dependency features in the binary that only the example needs.
  run('cargo', 'build', '--release', '--locked', '--bin', 'tidings');
  run('cargo', 'build', '--release', '--locked', '--example', 'floor');
  run('npm', 'ci', '--prefix', 'bench/peers', '--no-audit', '--no-fund', '--silent');
}

// Without what needs something that is not installed.
function wanted({ only }) {
  const isThere = (what, tool) => {
    if (tool) console.log(`${what}: skipped, ${tool} is missing`);
    return !tool;
  };
  return sessionsOf(only).flatMap((session) => {
    const names = session.phases.map(({ scenario }) => scenario).join(', ');
    if (session.tool && !isThere(names, has(session.tool) ? undefined : session.tool)) return [];
    return [{ ...session, servers: session.servers.filter((server) => isThere(`${names} of ${server}`, missing(server))) }];
  });
}

// Raw lines are written immediately, so that a later failure does not lose them.
function begin(name, { folder, repeats, quick, load }) {
  const path = join(folder, 'raw', `${name}.jsonl`);
  const about = { at: new Date().toISOString(), repeats, quick, load, machine: machine() };
  writeFileSync(path, `${JSON.stringify(about)}\n`);
  return path;
}

function summary(name, { report, extra }) {
  const { metrics } = scenarios.find((scenario) => scenario.name === name);
  return metrics.map(({ name, unit, of }) => `${name} ${figure(of(report, extra))} ${unit}`.trim()).join(', ');
}

// A run of another server that fails, as when it delivers a message twice, is repeated so often at most.
const PEER_RUNS = 3;
const isPeer = (server) => !server.startsWith('tidings') && server !== 'floor';

// Lines of a run, with the number of those that failed before.
async function measured(session, server, options) {
  for (let failed = 0; ; failed += 1) {
    try {
      const lines = await measure(session, server, options);
      return lines.map(({ scenario, line }, at) => ({ scenario, line: { ...line, failed: at === 0 ? failed : 0 } }));
    } catch (error) {
      if (!isPeer(server) || failed + 1 === PEER_RUNS) throw error;
      console.log(`${server}: its run is repeated: ${error.message}`);
    }
  }
}

async function measureAll(chosen) {
  const options = { ...chosen, load: os.loadavg()[0] };
  mkdirSync(join(options.folder, 'raw'), { recursive: true });
  const paths = new Map();
  const begun = Date.now();
  const sessions = wanted(options);
  for (let repeat = 0; repeat < options.repeats; repeat += 1) {
    for (const session of sessions) {
      for (let turn = 0; turn < session.servers.length; turn += 1) {
        // The order rotates, so that no server always follows the same one.
        const server = session.servers[(turn + repeat) % session.servers.length];
        for (const { scenario, line } of await measured(session, server, options)) {
          if (!paths.has(scenario)) paths.set(scenario, begin(scenario, options));
          appendFileSync(paths.get(scenario), `${JSON.stringify({ repeat, ...line })}\n`);
          const seconds = Math.round((Date.now() - begun) / 1_000);
          const place = `[${seconds} s] ${repeat + 1}/${options.repeats} ${scenario}: ${labelOf(line)}`;
          console.log(`${place}: ${summary(scenario, line)}`);
        }
      }
    }
  }
}

try {
  const chosen = options();
  if (!chosen.render) {
    prepare();
    await measureAll(chosen);
  }
  render(chosen.folder);
  if (!chosen.quick) writeCapacity();
  console.log(`written: ${chosen.folder}/README.md`);
} catch (error) {
  console.error(`bench: ${error.message}`);
  process.exit(1);
}
