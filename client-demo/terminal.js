import { el, command, shellWord } from './dom.js';

const EXAMPLE = '{"title":"Hello","body":"From a terminal"}';
const DEFAULT_ADMIN = 'http://127.0.0.1:9090';

let asked;

/** Where a terminal on this machine reaches the gateway and Redis; unknown unless the gateway is for development. */
const addresses = () => (asked ??= fetch('demo/terminal').then((response) => response.json()).catch(() => {
  asked = null;
  return {};
}));

/** The commands that publish to a user, as they work with this gateway. */
export function commands(user) {
  const node = el('div.commands', { 'data-testid': 'commands' });
  addresses().then(({ admin, redis, channel = 'user:' }) => {
    const where = admin && admin !== DEFAULT_ADMIN ? ` --admin ${admin}` : '';
    node.append(command(`tidings publish ${shellWord(user)} '${EXAMPLE}' --durable${where}`));
    if (admin && !redis) return; // There is no Redis, or its address is known to sentinels only.
    const hint = admin ? 'Or through Redis, without storing it:' : 'If the gateway uses Redis (-p PORT for another port):';
    const publish = `${redis ?? 'redis-cli'} publish ${shellWord(`${channel}${user}`)} '${EXAMPLE}'`;
    node.append(el('p', {}, hint), command(publish));
  });
  return node;
}
