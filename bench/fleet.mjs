// One load on several instances of one environment, which share one Redis.

import { LOAD_CORE, SERVER_CORE, start, startRedis, startServer, stop, tidings } from './servers.mjs';

export async function counter(server, name) {
  const text = await fetch(`http://${server.load[3]}/metrics`).then((answer) => answer.text());
  return Number(new RegExp(`^${name} (\\S+)$`, 'm').exec(text)?.[1] ?? 0);
}

// Commands of one kind that Redis has executed.
async function commands(redis, name) {
  const client = start(['redis-cli', '-p', redis.address.split(':')[1], 'INFO', 'commandstats']);
  await client.done;
  return Number(new RegExp(`cmdstat_${name}:calls=(\\d+)`).exec(client.output.stdout)?.[1] ?? 0);
}

// The report of the load, the SUBSCRIBE commands of the run, and the messages for users of other instances.
export async function fleet(instances, env, flags, { pinned = false } = {}) {
  const [serverCore, loadCore] = pinned ? [SERVER_CORE, LOAD_CORE] : [];
  const redis = await startRedis(loadCore);
  const servers = [];
  while (servers.length < instances) servers.push(await startServer('tidings', redis, serverCore, env));
  const before = await commands(redis, 'subscribe');
  const [targets, pids] = [servers.map(({ load }) => load[1]), servers.map(({ child }) => child.pid)];
  const to = ['--target', targets.join(), '--server-pid', pids.join(), '--redis-url', redis.url];
  const load = start([tidings, 'load', ...to, '--json', ...flags.split(' ')], { core: loadCore, env: servers[0].env });
  if ((await load.done) !== 0) throw new Error(load.output.stderr + load.output.stdout);
  const report = JSON.parse(load.output.stdout);
  const missed = await Promise.all(servers.map((one) => counter(one, 'tidings_messages_missed_total')));
  const subscribes = (await commands(redis, 'subscribe')) - before;
  for (const { child } of servers) await stop(child, 'SIGKILL');
  await stop(redis.child);
  return { report, subscribes, missed: missed.reduce((sum, one) => sum + one, 0) };
}
