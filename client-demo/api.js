/** An error response of the gateway. */
export class Refusal extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

async function post(path, body) {
  let response;
  try {
    response = await fetch(path, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify(body),
    });
  } catch {
    throw new Error('The gateway cannot be reached.');
  }
  const answer = await response.json().catch(() => null);
  if (response.ok) return answer;
  const { code = 'unknown', message = `The gateway answered with status ${response.status}.` } = answer?.error ?? {};
  throw new Refusal(response.status, code, message);
}

/** @returns {Promise<string>} a JWT for the user */
export async function fetchToken(user) {
  return (await post('demo/token', { user })).token;
}

/** @param {{ event?: string, durable?: boolean, ttl_s?: number }} [more] */
export function publish(user, data, more = {}) {
  return post('demo/publish', { user, data, ...more });
}
