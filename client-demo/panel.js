import { fetchToken, Refusal } from './api.js';
import { command, el, shellWord } from './dom.js';
import { network, networkSwitch } from './network.js';
import { row } from './notification.js';
import { Tidings } from './tidings.js';
import { toast } from './toasts.js';
import { unread } from './unread.js';

const MOST_ROWS = 200;
const EXAMPLE = '{"title":"Hello","body":"From a terminal"}';

/** The reason for a missing connection, as text. */
function why({ code, reason }) {
  if (code === 1000) return '';
  if (code === 1006 || code === 'token_failed') return 'The gateway did not answer.';
  if (code === 'no_token') return 'The gateway refused to issue a token for this user.';
  const text = reason || (typeof code === 'number' ? `Closed with ${code}` : code);
  return `${text[0].toUpperCase()}${text.slice(1)}${typeof code === 'number' && reason ? ` (${code})` : ''}.`;
}

/** The connection state line, with a countdown while waiting. */
function stateLine(client) {
  const word = el('span');
  const countdown = el('span.countdown', { 'aria-hidden': 'true' }); // A screen reader would announce it every second.
  const line = el('p.state', { 'data-testid': 'state', role: 'status' }, el('span.dot'), word, countdown);
  const again = el('button.quiet.small', { type: 'button', 'data-testid': 'retry-now' }, 'Retry now');
  again.addEventListener('click', () => client.connect());
  const words = { idle: 'Idle', connecting: 'Connecting…', live: 'Live', waiting: 'Reconnecting', closed: 'Closed' };
  let ticking;

  const tick = (state) => {
    countdown.textContent = ` in ${Math.max(1, Math.ceil((state.retryAt - Date.now()) / 1_000))} s`;
  };
  const show = (state) => {
    clearInterval(ticking);
    countdown.textContent = '';
    line.dataset.state = state.name;
    word.textContent = words[state.name];
    const stopped = state.name === 'waiting' || state.name === 'closed';
    again.hidden = !stopped;
    again.textContent = state.name === 'closed' ? 'Connect again' : 'Retry now';
    if (state.name !== 'waiting') return;
    tick(state);
    ticking = setInterval(tick, 250, state);
  };
  client.on('state', show);
  show(client.state);
  return { line, again };
}

/** Shown until the first notification arrives. */
function emptyState(user) {
  return el(
    'div.empty',
    {},
    el('p.empty-title', {}, 'Nothing yet'),
    el('p', {}, 'Send one with the form, or from a terminal:'),
    command(`tidings publish ${shellWord(user)} '${EXAMPLE}'`),
    el('p', {}, 'If the gateway uses Redis, publish through it (redis-cli -p PORT for another port):'),
    command(`redis-cli publish ${shellWord(`user:${user}`)} '${EXAMPLE}'`),
  );
}

/** The bounded list of received notifications, newest first, unread ones marked. */
function notificationList(user, client) {
  const list = el('ol.notifications', { tabindex: '0', 'aria-label': `Notifications of ${user}` });
  const empty = emptyState(user);
  const count = el('span.count', { 'aria-label': 'notifications received' });
  const clear = el('button.link', { type: 'button' }, 'Clear');
  let received = 0;
  let waiting = 0;
  const show = () => {
    count.textContent = received.toLocaleString();
    clear.hidden = list.hidden = received === 0;
    empty.hidden = received > 0;
    head.hidden = received === 0 && waiting === 0;
  };
  const { pill, mark, news } = unread(client, {
    user,
    changed(number) {
      waiting = number;
      show();
    },
  });
  const actions = el('span.list-actions', {}, mark, clear);
  const head = el('div.list-head', {}, el('span.list-title', {}, 'Notifications'), count, pill, actions);
  mark.addEventListener('click', () => {
    for (const node of list.querySelectorAll('.unread')) node.classList.remove('unread');
  });
  clear.addEventListener('click', () => {
    list.replaceChildren();
    received = 0;
    show();
  });
  const add = (frame) => {
    received += 1;
    list.prepend(row(frame));
    while (list.childElementCount > MOST_ROWS) list.lastElementChild.remove();
    show();
  };
  show();
  return { nodes: [news, head, list, empty], add };
}

/** The user's tokens: first the one from sign-in, then a new one each time; an error while the network is off. */
function tokens(user, first, net) {
  return async () => {
    if (!net.isOn()) throw new Error('the network is off');
    const token = first ?? (await fetchToken(user).catch((failure) => {
      // A refusal is final, except for a rate limit.
      if (failure instanceof Refusal && failure.status < 500 && failure.status !== 429) return null;
      throw failure;
    }));
    first = null;
    return token;
  };
}

/** One user's connection and the notifications received over it. */
export function userPanel(user, token, { signOut }) {
  const net = network();
  const client = new Tidings('ws', { token: tokens(user, token, net), resume: 'acked', WebSocket: net.WebSocket });
  const { line, again } = stateLine(client);
  const list = notificationList(user, client);
  const ids = el('p.ids', {}, ' '); // The ids of instance and connection, or the reason for a disconnection.
  const problem = el('p.result.bad', { role: 'status' });

  client.on('welcome', ({ instance, connection }) => {
    problem.textContent = '';
    ids.replaceChildren(
      el('span', {}, 'instance ', el('code', {}, instance)), ' ',
      el('span', {}, 'connection ', el('code', {}, connection)),
    );
  });
  client.on('state', (state) => {
    if (state.name !== 'waiting' && state.name !== 'closed') return;
    ids.textContent = net.isOn() ? why(state) : 'Network switched off.';
  });
  client.on('event', (data, frame) => {
    list.add(frame);
    toast(user, frame.event, data);
  });
  client.on('gap', () => (problem.textContent = 'Some notifications were missed: the history no longer has them.'));
  client.on('error', (error) => {
    if (client.state.name === 'live') problem.textContent = `${error.message} (${error.code})`;
  });

  const leave = el(
    'button.link',
    { type: 'button', 'data-testid': 'sign-out', 'aria-label': `Sign out ${user}` },
    'Sign out',
  );
  leave.addEventListener('click', () => {
    client.close();
    signOut();
  });
  const title = el('h2', { tabindex: '-1', title: user }, el('span.who', {}, 'User '), user);
  const node = el(
    'article.card.panel',
    { 'aria-label': `User ${user}`, 'data-user': user },
    el('div.card-head', {}, title, el('div.card-actions', {}, networkSwitch(user, net, client), leave)),
    el('div.status', {}, line, again),
    ids,
    problem,
    ...list.nodes,
  );
  const focus = () => {
    title.focus({ preventScroll: true });
    node.scrollIntoView({ block: 'nearest' });
  };
  return { node, focus, isLive: () => client.state.name === 'live' };
}
