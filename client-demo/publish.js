import { publish } from './api.js';

const FRIENDLY = { title: 'Payment received', body: '€42.00 from Ada' };

/** Where in the text a parser stopped, if it says so. */
function place(text, message) {
  const at = /position (\d+)/.exec(message);
  if (!at || /line \d+/.test(message)) return '';
  const before = text.slice(0, Number(at[1])).split('\n');
  return ` (line ${before.length}, column ${before.at(-1).length + 1})`;
}

/** What is wrong with a text that should be JSON, and what would be right where that is easy to guess. */
function complaint(text, { message }) {
  if (text.trim() === '') return 'There is no data. Any JSON will do, for example {"title":"Hello"}.';
  let hint = '';
  if (/[{,]\s*'|:\s*'/.test(text)) hint = ' Use double quotes: JSON has no single ones.';
  else if (/,\s*[}\]]/.test(text)) hint = ' A comma is left over before a closing bracket.';
  else if (/[{,]\s*[A-Za-z_]\w*\s*:/.test(text)) hint = ' Names must stand in double quotes.';
  else if (/:\s*[}\],]/.test(text)) hint = ' A value is missing after a colon.';
  // Some engines repeat the whole text in their message; it stands just above.
  const said = message.replace(/, "[^]*" is not valid JSON$/, '').replace(/\.$/, '');
  return `This is not JSON: ${said}${place(text, message)}.${hint}`;
}

/**
 * The form that publishes to any user.
 * @param {{ isOnline: (user: string) => boolean }} options
 */
export function publishForm({ isOnline }) {
  const form = document.getElementById('publish');
  const { user, data } = form.elements;
  const send = form.querySelector('button');
  const result = document.getElementById('publish-result');
  data.value = JSON.stringify(FRIENDLY, null, 2);

  const say = (kind, text) => {
    result.className = `result ${kind}`;
    result.textContent = text;
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
      say('bad', 'Type the user it is for.');
      return user.focus();
    }
    if (problem) {
      say('bad', problem);
      return data.focus();
    }
    send.disabled = true;
    try {
      await publish(to, value);
      if (isOnline(to)) say('good', `Published to ${to}.`);
      else say('', `Published, but ${to} is not online, so nobody has received it.`);
    } catch (failure) {
      say('bad', `Not published: ${failure.message}`);
    } finally {
      send.disabled = false;
    }
  }

  form.addEventListener('submit', submit);
  data.addEventListener('change', check);
  data.addEventListener('input', () => result.classList.contains('bad') && check());
  data.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  return {
    /** Fills in a user: when asked to, or because there is none yet. */
    to(name, { replace }) {
      if (replace || user.value === '') user.value = name;
      if (replace) data.focus();
    },
  };
}
