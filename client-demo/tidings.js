/**
 * The browser client of a tidings gateway: one file, no dependencies.
 *
 *     const c = new Tidings('/ws', { token: async () => jwt });
 *     c.on('notification', (data, frame) => show(data));
 *     c.on('state', (state) => paint(state));
 *     c.ack();
 *     c.close();
 *
 * It connects when constructed (or at `connect()`, with `autoConnect: false`), stays connected, and reports its
 * condition through `state`. It never logs the token or includes it in an error.
 */

/** The maximum delay of one timer; a longer wait is split into several. */
const MAX_TIMEOUT_MS = 2 ** 31 - 1;

/** Minimum interval between acks; only the furthest is sent. The gateway limits frames per second. */
const ACK_EVERY_MS = 100;

/** Events emitted by the client itself. A published event with such a name reaches only listeners of `event`. */
const OWN_EVENTS = new Set(['event', 'welcome', 'state', 'error', 'reconnect', 'gap']);

/** Three base64url parts. Excludes characters invalid in a subprotocol: a WebSocket would quote them in its error. */
const JWT = /^[\w-]+\.[\w-]+\.[\w-]*$/;

const DEFAULTS = {
  autoConnect: true,
  cursor: null,
  resume: null,
  storageKey: null,
  device: null,
  baseDelayMs: 500,
  maxDelayMs: 30_000,
  promptDelayMs: 1_000,
  stableAfterMs: 5_000,
  connectTimeoutMs: 10_000,
  silenceGraceMs: 15_000,
  rememberedIds: 1_000,
  random: Math.random,
};

/** A failure with a code: a close or error code of the gateway (a number), or a word for a failure in the client. */
export class TidingsError extends Error {
  /**
   * @param {number | string} code
   * @param {string} message
   * @param {unknown} [cause]
   */
  constructor(code, message, cause) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'TidingsError';
    this.code = code;
  }
}

/**
 * Full jitter: a random wait up to a ceiling that doubles with each attempt, so that clients do not reconnect together.
 * @param {number} attempt failed attempts so far
 * @param {{ baseDelayMs: number, maxDelayMs: number, random: () => number }} options
 */
export function backoff(attempt, { baseDelayMs, maxDelayMs, random }) {
  return random() * Math.min(maxDelayMs, baseDelayMs * 2 ** attempt);
}

/** The claims of a token, or none: the gateway may accept tokens that we cannot parse, and we only schedule by them. */
function claims(token) {
  try {
    const bytes = atob(token.split('.')[1].replaceAll('-', '+').replaceAll('_', '/'));
    return JSON.parse(new TextDecoder().decode(Uint8Array.from(bytes, (byte) => byte.charCodeAt(0)))) ?? {};
  } catch {
    return {};
  }
}

/** Whether a cursor precedes another of the same history; cursors of different histories cannot be compared. */
function isBefore(cursor, other) {
  const [epoch, ms, number] = cursor.split('-');
  const [otherEpoch, otherMs, otherNumber] = other.split('-');
  return epoch === otherEpoch && (Number(ms) - Number(otherMs) || Number(number) - Number(otherNumber)) < 0;
}

const isOfSameHistory = (cursor, other) => cursor.split('-')[0] === other.split('-')[0];

/**
 * The delay before a token should be refreshed: 80% of its remaining lifetime and at least 10 s before its expiry, or
 * half of the remaining lifetime if it is that short. Null without a readable `exp`, or if it is too late to refresh.
 * @param {string} token
 * @param {number} now ms since 1970
 * @returns {number | null}
 */
export function refreshDelay(token, now) {
  const { exp } = claims(token);
  const left = exp * 1000 - now;
  if (typeof exp !== 'number' || !(left >= 2_000)) return null;
  return Math.max(left / 2, Math.min(left * 0.8, left - 10_000));
}

/** @param {string | URL} url a ws(s) or http(s) address, or one relative to the page */
function socketUrl(url) {
  const resolved = new URL(url, globalThis.location?.href);
  resolved.protocol = resolved.protocol.replace(/^http/, 'ws');
  resolved.hash = '';
  if (!/^wss?:$/.test(resolved.protocol)) throw new TypeError(`tidings: no WebSocket address: ${resolved.protocol}`);
  return resolved;
}

/** A browser does not expose the reason for a refused handshake, so invalid options are rejected here. */
function check({ token, device, resume }) {
  if (typeof token !== 'function') throw new TypeError('tidings: options.token must be a function');
  if (resume !== null && resume !== 'acked') throw new TypeError("tidings: options.resume is 'acked' or left out");
  const named = typeof device === 'string' && !/\p{Cc}/u.test(device);
  const bytes = named ? new TextEncoder().encode(device).length : 0;
  if (device !== null && (bytes < 1 || bytes > 64)) {
    throw new TypeError('tidings: options.device is a text of 1 to 64 bytes without control characters');
  }
}

/** Reports an exception of a listener without affecting the client. */
function report(error) {
  queueMicrotask(() => (globalThis.reportError ?? console.error)(error));
}

export class Tidings {
  #url;
  #fetchToken;
  #options;
  #listeners = new Map();
  #timers = new Map();
  #state = Object.freeze({ name: 'idle' });

  #turn = 0; // Counts sockets and attempts, so that a response to an earlier one is recognised as stale.
  #attempt = 0; // Consecutive connections that failed or did not last.
  #socket = null;
  #token = null; // The token in force for the connection.
  #offered = null; // The token sent to replace it, not yet answered.
  #refused = null; // The token refused with 4009.
  #resuming = null; // The resume requested by this connection: a cursor, or `acked`.
  #reconnectAt = null; // The time at which the gateway asked us to reconnect.
  #silentAt = Infinity; // The time at which a silent gateway counts as dead.
  #refreshAt = Infinity;

  #welcome = null;
  #user = null; // The user that the following fields belong to, once known.
  #cursor;
  #seen = new Set();
  #handed = null; // The last durable event passed to listeners.
  #acked = null; // The furthest position acked by the page.
  #ackPlanned = false;
  #ackSentAt = -Infinity;
  #storageFailed = false;

  /**
   * Starts connecting at once, unless `autoConnect` is false.
   * @param {string | URL} url
   * @param {import('./tidings.d.ts').TidingsOptions} options
   */
  constructor(url, options) {
    this.#url = socketUrl(url);
    const given = Object.entries(options ?? {}).filter(([, value]) => value !== undefined);
    this.#options = { WebSocket: globalThis.WebSocket, ...DEFAULTS, ...Object.fromEntries(given) };
    check(this.#options);
    if (typeof this.#options.WebSocket !== 'function') throw new TypeError('tidings: no WebSocket here; pass one');
    // Called asynchronously, so that the callback may use the variable that this instance is assigned to.
    this.#fetchToken = () => Promise.resolve().then(options.token);
    this.#cursor = this.#options.cursor;
    if (this.#options.autoConnect) this.connect();
  }

  /** The client's current state; see the `state` event. */
  get state() {
    return this.#state;
  }

  /** The position in the user's durable history up to which every event was passed to listeners, or null. */
  get cursor() {
    return this.#cursor;
  }

  /** The last `welcome` frame: connection, user, instance, unread. Null before the first. */
  get welcome() {
    return this.#welcome;
  }

  /** Connects, if idle or closed; if waiting, retries now. */
  connect() {
    if (this.#state.name === 'waiting') return void this.#open();
    if (this.#state.name !== 'idle' && this.#state.name !== 'closed') return;
    this.#attempt = 0;
    for (const name of ['online', 'visibilitychange', 'pageshow']) {
      globalThis.window?.addEventListener(name, this.#wake);
    }
    this.#open();
  }

  /** Ends a wait and tries now; does nothing in any other state. */
  retryNow() {
    if (this.#state.name === 'waiting') this.#open();
  }

  /** Closes permanently: nothing is delivered until `connect()`. */
  close() {
    if (this.#state.name !== 'closed') this.#end(1000, 'closed by this client');
  }

  /**
   * Acknowledges the durable events up to this one: it becomes the read position of the user's device. Sent soon, and
   * again after each welcome, because acks are not confirmed; only the furthest counts.
   * @param {string | null} [id] default: the last durable event passed to listeners
   */
  ack(id = this.#handed) {
    if (id === null) return;
    if (typeof id !== 'string') throw new TypeError('tidings: ack() takes an id or a cursor');
    if (this.#acked !== null && (id === this.#acked || isBefore(id, this.#acked))) return;
    this.#acked = id;
    this.#planAck();
  }

  #planAck() {
    if (this.#ackPlanned || this.#acked === null || this.#state.name !== 'live') return;
    this.#ackPlanned = true;
    const wait = Math.max(0, this.#ackSentAt + ACK_EVERY_MS - Date.now());
    this.#after('ack', wait, () => this.#sendAck());
  }

  /** Sends the planned ack, if any. */
  #sendAck() {
    if (!this.#ackPlanned) return;
    this.#ackPlanned = false;
    this.#ackSentAt = Date.now();
    this.#send({ type: 'ack', id: this.#acked });
  }

  /**
   * @param {string} name
   * @param {(...args: any[]) => unknown} listener
   * @returns {() => void} unsubscribes
   */
  on(name, listener) {
    if (typeof listener !== 'function') throw new TypeError('tidings: a listener must be a function');
    if (!this.#listeners.has(name)) this.#listeners.set(name, new Set());
    this.#listeners.get(name).add(listener);
    return () => this.off(name, listener);
  }

  /**
   * @param {string} name
   * @param {(...args: any[]) => unknown} listener
   */
  off(name, listener) {
    const listeners = this.#listeners.get(name);
    if (listeners?.delete(listener) && listeners.size === 0) this.#listeners.delete(name);
  }

  #emit(name, ...args) {
    for (const listener of [...(this.#listeners.get(name) ?? [])]) {
      try {
        const result = listener(...args);
        if (typeof result?.then === 'function') result.then(undefined, report);
      } catch (error) {
        report(error);
      }
    }
  }

  #setState(state) {
    this.#state = Object.freeze(state);
    this.#emit('state', this.#state);
  }

  #after(name, ms, then) {
    clearTimeout(this.#timers.get(name));
    const step = Math.min(ms, MAX_TIMEOUT_MS);
    const fire = () => (ms > step ? this.#after(name, ms - step, then) : then());
    this.#timers.set(name, setTimeout(fire, step));
  }

  /** Releases the socket and every timer: the previous connection can no longer cause any event. */
  #drop() {
    this.#sendAck();
    this.#turn += 1;
    for (const timer of this.#timers.values()) clearTimeout(timer);
    this.#timers.clear();
    this.#reconnectAt = this.#offered = null;
    this.#silentAt = this.#refreshAt = Infinity;
    const socket = this.#socket;
    this.#socket = null;
    if (!socket) return;
    socket.onmessage = socket.onclose = null; // `onerror` stays: closing an unfinished handshake may raise one.
    socket.close();
  }

  async #open() {
    this.#drop();
    const turn = this.#turn;
    const late = () => turn !== this.#turn;
    this.#after('connect', this.#options.connectTimeoutMs, () => this.#lost('connect_timeout', 'no welcome in time'));
    this.#setState({ name: 'connecting', attempt: this.#attempt });
    if (late()) return;
    let token;
    try {
      token = await this.#fetchToken();
    } catch (cause) {
      if (!late()) this.#lost('token_failed', 'the token callback failed', cause);
      return;
    }
    if (late()) return;
    if (token === null || token === undefined) this.#end('no_token', 'the token callback returned no token');
    else if (!JWT.test(token)) this.#end('bad_token', 'the token callback did not return a JWT');
    else if (token === this.#refused) this.#end(4009, 'bad token, and the token callback returned it again');
    else this.#dial(token);
  }

  /** The resume position: this client's own cursor, else the page's option, else the cursor stored in the browser. */
  #place(token) {
    if (this.#cursor !== null) return this.#cursor;
    if (this.#options.resume !== null) return this.#options.resume;
    const { sub } = claims(token);
    const user = this.#user ?? (Number.isInteger(sub) ? String(sub) : sub);
    const kept = this.#stored(user, (storage, key) => storage.getItem(key)) ?? null;
    if (kept === null) return null;
    this.#user = user; // A guess until the welcome: the gateway may take the user from another claim.
    this.#cursor = kept;
    return kept;
  }

  /** Accesses the cursor that the browser stores for a user. A failure is reported once; the client continues. */
  #stored(user, use) {
    if (this.#options.storageKey === null || user === undefined) return undefined;
    const { origin, pathname } = this.#url; // Without the query, which may contain secrets.
    try {
      return use(globalThis.localStorage, `${this.#options.storageKey} ${origin}${pathname} ${user}`);
    } catch (cause) {
      if (!this.#storageFailed) {
        this.#storageFailed = true;
        this.#emitError('storage_failed', 'the browser cannot store the cursor: the next page will not resume', cause);
      }
      return undefined;
    }
  }

  /** Moves the cursor, and the stored cursor unless another tab is further ahead. */
  #moveTo(cursor) {
    this.#cursor = cursor;
    this.#stored(this.#user, (storage, key) => {
      const kept = storage.getItem(key);
      if (kept === null || !isBefore(cursor, kept)) storage.setItem(key, cursor);
    });
  }

  #dial(token) {
    const url = new URL(this.#url);
    const resuming = this.#place(token);
    if (resuming !== null) url.searchParams.set('resume', resuming);
    if (this.#options.device !== null) url.searchParams.set('device', this.#options.device);
    let socket;
    try {
      socket = new this.#options.WebSocket(url.href, ['tidings.v1', `bearer.${token}`]);
    } catch (error) {
      // The message may quote the arguments, so only the name is passed on.
      return this.#end('refused_here', `the browser refused to open a WebSocket (${error.name})`);
    }
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = ({ code, reason }) => this.#lost(code, reason);
    socket.onerror = () => {}; // Always followed by a close, which carries the code.
    this.#socket = socket;
    this.#token = token;
    this.#resuming = resuming;
  }

  /** A connection or an attempt has ended: decides whether, and when, to retry. */
  #lost(code, reason, cause) {
    const planned = this.#reconnectAt;
    if (code >= 4000 && code < 4100 && !this.#mayRetry(code)) return this.#end(code, reason);
    const now = Date.now();
    const delay = planned === null ? this.#delay(code) : Math.max(0, planned - now);
    this.#drop();
    this.#attempt += 1;
    this.#after('retry', delay, () => this.#open());
    this.#setState({ name: 'waiting', attempt: this.#attempt, retryInMs: delay, retryAt: now + delay, code, reason });
    if (planned === null) this.#emitError(code, reason, cause);
  }

  /** Among the 40xx only a token can be replaced: an expired one always, a bad one once. */
  #mayRetry(code) {
    if (code === 4010) return true;
    if (code !== 4009 || this.#refused !== null) return false;
    this.#refused = this.#token;
    return true;
  }

  #delay(code) {
    const prompt = code === 4009 || code === 4010 || (code >= 4200 && code < 4300);
    if (prompt && this.#attempt === 0) return this.#options.random() * this.#options.promptDelayMs;
    return backoff(this.#attempt, this.#options);
  }

  #end(code, reason) {
    this.#drop();
    for (const name of ['online', 'visibilitychange', 'pageshow']) {
      globalThis.window?.removeEventListener(name, this.#wake);
    }
    this.#token = this.#refused = null;
    this.#setState({ name: 'closed', code, reason });
    if (code !== 1000) this.#emitError(code, reason);
  }

  #emitError(code, reason, cause) {
    this.#emit('error', new TidingsError(code, reason || `connection closed with ${code}`, cause));
  }

  #receive(text) {
    this.#heard();
    let frame = null;
    try {
      if (typeof text === 'string') frame = JSON.parse(text);
    } catch {
      // Rejected just below.
    }
    if (frame === null || typeof frame !== 'object') return this.#emitError('bad_frame', 'not a frame of tidings.v1');
    switch (frame.type) {
      case 'welcome': return this.#onWelcome(frame);
      case 'event': return this.#onEvent(frame);
      case 'ping': return this.#send({ type: 'pong' });
      case 'authenticated': return this.#onAuthenticated();
      case 'reconnect': return this.#onReconnect(frame);
      case 'error': return this.#onError(frame);
      default: // A newer gateway may send more types; they are optional.
    }
  }

  #send(frame) {
    if (this.#socket?.readyState === 1) this.#socket.send(JSON.stringify(frame));
  }

  /** The gateway pings a silent client, so silence for a heartbeat plus a grace period means that it is dead. */
  #heard() {
    const heartbeat = this.#state.name === 'live' ? this.#welcome.heartbeat_ms : 0;
    if (!(heartbeat > 0)) return;
    const limit = heartbeat + this.#options.silenceGraceMs;
    this.#silentAt = Date.now() + limit;
    this.#after('silence', limit, () => this.#silent());
  }

  #silent() {
    this.#lost('silent', 'nothing received from the gateway');
  }

  #onWelcome(frame) {
    clearTimeout(this.#timers.get('connect'));
    const mine = this.#user === null || this.#user === frame.user;
    if (!mine) this.#forget();
    this.#user = frame.user;
    // The user is known only now: the resume may have used another user's cursor, or been omitted.
    if ((!mine || this.#resuming === null) && this.#place(this.#token) !== null) return this.#again();
    const missed = mine && this.#resuming !== null && !frame.recovered;
    const since = this.#resuming === 'acked' ? null : this.#resuming;
    // After a recovery the missed events still follow, and move our cursor one by one. If the gateway currently cannot
    // give a cursor, we keep ours.
    if (frame.cursor && (!frame.recovered || this.#cursor === null)) this.#moveTo(frame.cursor);
    // It would be dropped each time.
    if (this.#acked !== null && frame.cursor && !isOfSameHistory(this.#acked, frame.cursor)) this.#acked = null;
    this.#welcome = Object.freeze(frame);
    this.#after('stable', this.#options.stableAfterMs, () => {
      this.#attempt = 0;
      this.#refused = null;
    });
    this.#planRefresh();
    this.#setState({ name: 'live' });
    if (this.#state.name !== 'live') return; // A listener called close().
    this.#heard();
    this.#emit('welcome', frame);
    if (missed) this.#emit('gap', { since, cursor: this.#cursor });
    this.#planAck();
  }

  #forget() {
    this.#seen.clear();
    this.#cursor = this.#handed = this.#acked = null;
  }

  /** Reconnects to resume from another position: at once, or with backoff if that repeats. */
  #again() {
    const delay = this.#attempt === 0 ? 0 : backoff(this.#attempt, this.#options);
    this.#drop();
    this.#attempt += 1;
    this.#after('retry', delay, () => this.#open());
  }

  #onEvent(frame) {
    const { id, event, data } = frame;
    if (id !== undefined) {
      if (this.#seen.has(id)) return;
      this.#seen.add(id);
      if (this.#seen.size > this.#options.rememberedIds) this.#seen.delete(this.#seen.values().next().value);
      this.#handed = id;
    }
    if (!OWN_EVENTS.has(event)) this.#emit(event, data, frame);
    this.#emit('event', data, frame);
    // Only now: a page that is closed within a listener receives the event again.
    if (id !== undefined) this.#moveTo(id);
  }

  /** Reconnects at the requested time. Backs off if requests repeat before a connection is stable. */
  #onReconnect(frame) {
    const asked = Number.isFinite(frame.after_ms) ? Math.max(0, frame.after_ms) : 0;
    const delay = this.#attempt === 0 ? asked : Math.max(asked, backoff(this.#attempt, this.#options));
    this.#reconnectAt = Date.now() + delay;
    this.#after('reconnect', delay, () => {
      this.#attempt += 1;
      this.#open();
    });
    this.#emit('reconnect', frame);
  }

  #onError(frame) {
    this.#offered = null; // If the offered token was refused, the old one stays in force.
    this.#emitError(frame.code, frame.message);
  }

  #onAuthenticated() {
    if (this.#offered === null) return;
    this.#token = this.#offered;
    this.#offered = null;
    this.#planRefresh();
  }

  #planRefresh() {
    const delay = refreshDelay(this.#token, Date.now());
    this.#refreshAt = delay === null ? Infinity : Date.now() + delay;
    if (delay !== null) this.#after('refresh', delay, () => this.#refresh());
  }

  /** Offers a new token. The next try is planned first, so that a failure or a missing answer only postpones it. */
  async #refresh() {
    const turn = this.#turn;
    this.#planRefresh();
    try {
      const token = await this.#fetchToken();
      if (turn !== this.#turn) return;
      if (!JWT.test(token)) return this.#emitError('bad_token', 'the token callback did not return a JWT');
      this.#offered = token;
      this.#send({ type: 'auth', token });
    } catch (cause) {
      if (turn === this.#turn) this.#emitError('token_failed', 'the token callback failed', cause);
    }
  }

  /** Timers stop while a machine sleeps, and a restored network justifies an immediate retry. */
  #wake = ({ type }) => {
    this.#sendAck(); // Timers of a page that is being left may never fire.
    const now = Date.now();
    const { name, retryAt } = this.#state;
    if (name === 'waiting' && (type === 'online' || now >= retryAt)) this.#open();
    else if (name === 'live' && now >= this.#silentAt) this.#silent();
    else if (name === 'live' && now >= this.#refreshAt) this.#refresh();
  };
}
