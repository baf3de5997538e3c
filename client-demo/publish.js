import { publish } from './api.js';
import { el } from './dom.js';

const FRIENDLY = { title: 'Payment received', body: '€42.00 from Ada' };

/** The position in the text at which a parser stopped, if it reports one. */
function place(text, message) {
  const at = /position (\d+)/.exec(message);
  if (!at || /line \d+/.test(message)) return '';
  const before = text.slice(0, Number(at[1])).split('\n');
  return ` (line ${before.length}, column ${before.at(-1).length + 1})`;
}

/** The error in an invalid JSON text, with a hint for common mistakes. */
function complaint(text, { message }) {
  if (text.trim() === '') return 'The data is missing. Enter any JSON, for example {"title":"Hello"}.';
  let hint = '';
  if (/[{,]\s*'|:\s*'/.test(text)) hint = ' Use double quotes: JSON has no single quotes.';
  else if (/,\s*[}\]]/.test(text)) hint = ' Remove the comma before a closing bracket.';
  else if (/[{,]\s*[A-Za-z_]\w*\s*:/.test(text)) hint = ' Names must be in double quotes.';
  else if (/:\s*[}\],]/.test(text)) hint = ' A value is missing after a colon.';
  // Some engines repeat the whole text, which is already visible above.
  const said = message.replace(/, "[^]*" is not valid JSON$/, '').replace(/\.$/, '');
  return `This is not JSON: ${said}${place(text, message)}.${hint}`;
}

/**
 * The form that publishes to any user.
 * @param {{ isOnline: (user: string) => boolean }} options
 */
export function publishForm({ isOnline }) {
  const form = document.getElementById('publish');
  const { user, data, event: name, durable, ttl } = form.elements;
  const send = form.querySelector('button');
  const result = document.getElementById('publish-result');
  data.value = JSON.stringify(FRIENDLY, null, 2);

  const say = (kind, ...parts) => {
    result.className = `result ${kind}`;
    result.replaceChildren(...parts);
  };
  const parsed = () => {
    try {
      const value = JSON.parse(data.value);
      data.removeAttribute('aria-invalid');
      return { value };
    } catch (error) {
      data.setAttribute('aria-invalid', 'true');
      return { problem: complaint(data.value, error) };
    }
  };
  const check = () => {
    const { problem } = parsed();
    if (problem) say('bad', problem);
    else if (result.classList.contains('bad')) say('', '');
  };

  async function submit(event) {
    event.preventDefault();
    const to = user.value.trim();
    const { value, problem } = parsed();
    if (to === '') {
      say('bad', 'Enter the recipient.');
      return user.focus();
    }
    if (problem) {
      say('bad', problem);
      return data.focus();
    }
    if (durable.checked && !/^([1-9]\d*)?$/.test(ttl.value.trim())) {
      say('bad', 'The time to live must be a whole number of seconds, at least 1.');
      return ttl.focus();
    }
    await publishTo(to, value, {
      event: name.value.trim() || undefined,
      durable: durable.checked,
      ttl_s: durable.checked && ttl.value.trim() !== '' ? Number(ttl.value) : undefined,
    });
  }

  /** Offers to store what was published to a user who is not online. */
  function offer(to, value, more) {
    const store = el('button.link', { type: 'button', 'data-testid': 'publish-store' }, `Store it for ${to}`);
    store.addEventListener('click', () => publishTo(to, value, { ...more, durable: true }));
    say('', `Published, but ${to} is not online: it was not received. `, store);
  }

  async function publishTo(to, value, more) {
    send.disabled = true;
    try {
      await publish(to, value, more);
      if (isOnline(to)) say('good', more.durable ? `Stored for ${to} and sent.` : `Published to ${to}.`);
      else if (more.durable) say('good', `Stored for ${to}, who is not online: in the inbox at the next sign-in.`);
      else offer(to, value, more);
    } catch (failure) {
      say('bad', `Not published: ${failure.message}`);
    } finally {
      send.disabled = false;
    }
  }

  const showTtl = () => (ttl.closest('label').hidden = !durable.checked);
  durable.addEventListener('change', showTtl);
  showTtl(); // A browser may restore the earlier choice after a reload.
  form.addEventListener('submit', submit);
  data.addEventListener('change', check);
  data.addEventListener('input', () => result.classList.contains('bad') && check());
  data.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  return {
    /** Fills in a user: with `replace`, or if the field is empty. */
    to(name, { replace }) {
      if (replace || user.value === '') user.value = name;
      if (replace) data.focus();
    },
  };
}
