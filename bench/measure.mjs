// One run of one scenario against one server: fresh processes, one report.

import { setTimeout as sleep } from 'node:timers/promises';

import { LOAD_CORE, SERVER_CORE, residentBytes, start, startRedis, startServer, stop, tidings } from './servers.mjs';

const COMMON = '--connections 10000 --connect-rate 4000 --settle 1s --duration 5s --json';
const QUICK = '--connections 1000 --duration 2s --json';
const QUICK_CONNECTIONS = 1_000;

// From the last close until memory is read: longer than presence takes to see that somebody left.
const EMPTY_MS = 8_000;
const WATCH_MS = 50;

// A later flag wins over an earlier one of the same name.
function flagsOf(scenario, variant, quick) {
  const text = [quick ? QUICK : COMMON, scenario.flags, variant].join(' ');
  const flags = new Map([...text.matchAll(/(--\S+)(?: (?!--)(\S+))?/g)].map(([, name, value]) => [name, value]));
  if (quick) flags.set('--connections', `${Math.min(flags.get('--connections'), QUICK_CONNECTIONS)}`);
  return [...flags].flat().filter((part) => part !== undefined);
}

async function load(server, flags, core) {
  const command = [tidings, 'load', ...server.load, '--server-pid', `${server.child.pid}`, ...flags];
  const child = start(command, { core, env: server.env });
  const code = await child.done;
  const { stdout, stderr } = child.output;
  if (code !== 0) throw new Error(`${command.join(' ')}\nended with ${code}: ${stderr}${stdout}`);
  return JSON.parse(stdout);
}

// Rounds of connections that come and go, and the memory that is left after the first and the last.
async function rounds(count, server, flags, core) {
  const empty = [];
  let report;
  for (let round = 1; round <= count; round += 1) {
    report = await load(server, flags, core);
    if (round === 1 || round === count) {
      await sleep(EMPTY_MS);
      empty.push(residentBytes(server.child));
    }
  }
  return { report, extra: { empty } };
}

async function watched(server, flags, core) {
  let peak = 0;
  const watch = setInterval(() => (peak = Math.max(peak, residentBytes(server.child))), WATCH_MS);
  const report = await load(server, flags, core).finally(() => clearInterval(watch));
  return { report, extra: { peak } };
}

// What goes to a socket is `sendto` or `writev`; a `write` wakes one of the server's own threads.
async function traced(server, flags, core) {
  const counted = ['-c', '-U', 'calls,name', '-e', 'trace=sendto,writev,sendmsg'];
  const strace = start(['strace', '-f', ...counted, '-p', `${server.child.pid}`]);
  const report = await load(server, flags, core);
  await stop(strace, 'SIGINT');
  const writes = /^\s*(\d+)\s+total$/m.exec(strace.output.stderr)?.[1];
  if (!writes) throw new Error(`strace counted nothing: ${strace.output.stderr}`);
  return { report, extra: { writes: Number(writes) } };
}

export async function measure(scenario, row, quick) {
  const [serverCore, loadCore] = scenario.pinned ? [SERVER_CORE, LOAD_CORE] : [];
  const redis = await startRedis(loadCore);
  const server = await startServer(row.server, redis, serverCore);
  const flags = flagsOf(scenario, row.flags, quick);
  const { report, extra } = scenario.rounds
    ? await rounds(scenario.rounds, server, flags, loadCore)
    : await (scenario.tool === 'strace' ? traced : watched)(server, flags, loadCore);
  await stop(server.child);
  await stop(redis.child);
  return { server: row.server, variant: row.variant, flags: flags.join(' '), report, extra };
}
