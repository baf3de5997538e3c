// The machine and the versions of a measurement.

import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import os from 'node:os';

import { tidings } from './servers.mjs';

const PEERS = ['socket.io', 'ws', 'ioredis', 'jsonwebtoken'];

function version(command, flag = '--version') {
  return /\d+\.\d+(\.\d+)?/.exec(execFileSync(command, [flag], { encoding: 'utf8' }))[0];
}

export function machine() {
  const { dependencies } = JSON.parse(readFileSync('bench/peers/package.json', 'utf8'));
  return {
    cpu: os.cpus()[0].model.trim(),
    cores: os.cpus().length,
    memory: `${Math.round(os.totalmem() / 2 ** 30)} GiB`,
    kernel: os.release(),
    versions: {
      tidings: version(tidings),
      rustc: version('rustc'),
      'redis-server': version('redis-server'),
      node: process.versions.node,
      ...Object.fromEntries(PEERS.map((name) => [name, dependencies[name]])),
    },
  };
}
