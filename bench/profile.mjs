// Profiles a server's CPU: flame graphs and shares by component, for handshakes and for unicast flat out.
//
// usage: node bench/profile.mjs      writes docs/benchmarks/profile.md and its flame graphs

import { execFileSync } from 'node:child_process';
import { mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { LOAD_CORE, SERVER_CORE, start, startRedis, startServer, stop, tidings } from './servers.mjs';
import { figure, table } from './text.mjs';

process.chdir(join(import.meta.dirname, '..'));

const FOLDER = 'docs/benchmarks';
const SCRATCH = 'target/profile';
const CONNECTIONS = 10_000;

// A sample counts for the first component with a function in the stack. From the most specific to the least.
const KERNEL = [
  ['kernel: closing sockets', /^(__x64_sys_close|__fput|tcp_close|inet_release)/],
  ['kernel: accepting', /^(__x64_sys_accept4?|__sys_accept4|do_accept)$/],
  ['kernel: writing to sockets', /^(__x64_sys_(sendto|write|sendmsg)|__sys_send(to|msg)|do_writev|ksys_write)$/],
  ['kernel: reading from sockets', /^(__x64_sys_(recvfrom|read)|__sys_recvfrom|do_readv|ksys_read)$/],
  ['kernel: waiting for events', /^(__x64_sys_epoll_|do_epoll_)/],
  ['kernel: socket options', /^(__x64_sys_|__sys_|do_sock_)setsockopt$/],
  ['kernel: waking threads', /^__x64_sys_futex/],
  ['kernel: memory', /^(exc_page_fault|asm_exc_page_fault|__x64_sys_(mmap|munmap|madvise|brk|mprotect))/],
  ['kernel: other', /^(entry_SYSCALL_64|do_syscall_64|asm_|irq_|sysvec_)/],
];
const CODE = [
  ['token', /(auth::|jsonwebtoken|aws_lc|HMAC|sha256|SHA256|subtle)/i],
  ['presence and Redis commands', /(presence|redis::(aio|client|cmd|pipeline|link)|(history|limits)::redis|(outbox|revocation|sessions)::)/],
  ['reading pushes from Redis', /(redis::(resp|stream|subscriber)::|backplane::)/],
  ['checking JSON', /(is_json|serde_json)/],
  ['encoding', /(protocol::|Encoded)/],
  ['registry', /(delivery::registry|dashmap)/],
  ['send queue', /delivery::/],
  ['router', /router::/],
  ['HTTP', /(hyper|httparse|axum|tower|http::|server::)/],
  ['WebSocket', /(tungstenite|connection::)/],
  ['allocator', /^(malloc|_?_?free|calloc|realloc|_int_|cfree|tcache)/],
  ['runtime', /(tokio|mio|std::thread)/],
];

const profiles = [
  {
    name: 'handshake',
    title: 'Handshakes',
    text: '10,000 handshakes at 2,000 a second, each with a token, including the resulting presence updates.',
    flags: '--connections 10000 --connect-rate 2000 --settle 2s --warm-up 0s --duration 100ms --rate 100',
    while: async (connected, watch) => {
      watch();
      await connected;
      await sleep(1_000);
    },
  },
  {
    name: 'unicast',
    title: 'Unicast, flat out',
    text: '10,000 connections; messages to random users, as fast as deliveries return.',
    flags: '--connections 10000 --connect-rate 100000 --settle 1s --warm-up 1s --duration 6s --flat-out --window 2000',
    while: async (connected, watch) => {
      await connected;
      await sleep(2_000);
      watch();
      await sleep(5_000);
    },
  },
];

const HEAD = `# CPU profiles

\`make bench-profile\` generates this page: \`perf\` samples one instance, pinned to a core, while the load generator and
Redis use the other. Inlined code counts for the enclosing function. [instructions.md](instructions.md) counts the
instructions of single steps. The [README](README.md) lists targets and measurements.
`;

function need(tool, how) {
  try {
    execFileSync('which', [tool]);
  } catch {
    throw new Error(`${tool} is missing: ${how}`);
  }
}

function output(command, args, input) {
  return execFileSync(command, args, { input, maxBuffer: 2 ** 31, stdio: ['pipe', 'pipe', 'ignore'] });
}

async function connected(server, load) {
  while (readdirSync(`/proc/${server.pid}/fd`).length < CONNECTIONS) {
    if (load.exitCode !== null) throw new Error(load.output.stderr);
    await sleep(20);
  }
}

async function record({ flags, name, while: phase }) {
  const redis = await startRedis(LOAD_CORE);
  const server = await startServer('tidings', redis, SERVER_CORE);
  const command = [tidings, 'load', ...server.load, '--json', ...flags.split(' ')];
  const load = start(command, { core: LOAD_CORE, env: server.env });
  const data = join(SCRATCH, `${name}.perf`);
  const how = ['-e', 'cpu-clock', '-F', '1997', '--call-graph', 'dwarf,16384', '-o', data, '-p', `${server.child.pid}`];
  let perf;
  await phase(connected(server.child, load), () => {
    perf = start(['perf', 'record', ...how], { core: LOAD_CORE });
  });
  // perf writes its samples on SIGINT.
  await stop(perf, 'SIGINT');
  if ((await load.done) !== 0) throw new Error(load.output.stderr);
  // SIGKILL, because the drain is not profiled.
  await stop(server.child, 'SIGKILL');
  await stop(redis.child);
  const script = output('perf', ['script', '--no-inline', '-i', data]);
  rmSync(data);
  return output('inferno-collapse-perf', [], script).toString();
}

function partOf(frames) {
  // Kernel time counts for its system call, whichever code made it; other time for the innermost known component.
  const inner = frames.toReversed();
  for (const [part, pattern] of KERNEL) if (inner.some((frame) => pattern.test(frame))) return part;
  for (const frame of inner) {
    const found = CODE.find(([, pattern]) => pattern.test(frame));
    if (found) return found[0];
  }
  return 'unattributed';
}

function shares(folded) {
  const parts = new Map();
  let all = 0;
  for (const line of folded.trim().split('\n')) {
    const [, stack, count] = /^(.*) (\d+)$/.exec(line);
    const part = partOf(stack.split(';'));
    parts.set(part, (parts.get(part) ?? 0) + Number(count));
    all += Number(count);
  }
  return [...parts].toSorted(([, a], [, b]) => b - a).map(([part, count]) => [part, `${figure((100 * count) / all)} %`]);
}

function draw({ name, title }, folded) {
  const look = ['--title', title, '--minwidth', '0.3', '--width', '1200', '--colors', 'rust', '--hash'];
  const svg = output('inferno-flamegraph', look, folded).toString();
  writeFileSync(join(FOLDER, `profile-${name}.svg`), svg);
}

try {
  need('perf', 'it comes with linux-perf (Debian) or linux-tools-generic (Ubuntu)');
  need('inferno-flamegraph', 'cargo install inferno --locked');
  execFileSync('cargo', ['build', '--release', '--locked', '--bin', 'tidings'], { stdio: 'inherit' });
  mkdirSync(SCRATCH, { recursive: true });
  const sections = [];
  for (const profile of profiles) {
    const folded = await record(profile);
    writeFileSync(join(SCRATCH, `${profile.name}.folded`), folded);
    draw(profile, folded);
    sections.push(`## ${profile.title}

${profile.text}

${table(['component', 'share of the CPU'], shares(folded))}

![${profile.title}](profile-${profile.name}.svg)

\`\`\`sh
# tidings load ${profile.flags}
\`\`\`
`);
  }
  writeFileSync(join(FOLDER, 'profile.md'), `${HEAD}\n${sections.join('\n')}`);
  console.log(`written: ${FOLDER}/profile.md`);
} catch (error) {
  console.error(`profile: ${error.message}`);
  process.exit(1);
}
