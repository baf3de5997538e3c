import { el, time } from './dom.js';

const MOST_SHOWN = 4_000; // characters of one notification's data

function clip(text, most) {
  return text.length > most ? `${text.slice(0, most)}… (${text.length - most} more characters)` : text;
}

/** Readable JSON. Not indented if it is too long to be shown whole: deep nesting would produce endless indentation. */
function written(data) {
  try {
    const dense = JSON.stringify(data);
    return dense.length > MOST_SHOWN ? dense : JSON.stringify(data, null, 2);
  } catch {
    return '(nested too deeply to be shown)'; // A value that can be parsed may be too deep to serialize.
  }
}

const isText = (value) => typeof value === 'string' && value.trim() !== '';

/** A notification's title, body, or both; null if it has only data. */
function wordsOf(event, data) {
  if (isText(data)) return { title: clip(data, 200), body: null };
  const title = isText(data?.title) ? clip(data.title, 200) : null;
  const body = isText(data?.body) ? clip(data.body, 500) : null;
  return title || body ? { title: title ?? event, body } : null;
}

const nameOf = (event) => (event === 'notification' ? 'Notification' : event);

/** The text of a toast. */
export function summary(event, data) {
  const words = wordsOf(event, data);
  if (words) return words;
  const oneLine = written(data).replace(/\s+/g, ' '); // With spaces, so that it can wrap.
  return { title: nameOf(event), body: clip(oneLine, 120) };
}

/** One row of the list. Data with more than a title and a body is shown whole. */
export function row({ event, data, id, ts }) {
  const words = wordsOf(event, data);
  const saysAll = words && (isText(data) || Object.keys(data).every((key) => key === 'title' || key === 'body'));
  return el(
    id === undefined ? 'li.notification' : 'li.notification.unread',
    { 'data-testid': 'notification' },
    el(
      'div.notification-head',
      {},
      el('h3', {}, words?.title ?? nameOf(event)),
      time(new Date(ts ?? Date.now())),
    ),
    words && event !== 'notification' ? el('p', {}, el('span.event', {}, event)) : null,
    words?.body ? el('p', {}, words.body) : null,
    saysAll ? null : el('pre', { tabindex: '0' }, clip(written(data), MOST_SHOWN)),
  );
}
