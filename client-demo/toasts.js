import { el } from './dom.js';
import { summary } from './notification.js';

const MOST = 3;
const SHOWN_MS = 6_000;

const region = document.getElementById('toasts');

/** Shows a notification briefly; it stays while hovered or focused. */
export function toast(user, event, data) {
  const { title, body } = summary(event, data);
  const close = el('button.close', { type: 'button', 'aria-label': `Dismiss: ${title}` }, '×');
  const node = el(
    'article.toast',
    { 'data-testid': 'toast' },
    el('div.toast-text', {}, el('p.toast-to', {}, `For ${user}`), el('h3', {}, title), body && el('p', {}, body)),
    close,
  );
  let timer;
  const leave = () => {
    clearTimeout(timer);
    const next = node.nextElementSibling ?? node.previousElementSibling;
    if (node.contains(document.activeElement)) next?.querySelector('button').focus();
    node.remove();
  };
  const wait = () => {
    clearTimeout(timer);
    timer = setTimeout(() => (node.matches(':hover, :focus-within') ? wait() : leave()), SHOWN_MS);
  };
  close.addEventListener('click', leave);
  region.append(node);
  while (region.childElementCount > MOST) region.firstElementChild.remove();
  wait();
}
