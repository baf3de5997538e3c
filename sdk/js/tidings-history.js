/**
 * Requests for the history of `tidings.js`, which loads this file at the first of them. Each belongs to a link, the client's
 * connection; `link.requests` holds those without an answer.
 */
import { TidingsError } from './tidings.js';

/** The maximum number of holes that are reported of the space between two notifications: few of them matter. */
const MOST_GONE = 1_000;

let refs = 0;

/**
 * Asks for a page of the stored notifications, newest first. Rejects with the code of an `error` frame, or with `no_history`
 * where there is no WebSocket, or it ends first.
 * @returns {Promise<{ notifications: object[], next: string | null }>}
 */
export function ask(link, { before, limit } = {}) {
  return new Promise((resolve, reject) => {
    if (link?.socket.readyState !== 1 || link.Stream) return reject(noHistory());
    refs += 1;
    const ref = String(refs);
    link.requests ??= new Map();
    link.requests.set(ref, { resolve, reject });
    link.answer = (frame) => answer(link.requests, frame);
    link.socket.send(JSON.stringify({ type: 'history', before: before ?? undefined, limit, ref }));
  });
}

const noHistory = () => new TidingsError('no_history', 'the history needs a live WebSocket');

/** Whether a frame answers a request. Without a frame, the link has ended. */
function answer(requests, frame) {
  if (!frame) {
    for (const { reject } of requests.values()) reject(noHistory());
    requests.clear();
    return true;
  }
  const { type, ref, code, message, notifications, next } = frame;
  const request = requests.get(ref);
  if (!requests.delete(ref)) return false;
  if (type === 'error') request.reject(new TidingsError(code, message));
  else request.resolve({ notifications, next });
  return true;
}

/**
 * The numbers that a page skips: these notifications were retracted, or have expired. It begins below `before`, or with the
 * newest position at the time of the request.
 */
export function holes({ notifications }, before, newest, numberOf) {
  let from = before ? numberOf(before) : numberOf(newest) + 1;
  const gone = [];
  for (const { id } of notifications) {
    const number = numberOf(id);
    for (let hole = Math.min(from, number + MOST_GONE) - 1; hole > number; hole -= 1) gone.push(hole);
    from = number;
  }
  return gone;
}
