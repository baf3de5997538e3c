// Runs one session with one server: fresh processes, and one line per phase.

import { setTimeout as sleep } from 'node:timers/promises';

import { LOAD_CORE, SERVER_CORE, residentBytes, start, startRedis, startServer, stop, tidings } from './servers.mjs';

const QUICK_CONNECTIONS = 1_000;
const QUICK_DURATION = '1s';
const QUICK_SHARE = 10;

// From the last close until memory is read: longer than presence takes to register a disconnection.
const EMPTY_MS = 8_000;
const WATCH_MS = 50;

// For --quick: fewer connections, shorter windows.
function shortened(flags) {
  return flags
    .replace(/--connections (\d+)/, (_, count) => `--connections ${Math.min(count, QUICK_CONNECTIONS)}`)
    .replace(/--stored (\d+)/, (_, count) => `--stored ${count / QUICK_SHARE}`)
    .replace(/--duration \d+s/, `--duration ${QUICK_DURATION}`);
}

// One report per phase: the first phase has its own flags, the others follow with --then on its connections.
async function load(server, { connect, phases }, core) {
  const [first, ...others] = phases.map(({ flags }) => flags);
  const flags = [...`${connect} ${first} --json`.split(' '), ...others.flatMap((other) => ['--then', other])];
  const command = [tidings, 'load', ...server.load, '--server-pid', server.pids.join(), ...flags];
  const child = start(command, { core, env: server.env });
  const code = await child.done;
  const { stdout, stderr } = child.output;
  if (code !== 0) throw new Error(`${command.join(' ')}\nended with ${code}: ${stderr}${stdout}`);
  return stdout.trim().split('\n').map((line) => JSON.parse(line));
}

// Rounds of connecting and disconnecting, and the memory before them, and after the first and the last.
async function rounds(server, session, core) {
  const [empty, before] = [[], residentBytes(server)];
  let reports;
  for (let round = 1; round <= session.rounds; round += 1) {
    reports = await load(server, session, core);
    if (round === 1 || round === session.rounds) {
      await sleep(EMPTY_MS);
      empty.push(residentBytes(server));
    }
  }
  return { reports, extra: { before, empty } };
}

async function watched(server, session, core) {
  let peak = 0;
  const watch = setInterval(() => (peak = Math.max(peak, residentBytes(server))), WATCH_MS);
  const reports = await load(server, session, core).finally(() => clearInterval(watch));
  return { reports, extra: { peak } };
}

// Writes to sockets are `sendto` or `writev`; a `write` wakes one of the server's own threads.
async function traced(server, session, core) {
  const counted = ['-c', '-U', 'calls,name', '-e', 'trace=sendto,writev,sendmsg'];
  const strace = start(['strace', '-f', ...counted, '-p', `${server.child.pid}`]);
  const reports = await load(server, session, core);
  await stop(strace, 'SIGINT');
  const writes = /^\s*(\d+)\s+total$/m.exec(strace.output.stderr)?.[1];
  if (!writes) throw new Error(`strace counted nothing: ${strace.output.stderr}`);
  return { reports, extra: { writes: Number(writes) } };
}

function quickened({ connect, phases, ...session }) {
  return {
    ...session,
    connect: shortened(connect),
    phases: phases.map((phase) => ({ ...phase, flags: shortened(phase.flags) })),
  };
}

// `env` applies only to the server.
export async function measure(wanted, name, { quick, env }) {
  const session = quick ? quickened(wanted) : wanted;
  const [serverCore, loadCore] = session.pinned ? [SERVER_CORE, LOAD_CORE] : [];
  const redis = await startRedis(loadCore);
  const server = await startServer(name, redis, serverCore, env);
  const way = session.rounds ? rounds : session.tool ? traced : watched;
  // SIGKILL, because the drain is not measured.
  const end = () => Promise.all([stop(server.child, 'SIGKILL'), stop(redis.child)]);
  const { reports, extra } = await way(server, session, loadCore).catch(async (error) => {
    await end().catch(() => {});
    throw error;
  });
  await end();
  return session.phases.map(({ scenario, variant = '', flags }, at) => {
    return { scenario, line: { server: name, variant, flags: `${session.connect} ${flags}`, report: reports[at], extra } };
  });
}
