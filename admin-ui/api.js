// The admin listener's calls. Paths are relative, so that the page also works behind a prefix.
const KEY = 'tidings-admin-key';
const DEADLINE_MS = 10_000;

/** An error response. */
export class Refusal extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** No response: the instance is gone, the network is, or the deadline has passed. */
export class Unreachable extends Error {}

// Of the tab: gone when it is closed, unknown to other tabs.
export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

async function request(path, options = {}) {
  try {
    return await fetch(`../${path}`, { ...options, signal: AbortSignal.timeout(DEADLINE_MS), cache: 'no-store', redirect: 'error' });
  } catch {
    throw new Unreachable('The instance does not answer.');
  }
}

/** Numbers that JavaScript would round stay as they were published, where the browser can do it. */
const exactly = (_, value, context) =>
  typeof value === 'number' && JSON.rawJSON && context?.source !== undefined && String(value) !== context.source
    ? JSON.rawJSON(context.source) : value;

function parsed(text) {
  try {
    return JSON.parse(text, exactly);
  } catch {
    return null;
  }
}

/** @param {string} [body] JSON text */
export async function call(method, path, body) {
  const headers = key.get() === null ? {} : { Authorization: `Bearer ${key.get()}` };
  const response = await request(`v1/${path}`, { method, headers, body });
  const answer = parsed(await text(response));
  if (response.ok) return answer;
  const { code = 'unknown', message = `The instance answered with status ${response.status}.` } = answer?.error ?? {};
  throw new Refusal(response.status, code, message);
}

async function text(response) {
  try {
    return await response.text();
  } catch {
    throw new Unreachable('The answer of the instance broke off.');
  }
}

export const get = (path) => call('GET', path);

/** The metrics, as text; they need no key. */
export const metrics = async () => text(await request('metrics'));

/** `{"ready":true}`, or `{"ready":false,"reason":"…"}`. */
export const readiness = async () => parsed(await text(await request('readyz'))) ?? { ready: false, reason: 'unknown' };

export const ofUser = (user, path = '') => `users/${encodeURIComponent(user)}${path}`;
