import { el } from './dom.js';

const MOST_KNOWN = 1_000; // the size of a snapshot
const MOST_SHOWN = 100;
const RETRY_MS = 3_000;

const byName = new Intl.Collator(undefined, { numeric: true }).compare;

/**
 * Shows the online users, updated live.
 * @param {{ isHere: (user: string) => boolean, picked: (user: string) => void }} options
 */
export function presence({ isHere, picked }) {
  const list = document.getElementById('online');
  const total = document.getElementById('online-count');
  const note = document.getElementById('online-note');
  const users = new Set(); // The users known by name: all, or the first MOST_KNOWN.
  const chips = new Map();
  let online = 0;
  let asking = true; // Until a snapshot arrives, the list is stale.
  let drawing = false;

  const chip = (user) => {
    const pick = el('button', { type: 'button', title: `Publish to ${user}`, onclick: () => picked(user) }, user);
    return el('li.chip', { 'data-testid': 'online-user', 'data-user': user }, pick);
  };

  function draw() {
    drawing = false;
    const hereFirst = (a, b) => isHere(b) - isHere(a) || byName(a, b);
    const shown = [...users].sort(hereFirst).slice(0, MOST_SHOWN);
    const wanted = new Set(shown);
    for (const [user, node] of chips) {
      if (wanted.has(user)) continue;
      node.remove();
      chips.delete(user);
    }
    shown.forEach((user, at) => {
      if (!chips.has(user)) chips.set(user, chip(user));
      const node = chips.get(user);
      node.classList.toggle('here', isHere(user));
      if (list.children[at] !== node) list.insertBefore(node, list.children[at] ?? null);
    });
    total.textContent = asking ? '–' : online.toLocaleString();
    const more = online - shown.length;
    if (asking) note.textContent = 'Loading the online users…';
    else if (online === 0) note.textContent = 'No users yet. Sign in here, or open this page in another window.';
    else note.textContent = more > 0 ? `and ${more.toLocaleString()} more` : 'Choose a user to publish to.';
  }

  /** Coalesces several changes into one redraw. */
  function drawSoon() {
    if (drawing) return;
    drawing = true;
    setTimeout(draw, 50);
  }

  function change({ user, status }) {
    const known = users.has(user);
    if (status === 'online') {
      if (known) return;
      online += 1;
      if (users.size < MOST_KNOWN || isHere(user)) users.add(user);
    } else {
      if (!known && online <= users.size) return;
      users.delete(user);
      online = Math.max(users.size, online - 1);
    }
    drawSoon();
  }

  function listen() {
    const source = new EventSource('demo/presence');
    source.addEventListener('snapshot', ({ data }) => {
      const snapshot = JSON.parse(data);
      users.clear();
      for (const user of snapshot.users.slice(0, MOST_KNOWN)) users.add(user);
      online = snapshot.online;
      asking = false;
      drawSoon();
    });
    source.addEventListener('change', ({ data }) => change(JSON.parse(data)));
    source.addEventListener('error', () => {
      asking = true;
      drawSoon();
      // An EventSource reconnects after a lost connection, but not after an error response.
      if (source.readyState === EventSource.CLOSED) setTimeout(listen, RETRY_MS);
    });
  }

  listen();
  return { isOnline: (user) => users.has(user) || users.size < online, redraw: drawSoon };
}
