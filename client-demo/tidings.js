/**
 * The browser client of a tidings gateway: one file, no dependencies.
 *
 *     const c = new Tidings('/ws', { token: async () => jwt });
 *     c.on('notification', (data, frame) => show(data));
 *     c.on('state', (state) => paint(state));
 *     c.ack();
 *     c.close();
 *
 * It connects when constructed (or at `connect()`, with `autoConnect: false`), stays connected, and says through
 * `state` what it is doing. It never logs the token, nor puts it into an error.
 */

/** What a timer can count; a longer wait is made of several. */
const MAX_TIMEOUT_MS = 2 ** 31 - 1;

/** Acks are told this often at most, the furthest of them: a gateway bounds what a client may send in a second. */
const ACK_EVERY_MS = 100;

/** Names this client emits itself. A published event of the same name reaches listeners of `event` only. */
const OWN_EVENTS = new Set(['event', 'welcome', 'state', 'error', 'reconnect', 'gap']);

/** Three base64url parts. What no subprotocol may hold stays out: a WebSocket would quote it in its error. */
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

/** A failure with a code: a close or error code of the gateway (a number), or a word for what happened on this side. */
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
 * Full jitter: any wait up to a ceiling that doubles with each attempt, so that many clients do not return together.
 * @param {number} attempt failed attempts so far
 * @param {{ baseDelayMs: number, maxDelayMs: number, random: () => number }} options
 */
export function backoff(attempt, { baseDelayMs, maxDelayMs, random }) {
  return random() * Math.min(maxDelayMs, baseDelayMs * 2 ** attempt);
}

/** What a token says, or nothing: the gateway may read what we cannot, and we only plan with it. */
function claims(token) {
  try {
    const bytes = atob(token.split('.')[1].replaceAll('-', '+').replaceAll('_', '/'));
    return JSON.parse(new TextDecoder().decode(Uint8Array.from(bytes, (byte) => byte.charCodeAt(0)))) ?? {};
  } catch {
    return {};
  }
}

/** Whether one cursor lies before another of the same history; those of two histories cannot be compared. */
function isBefore(cursor, other) {
  const [epoch, ms, number] = cursor.split('-');
  const [otherEpoch, otherMs, otherNumber] = other.split('-');
  return epoch === otherEpoch && (Number(ms) - Number(otherMs) || Number(number) - Number(otherNumber)) < 0;
}

const isOfSameHistory = (cursor, other) => cursor.split('-')[0] === other.split('-')[0];

/**
 * How long to wait before a token should be replaced: 80% of what is left of it and at least 10 s before its end, or
 * half of what is left where it is that short. Null without a readable `exp`, or when it is too late to matter.
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

/** A handshake refused for one of these would not say so to a browser, so they are refused here. */
function check({ token, device, resume }) {
  if (typeof token !== 'function') throw new TypeError('tidings: options.token must be a function');
  if (resume !== null && resume !== 'acked') throw new TypeError("tidings: options.resume is 'acked' or left out");
  const named = typeof device === 'string' && !/\p{Cc}/u.test(device);
  const bytes = named ? new TextEncoder().encode(device).length : 0;
  if (device !== null && (bytes < 1 || bytes > 64)) {
    throw new TypeError('tidings: options.device is a text of 1 to 64 bytes without control characters');
  }
}

/** Hands over what a listener threw without letting it disturb the client. */
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

  #turn = 0; // Counts sockets and attempts, so that an answer to an earlier one is recognised as late.
  #attempt = 0; // Connections in a row that failed or did not last.
  #socket = null;
  #token = null; // The one the connection lives under.
  #offered = null; // The one sent to replace it, not yet answered.
  #refused = null; // The one a 4009 turned down.
  #resuming = null; // What this connection asked to resume from: a cursor, or `acked`.
  #reconnectAt = null; // When the gateway asked us to come back.
  #silentAt = Infinity; // When a silent gateway counts as gone.
  #refreshAt = Infinity;

  #welcome = null;
  #user = null; // Whose the rest of these are, once that is known.
  #cursor;
  #seen = new Set();
  #handed = null; // The last durable event that listeners have been given.
  #acked = null; // The furthest that the page has acked.
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
    // Called a moment later, so that the callback may use what is being assigned from this constructor.
    this.#fetchToken = () => Promise.resolve().then(options.token);
    this.#cursor = this.#options.cursor;
    if (this.#options.autoConnect) this.connect();
  }

  /** What the client is doing; see the `state` event. */
  get state() {
    return this.#state;
  }

  /** The place in the user's durable history up to which listeners have been given everything, or null. */
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

  /** Closes for good: nothing is delivered any more, until `connect()`. */
  close() {
    if (this.#state.name !== 'closed') this.#end(1000, 'closed by this client');
  }

  /**
   * Says that the durable events up to this one are handled: it becomes the read position of the user's device. Told
   * soon, and after each welcome again, as nothing says that it arrived; only the furthest counts.
   * @param {string | null} [id] default: the last durable event that listeners have been given
   */
  ack(id = this.#handed) {
    if (id === null) return;
    if (typeof id !== 'string') throw new TypeError('tidings: what is acked is an id or a cursor');
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

  /** Sends the ack that is planned, if one is. */
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

  /** Lets go of the socket and every timer: nothing of the connection so far can be heard again. */
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
    if (token === null || token === undefined) this.#end('no_token', 'the token callback has none');
    else if (!JWT.test(token)) this.#end('bad_token', 'the token callback gave something that is no JWT');
    else if (token === this.#refused) this.#end(4009, 'bad token, and the token callback has no other');
    else this.#dial(token);
  }

  /** Where to begin: behind what this client has handled, else where the page wants to, else what the browser keeps. */
  #place(token) {
    if (this.#cursor !== null) return this.#cursor;
    if (this.#options.resume !== null) return this.#options.resume;
    const { sub } = claims(token);
    const user = this.#user ?? (Number.isInteger(sub) ? String(sub) : sub);
    const kept = this.#stored(user, (storage, key) => storage.getItem(key)) ?? null;
    if (kept === null) return null;
    this.#user = user; // A guess until the welcome, where the gateway takes the user from another claim.
    this.#cursor = kept;
    return kept;
  }

  /** Uses what the browser keeps for a user. The client does without it where that fails, and says so once. */
  #stored(user, use) {
    if (this.#options.storageKey === null || user === undefined) return undefined;
    const { origin, pathname } = this.#url; // Not its query, which may hold secrets.
    try {
      return use(globalThis.localStorage, `${this.#options.storageKey} ${origin}${pathname} ${user}`);
    } catch (cause) {
      if (!this.#storageFailed) {
        this.#storageFailed = true;
        this.#emitError('storage_failed', 'the browser stores no cursor: the next page will not resume', cause);
      }
      return undefined;
    }
  }

  /** Moves the cursor, and the stored one with it unless another tab is further. */
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
      // Its message may quote what it was given, so only its name is passed on.
      return this.#end('refused_here', `no WebSocket may be opened from here (${error.name})`);
    }
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = ({ code, reason }) => this.#lost(code, reason);
    socket.onerror = () => {}; // Always followed by a close, which says more.
    this.#socket = socket;
    this.#token = token;
    this.#resuming = resuming;
  }

  /** A connection or an attempt has ended: decides whether, and when, to try again. */
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

  /** Of the 40xx only a token can have changed by itself: an expired one always, a bad one once. */
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
      // Told apart from a good frame just below.
    }
    if (frame === null || typeof frame !== 'object') return this.#emitError('bad_frame', 'not a frame of tidings.v1');
    switch (frame.type) {
      case 'welcome': return this.#onWelcome(frame);
      case 'event': return this.#onEvent(frame);
      case 'ping': return this.#send({ type: 'pong' });
      case 'authenticated': return this.#onAuthenticated();
      case 'reconnect': return this.#onReconnect(frame);
      case 'error': return this.#onError(frame);
      default: // A newer gateway may say more; what it adds is optional.
    }
  }

  #send(frame) {
    if (this.#socket?.readyState === 1) this.#socket.send(JSON.stringify(frame));
  }

  /** The gateway pings a silent client, so hearing nothing for that long and a grace means that it is gone. */
  #heard() {
    const heartbeat = this.#state.name === 'live' ? this.#welcome.heartbeat_ms : 0;
    if (!(heartbeat > 0)) return;
    const limit = heartbeat + this.#options.silenceGraceMs;
    this.#silentAt = Date.now() + limit;
    this.#after('silence', limit, () => this.#silent());
  }

  #silent() {
    this.#lost('silent', 'nothing heard from the gateway');
  }

  #onWelcome(frame) {
    clearTimeout(this.#timers.get('connect'));
    const mine = this.#user === null || this.#user === frame.user;
    if (!mine) this.#forget();
    this.#user = frame.user;
    // Only now is it known who the user is: what we resumed from may be another's, or have been left out.
    if ((!mine || this.#resuming === null) && this.#place(this.#token) !== null) return this.#again();
    const missed = mine && this.#resuming !== null && !frame.recovered;
    const since = this.#resuming === 'acked' ? null : this.#resuming;
    // What was recovered is still to come: our own cursor moves with it, one event after the other. One that the
    // gateway cannot tell just now is no reason to lose ours.
    if (frame.cursor && (!frame.recovered || this.#cursor === null)) this.#moveTo(frame.cursor);
    // It would be refused each time.
    if (this.#acked !== null && frame.cursor && !isOfSameHistory(this.#acked, frame.cursor)) this.#acked = null;
    this.#welcome = Object.freeze(frame);
    this.#after('stable', this.#options.stableAfterMs, () => {
      this.#attempt = 0;
      this.#refused = null;
    });
    this.#planRefresh();
    this.#setState({ name: 'live' });
    if (this.#state.name !== 'live') return; // A listener has closed us.
    this.#heard();
    this.#emit('welcome', frame);
    if (missed) this.#emit('gap', { since, cursor: this.#cursor });
    this.#planAck();
  }

  #forget() {
    this.#seen.clear();
    this.#cursor = this.#handed = this.#acked = null;
  }

  /** Dials anew, to begin elsewhere: at once, unless it comes to that again and again. */
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
    // Only now: a page that ends within a listener is given the event again.
    if (id !== undefined) this.#moveTo(id);
  }

  /** Comes back when asked to. One that is asked again and again without ever settling backs off all the same. */
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
    this.#offered = null; // If it was about the offered token, the connection lives on under its old one.
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

  /** Offers a fresh token. The next try is planned first, so that a failure or no answer only postpones it. */
  async #refresh() {
    const turn = this.#turn;
    this.#planRefresh();
    try {
      const token = await this.#fetchToken();
      if (turn !== this.#turn) return;
      if (!JWT.test(token)) return this.#emitError('bad_token', 'the token callback gave something that is no JWT');
      this.#offered = token;
      this.#send({ type: 'auth', token });
    } catch (cause) {
      if (turn === this.#turn) this.#emitError('token_failed', 'the token callback failed', cause);
    }
  }

  /** Timers stand still while a machine sleeps, and a network that returns is worth a try at once. */
  #wake = ({ type }) => {
    this.#sendAck(); // Timers of a page that is left may never fire.
    const now = Date.now();
    const { name, retryAt } = this.#state;
    if (name === 'waiting' && (type === 'online' || now >= retryAt)) this.#open();
    else if (name === 'live' && now >= this.#silentAt) this.#silent();
    else if (name === 'live' && now >= this.#refreshAt) this.#refresh();
  };
}
