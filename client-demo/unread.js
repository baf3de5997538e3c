import { el } from './dom.js';

/**
 * The number of unread stored notifications, a button that marks them read, and the result of the last catch-up.
 * @param {import('./tidings.d.ts').Tidings} client
 * @param {{ user: string, changed: (unread: number) => void }} options
 */
export function unread(client, { user, changed }) {
  const pill = el('span.count', { 'data-testid': 'unread', hidden: true });
  const mark = el(
    'button.link',
    { type: 'button', hidden: true, 'data-testid': 'mark-read', 'aria-label': `Mark read: ${user}` },
    'Mark read',
  );
  const news = el('p.result.good', { 'data-testid': 'recovered', role: 'status' });
  let number = 0;
  let toCome = 0; // The number of these still to be replayed.
  let recovered = null; // The number replayed since this connection replaced another.

  const show = () => {
    pill.textContent = `${number.toLocaleString()} unread`;
    pill.hidden = number === 0;
    mark.hidden = number === 0 || client.state.name !== 'live';
    if (recovered === null) news.textContent = '';
    else if (recovered === 0) news.textContent = 'Caught up: nothing was missed.';
    else news.textContent = `Caught up: ${recovered.toLocaleString()} missed, now received.`;
    changed(number);
  };
  let first = true;
  client.on('welcome', (welcome) => {
    const before = number;
    number = welcome.unread ?? 0;
    toCome = welcome.recovered ? Math.max(0, number - before) : 0;
    recovered = welcome.recovered && !first ? 0 : null;
    first = false;
    show();
  });
  client.on('event', (data, { id }) => {
    if (id === undefined) return;
    if (toCome === 0) number += 1;
    else {
      toCome -= 1;
      if (recovered !== null) recovered += 1;
    }
    show();
  });
  client.on('state', ({ name }) => {
    if (name === 'waiting' || name === 'closed') recovered = null;
    show();
  });
  mark.addEventListener('click', () => {
    client.ack(client.cursor);
    number = toCome;
    show();
  });
  return { pill, mark, news };
}
