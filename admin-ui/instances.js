import { el } from './dom.js';
import { duration, plural } from './text.js';

const list = document.getElementById('instances');
const note = document.getElementById('instances-note');
const total = document.getElementById('instances-count');

const row = (name, details, isHere) =>
  el('li.row', {}, el('code', {}, name), isHere ? el('span.tag', {}, 'this one') : null, el('span.hint', {}, details));

/** The live instances of the fleet; of the others, Redis knows the users only. */
export function instanceList({ instance, version, uptime_s, connections, users, backplane, instances }) {
  const here = `${plural(users, 'user')} · ${plural(connections, 'connection')} · ${version} · up ${duration(uptime_s)} · ${backplane}`;
  const others = instances ?? [];
  list.replaceChildren(row(instance, here, true), ...others.map((other) => row(other.instance, plural(other.users, 'user'))));
  total.textContent = instances === null ? '?' : String(1 + others.length);
  const text = instances === null ? 'Redis does not answer: the other instances are not known.' : '';
  if (note.textContent !== text) note.textContent = text;
}
