import { call, ofUser } from './api.js';
import { el } from './dom.js';

const field = (name, label, props) => el('label.field', {}, el('span', {}, label), el('input', { name, autocomplete: 'off', spellcheck: 'false', ...props }));

/** The JSON text of a publication; the data stays byte for byte as it was written. */
function body(form) {
  const data = form.data.value.trim();
  JSON.parse(data);
  const rest = {};
  if (form.event.value !== '') rest.event = form.event.value;
  if (form.durable.checked) {
    rest.durable = true;
    if (form.ttl.value !== '') rest.ttl_s = Number(form.ttl.value);
    if (form.collapse.value !== '') rest.collapse = form.collapse.value;
  }
  return `{"data":${data}${Object.entries(rest).map(([name, value]) => `,"${name}":${JSON.stringify(value)}`).join('')}}`;
}

/**
 * The form that publishes to one user.
 * @param {() => void} published called after a durable notification
 */
export function publishForm(user, published, failed) {
  const result = el('p.result', { role: 'status', 'data-testid': 'publish-result' });
  const durable = el('input', { type: 'checkbox', name: 'durable', 'data-testid': 'durable' });
  const kept = el('div.fields', { hidden: true },
    field('ttl', 'Expires after, in s', { inputmode: 'numeric', pattern: '[0-9]+', maxlength: 9, placeholder: 'history.ttl' }),
    field('collapse', 'Collapse key', { maxlength: 128, 'data-testid': 'collapse' }));
  durable.addEventListener('change', () => (kept.hidden = !durable.checked));
  const say = (text, isGood) => {
    result.textContent = text;
    result.className = `result ${isGood ? 'good' : 'bad'}`;
  };

  async function send(event) {
    event.preventDefault();
    try {
      const sent = body(form);
      const { id } = await call('POST', ofUser(user, '/notifications'), sent);
      say(id === null ? 'Published to the open connections.' : 'Stored and published.', true);
      if (id !== null) published();
    } catch (error) {
      if (error instanceof SyntaxError) say(`This is not JSON: ${error.message}`, false);
      else failed(error, (text) => say(text, false));
    }
  }

  const form = el('form.publish', { onsubmit: send },
    el('label.field', {}, el('span', {}, 'Data, as JSON'),
      el('textarea', { name: 'data', rows: 3, autocomplete: 'off', spellcheck: 'false', required: true, 'data-testid': 'data' })),
    el('div.fields', {}, field('event', 'Event', { maxlength: 128, placeholder: 'notification', 'data-testid': 'event' }),
      el('label.choice', {}, durable, ' Durable: store it')),
    kept,
    el('div.buttons', {}, el('button.primary', { type: 'submit', 'data-testid': 'publish' }, 'Publish')),
    result);
  return form;
}
