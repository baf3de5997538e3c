// The machine and the versions of a measurement.

import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import os from 'node:os';

import { tidings } from './servers.mjs';

const PEERS = ['socket.io', 'ws', 'ioredis', 'jsonwebtoken'];

function version(command, ...flags) {
  const text = execFileSync(command, flags, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
  return /\d+\.\d+(\.\d+)?/.exec(text)[0];
}

// Of a Debian package, if it is installed.
function packaged(name) {
  try {
    return version('dpkg-query', '--show', '--showformat', '${Version}', name);
  } catch {
    return undefined;
  }
}

export function machine() {
  const { dependencies } = JSON.parse(readFileSync('bench/peers/package.json', 'utf8'));
  return {
    cpu: os.cpus()[0].model.trim(),
    cores: os.cpus().length,
    memory: `${Math.round(os.totalmem() / 2 ** 30)} GiB`,
    kernel: os.release(),
    versions: {
      tidings: version(tidings, '--version'),
      rustc: version('rustc', '--version'),
      'redis-server': version('redis-server', '--version'),
      node: process.versions.node,
      ...Object.fromEntries(PEERS.map((name) => [name, dependencies[name]])),
      nchan: packaged('libnginx-mod-nchan'),
      'nats-server': packaged('nats-server'),
    },
  };
}

// The section of a page that says where and when it was measured.
export function environment({ at, load, machine: { cpu, cores, kernel, versions } }) {
  return `## Environment

${cpu}, ${cores} cores; Linux ${kernel}; tidings ${versions.tidings}, rustc ${versions.rustc}, node ${versions.node}. Measured ${at.slice(0, 10)};
the load average before the first run was ${load.toFixed(1)}.
`;
}
