import { fetchToken } from './api.js';
import { el } from './dom.js';

function steps() {
  const step = (title, text) => el('li', {}, el('strong', {}, title), el('span', {}, text));
  return el(
    'ol.steps',
    {},
    step('Sign in', 'A token, a WebSocket, and this page is live.'),
    step('Publish', 'From the form, from redis-cli, or from your own backend.'),
    step('Watch', 'It arrives on every open page of that user at once.'),
  );
}

/**
 * The sign-in card.
 * @param {{ suggestion: string, error?: string, check: (user: string) => string | null,
 *           signedIn: (user: string, token: string) => void, cancel?: () => void }} options
 */
export function signInCard({ suggestion, error = '', check, signedIn, cancel }) {
  const input = el('input', {
    id: 'user-input', 'data-testid': 'user-input', name: 'user', maxlength: '256', value: suggestion,
    autocomplete: 'off', autocapitalize: 'none', spellcheck: 'false', 'aria-describedby': 'sign-in-error',
  });
  const button = el('button.primary', { type: 'submit', 'data-testid': 'sign-in' }, 'Sign in');
  const problem = el('p.result.bad', { id: 'sign-in-error', role: 'alert' }, error);

  const submit = async (event) => {
    event.preventDefault();
    const user = input.value.trim();
    problem.textContent = user === '' ? 'Enter a user, for example 42.' : (check(user) ?? '');
    if (problem.textContent !== '') return input.focus();
    button.disabled = true;
    try {
      signedIn(user, await fetchToken(user));
    } catch (failure) {
      problem.textContent = failure.message;
    } finally {
      button.disabled = false;
    }
  };

  return el(
    'form.card.sign-in',
    { onsubmit: submit, novalidate: true },
    el('h2', {}, cancel ? 'Add a user' : 'Sign in as any user'),
    el('p.lead', {}, cancel
      ? 'Each user on this page has a separate connection.'
      : "This page opens a WebSocket with the user's token and shows the user's notifications."),
    el('label', { for: 'user-input' }, 'User'),
    el('div.row.join', {}, input, button, cancel
      ? el('button.quiet', { type: 'button', onclick: cancel }, 'Cancel')
      : null),
    problem,
    cancel ? null : steps(),
  );
}
