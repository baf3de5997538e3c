import { fetchToken, Refusal } from './api.js';
import { el } from './dom.js';
import { network, networkSwitch } from './network.js';
import { commands } from './terminal.js';
import { Tidings } from '../tidings.js';
import '../tidings-inbox.js';

const REASONS = {
  1000: '',
  1001: 'The gateway closed the connection.',
  1006: 'The gateway did not answer.',
  4003: 'This page or user may not connect.',
  4004: 'This user has too many connections open.',
  4009: 'The sign-in is no longer valid.',
  4010: 'The sign-in has expired.',
  4011: 'This user was disconnected by an operator.',
  4100: 'The gateway is full.',
  4101: 'Too many attempts: slowing down.',
  4102: 'The stored notifications cannot be read at the moment.',
  4200: 'The gateway is being restarted.',
  4201: 'This page did not answer the gateway in time.',
  4203: 'This page was too slow to receive everything.',
  4205: 'Notifications may have been missed: reconnecting to fetch them.',
  connect_timeout: 'The gateway did not answer in time.',
  silent: 'Nothing came from the gateway any more.',
  token_failed: 'The gateway did not answer.',
  bad_token: 'The gateway did not give a valid token.',
  no_token: 'The gateway refused to issue a token for this user.',
};

/** The reason for a missing connection, in a user's words; the code is in the title of the line. */
function why({ code, reason }) {
  // A browser gives no reason with 1006; the client's own names what may be the cause.
  if (code in REASONS && !(code === 1006 && reason)) return REASONS[code];
  return reason ? `${reason[0].toUpperCase()}${reason.slice(1)}.` : `The connection was closed (${code}).`;
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

/** What the connection has missed and received again, once it is back. */
function catchUp(client) {
  const news = el('p.result.good', { 'data-testid': 'recovered', role: 'status' });
  let wasLost = false;
  let isBack = false;
  let number = 0;
  const show = () => {
    if (!isBack) news.textContent = '';
    else if (number === 0) news.textContent = 'Caught up: nothing was missed.';
    else news.textContent = `Caught up: ${number.toLocaleString()} missed, now received.`;
  };
  client.on('state', ({ name }) => {
    if (name !== 'waiting' && name !== 'closed') return;
    wasLost = true;
    isBack = false;
    show();
  });
  client.on('welcome', ({ recovered }) => {
    isBack = wasLost && recovered;
    wasLost = false;
    number = 0;
    show();
  });
  client.on('event', (data, { replayed }) => {
    if (!replayed) return;
    number += 1;
    show();
  });
  return news;
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
  const options = { token: tokens(user, token, net), WebSocket: net.WebSocket };
  const client = new Tidings('ws', { ...options, events: null }); // The network switch closes WebSockets only.
  const { line, again } = stateLine(client);
  const inbox = el('tidings-inbox', { inline: true, open: true });
  inbox.client = client;
  const shell = el('details.terminal', {}, el('summary', {}, 'Publish from a terminal'), commands(user));
  const ids = el('p.ids', {}, ' '); // The ids of instance and connection, or the reason for a disconnection.
  const problem = el('p.result.bad', { role: 'status' });

  client.on('welcome', ({ instance, connection }) => {
    problem.textContent = '';
    ids.removeAttribute('title');
    ids.replaceChildren(
      el('span', {}, 'instance ', el('code', {}, instance)), ' ',
      el('span', {}, 'connection ', el('code', {}, connection)),
    );
  });
  client.on('state', (state) => {
    if (state.name !== 'waiting' && state.name !== 'closed') return;
    ids.title = `${state.code} ${state.reason}`.trim();
    ids.textContent = net.isOn() ? why(state) : 'Network switched off.';
  });
  client.on('gap', ({ since_ms }) => {
    problem.textContent = since_ms === undefined
      ? 'Some notifications were missed: the history no longer has them.'
      : 'Notifications that are not stored may have been missed: the gateway had lost Redis.';
  });
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
    catchUp(client),
    inbox,
    shell,
  );
  const focus = () => {
    title.focus({ preventScroll: true });
    node.scrollIntoView({ block: 'nearest' });
  };
  return { node, focus, isLive: () => client.state.name === 'live' };
}
