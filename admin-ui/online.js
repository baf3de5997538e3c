import { get } from './api.js';
import { el } from './dom.js';
import { count, plural } from './text.js';

const LIMIT = 100;

const node = (id) => document.getElementById(id);
const [list, note, total, more] = ['online', 'online-note', 'online-count', 'online-more'].map(node);

/**
 * The online users of the fleet, by pages.
 * @param {(user: string) => void} picked
 * @param {(error: Error, say: (text: string) => void) => void} failed
 */
export function onlineUsers(picked, failed) {
  let shown = new Set(); // A page may repeat a user.
  let next = null;

  const say = (text) => (note.textContent = text);
  const chip = (user) => el('li', {}, el('button', { type: 'button', 'data-testid': 'online-user', onclick: () => picked(user) }, user));

  async function page(cursor) {
    try {
      const { users, next: after } = await get(`presence?limit=${LIMIT}${cursor === null ? '' : `&cursor=${encodeURIComponent(cursor)}`}`);
      if (cursor === null) {
        shown = new Set();
        list.replaceChildren();
      }
      const added = users.filter((user) => !shown.has(user));
      added.forEach((user) => shown.add(user));
      list.append(...added.map(chip));
      next = after;
      more.hidden = next === null;
      say(shown.size === 0 ? 'No user is online.' : next === null ? '' : `The first ${plural(shown.size, 'user')}.`);
    } catch (error) {
      failed(error, say);
    }
  }

  async function countAll() {
    try {
      total.textContent = count((await get('presence/count')).online);
    } catch (error) {
      total.textContent = '?';
      failed(error, () => {}); // The list says why.
    }
  }

  node('online-refresh').addEventListener('click', () => page(null));
  more.addEventListener('click', () => page(next));
  return { list: () => page(null), count: countAll };
}
