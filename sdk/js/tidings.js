/**
 * The browser client of a tidings gateway, without dependencies. What few pages need is in files beside this one, loaded at the
 * first use: `tidings-sse.js` where no WebSocket opens, `tidings-history.js`, `tidings-storage.js`.
 *
 *     const c = new Tidings('/ws', { token });
 *     c.on('notification', (data, frame) => show(data));
 *     c.on('unread', (unread) => badge(unread));
 *     c.on('state', (state) => paint(state));
 *     const { notifications, next } = await c.history();
 *     c.ack();
 *     c.close();
 *
 * It connects when constructed (or at `connect()`, with `autoConnect: false`), stays connected, and reports its
 * condition through `state`. It never logs the token or includes it in an error.
 */

/** The maximum delay of a timer: a token that lives for longer is refreshed by then. */
const MAX_TIMEOUT_MS = 2 ** 31 - 1;

/** Minimum interval between acks; only the furthest is sent. The gateway limits frames per second. */
const ACK_EVERY_MS = 100;

/** How long a replaced connection has for its last events, and how far apart one event can reach both connections. */
const HANDOVER_MS = 1_000;

/** How long a live connection may take to answer after the network returned or the machine woke. */
const PROBE_MS = 2_000;

/** A timer that is later than this has slept. Browsers delay the timers of hidden pages by up to a minute. */
const TICK_MS = 2_000;
const LATE_MS = 5_000;
const HIDDEN_LATE_MS = 70_000;

/** After so many attempts that never opened, the state names the possible causes: a browser does not expose them. */
const UNOPENED_HINT = 3;
const UNOPENED_REASON = 'no handshake succeeds: Origin, capacity or network may be the cause';

const PAGE_EVENTS = ['online', 'offline', 'visibilitychange', 'pagehide', 'pageshow'];

/** Events emitted by the client itself. A published event with such a name reaches only listeners of `event`. */
const OWN_EVENTS = /^(event|welcome|state|error|reconnect|gap|unread|read|retracted)$/;

/**
 * Three base64url parts, the first of which encodes an object; a host name has three parts, too. Excludes characters invalid
 * in a subprotocol: a WebSocket would quote them in its error.
 */
const JWT = /^e[wy][\w-]+\.[\w-]+\.[\w-]*$/;

const DEFAULTS = {
  autoConnect: true,
  baseDelayMs: 500,
  maxDelayMs: 30_000,
  promptDelayMs: 1_000,
  stableAfterMs: 5_000,
  connectTimeoutMs: 10_000,
  retryTimeoutMs: 70_000,
  silenceGraceMs: 15_000,
  socketRetryMs: 300_000,
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
    super(message, { cause });
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

/** Whether a cursor precedes another of the same history; cursors of different histories cannot be compared. */
function isBefore(cursor, other) {
  const [epoch, ms, number] = cursor.split('-');
  const [otherEpoch, otherMs, otherNumber] = other.split('-');
  return epoch === otherEpoch && (ms - otherMs || number - otherNumber) < 0;
}

const isOfSameHistory = (cursor, other) => cursor.split('-')[0] === other.split('-')[0];

/** The number of a cursor: a user's stored notifications are numbered without a hole. */
const numberOf = (cursor) => Number((cursor ?? '').split('-')[2]);

/** Whether a frame is an event that is not stored. */
const isPlain = ({ frame: { type, id } }) => type === 'event' && !id;

/** Whether two events, received on two connections, are one. */
const isSame = (one, other) => one.text === other.text && Math.abs(one.at - other.at) <= HANDOVER_MS;

/**
 * The delay before a token should be refreshed: 80% of its remaining lifetime and at least 10 s before its expiry, or
 * half of the remaining lifetime if it is that short. Null for a token that does not expire, or if it is too late.
 * @param {number | null | undefined} left the remaining lifetime by the gateway's clock, in ms
 * @returns {number | null}
 */
export function refreshDelay(left) {
  return left >= 2_000 ? Math.max(left / 2, Math.min(left * 0.8, left - 10_000)) : null;
}

/** @param {string | URL} url a ws(s) or http(s) address, or one relative to the page */
function socketUrl(url) {
  const resolved = new URL(url, globalThis.location?.href);
  resolved.protocol = resolved.protocol.replace(/^http/, 'ws');
  resolved.hash = '';
  demand(/^wss?:$/.test(resolved.protocol), `no WebSocket address: ${resolved.protocol}`);
  return resolved;
}

function demand(isGiven, what) {
  if (!isGiven) throw new TypeError(`tidings: ${what}`);
}

/** A browser does not expose the reason for a refused handshake, so invalid options are rejected here. */
function check({ resume, device }) {
  demand(!resume || resume === 'acked', "options.resume is 'acked' or missing");
  const isName = typeof device === 'string' && /^\P{Cc}+$/u.test(device) && new Blob([device]).size <= 64;
  demand(device === undefined || device === null || isName, 'options.device has 1 to 64 bytes, no control character');
}

/** Whether a close code asks not to retry unchanged. */
const isFinal = (code) => code >= 4000 && code < 4100;

/** Whether a close code asks for another token. */
const isForToken = (code) => code === 4009 || code === 4010;

/** Reports an exception of a listener without affecting the client. */
function report(error) {
  queueMicrotask(() => (globalThis.reportError ?? console.error)(error));
}

export class Tidings {
  #url;
  #options = { ...DEFAULTS };
  #listeners = new Map();
  #timers = new Map();
  #state = Object.freeze({ name: 'idle' });

  // A link is a connection or an attempt at one: its socket, its token, the requested resume.
  #live = null; // The link that delivers.
  #next = null; // The attempt in progress. While there is a live link, it is to replace that one.
  #attempt = 0; // Consecutive connections that failed or did not last.
  #unopened = 0; // Consecutive attempts that were never answered by a gateway.
  #streams = false; // Whether the last connection was an event stream.
  #byHello = false; // Whether to authenticate by a `hello`, whose refusal has a code and a reason.
  #refused = null; // The token that was refused, and the code: 4009 or 4010.
  #reconnectAt = null; // The time of a planned reconnect.
  #tickAt = Infinity;
  #suspended = false; // Whether the page was left, and may come back from the back/forward cache.
  #offline = false;

  #welcome = null;
  #user = null; // The user that the following fields belong to, once known.
  #cursor;
  #seen = new Set();
  #handed = null; // The last durable event passed to listeners.
  #newest = ''; // The furthest position known in the history.
  #gone = new Set(); // The numbers of those retracted or expired that are known.
  #count = NaN; // The gateway's count of unread ones, which may not include our own ack yet.
  #unread = null; // The number last told to listeners.
  #acked = null; // The furthest position acked by the page.
  #ackPlanned = false;
  #ackSentAt = 0;
  #store; // Of cursors, if the page wants them stored.

  /**
   * Starts connecting at once, unless `autoConnect` is false.
   * @param {string | URL} url
   * @param {import('./tidings.d.ts').TidingsOptions} options
   */
  constructor(url, options) {
    for (const [name, value] of Object.entries({ ...options })) if (value !== undefined) this.#options[name] = value;
    check(this.#options);
    this.#cursor = this.#options.cursor ?? null;
    this.#url = url;
    if (globalThis.location) this.#prepare();
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

  /**
   * The number of unread stored notifications: those after the read position of the device, own acks included. Null until
   * it is known.
   */
  get unread() {
    const newer = this.#newer(this.#acked);
    const unread = newer < this.#count ? Math.max(newer, 0) : this.#count;
    return unread >= 0 ? unread : null;
  }

  /** Connects, if idle or closed; if waiting, retries now. */
  connect() {
    this.retryNow();
    if (this.#state.name !== 'idle' && this.#state.name !== 'closed') return;
    this.#prepare();
    for (const name of PAGE_EVENTS) globalThis.addEventListener?.(name, this.#onPage);
    this.#begin();
  }

  /** Checks what connecting requires. A page that is rendered on a server has no address and may have no WebSocket. */
  #prepare() {
    const options = this.#options;
    demand(typeof options.token === 'function', 'options.token must be a function');
    options.WebSocket ??= globalThis.WebSocket;
    demand(options.WebSocket, 'no WebSocket here; pass one');
    this.#url = socketUrl(this.#url);
  }

  /** The first attempt: after `connect()`, and when a page comes back. */
  #begin() {
    this.#suspended = false;
    this.#offline = globalThis.navigator?.onLine === false; // A page in the back/forward cache gets no events.
    this.#attempt = 0;
    this.#open();
    this.#tickAt = Infinity;
    this.#tick();
  }

  /** Ends a wait and tries now; does nothing in any other state. */
  retryNow() {
    if (this.#state.name === 'waiting') this.#open();
  }

  /** Closes permanently: nothing is delivered until `connect()`. */
  close() {
    if (this.#state.name !== 'closed') this.#end(1000, 'closed by the page');
  }

  /**
   * Acknowledges the durable events up to this one: it becomes the read position of the user's device. Sent soon, and
   * again after each welcome, because acks are not confirmed; only the furthest counts. An event stream cannot send it:
   * it is sent when a WebSocket opens again.
   * @param {string | null} [id] default: the last durable event passed to listeners
   */
  ack(id = this.#handed) {
    if (!id) return;
    demand(typeof id === 'string', 'ack() takes an id or a cursor');
    if (this.#acked && (id === this.#acked || isBefore(id, this.#acked))) return;
    this.#acked = id;
    this.#tellUnread();
    this.#planAck();
  }

  /**
   * Requests a page of the stored notifications, newest first.
   * @param {{ before?: string | null, limit?: number }} [page]
   */
  async history(page) {
    const { ask, holes } = await import('./tidings-history.js');
    const newest = this.#newest;
    const answer = await ask(this.#live, page);
    for (const hole of holes(answer, page?.before, newest, numberOf)) this.#remember(this.#gone, hole);
    return answer;
  }

  /** How many stored notifications are newer than this one, as far as is known. */
  #newer(id) {
    if (id === this.#newest) return 0;
    const number = numberOf(id);
    let newer = numberOf(this.#newest) - number;
    for (const gone of this.#gone) if (gone > number) newer -= 1;
    return newer;
  }

  #tellUnread() {
    const { unread } = this;
    if (unread !== this.#unread) this.#emit('unread', (this.#unread = unread));
  }

  #remember(set, value) {
    set.add(value);
    if (set.size > this.#options.rememberedIds) set.delete(set.values().next().value);
  }

  #planAck() {
    if (this.#ackPlanned || !this.#acked || this.#state.name !== 'live') return;
    this.#ackPlanned = true;
    this.#after('ack', this.#ackSentAt + ACK_EVERY_MS - Date.now(), () => this.#sendAck());
  }

  /** Sends the planned ack, if any. */
  #sendAck() {
    if (!this.#ackPlanned) return;
    this.#ackPlanned = false;
    this.#ackSentAt = Date.now();
    this.#send(this.#live, { type: 'ack', id: this.#acked });
  }

  /**
   * @param {string} name
   * @param {(...args: any[]) => unknown} listener
   * @returns {() => void} unsubscribes
   */
  on(name, listener) {
    demand(typeof listener === 'function', 'a listener must be a function');
    this.#listeners.set(name, (this.#listeners.get(name) ?? new Set()).add(listener));
    return () => this.off(name, listener);
  }

  /**
   * @param {string} name
   * @param {(...args: any[]) => unknown} listener
   */
  off(name, listener) {
    this.#listeners.get(name)?.delete(listener);
  }

  /**
   * As `on`, for one event.
   * @param {string} name
   * @param {(...args: any[]) => unknown} listener
   * @returns {() => void} unsubscribes
   */
  once(name, listener) {
    const off = this.on(name, (...args) => (off(), listener(...args)));
    return off;
  }

  #emit(name, ...args) {
    for (const listener of [...(this.#listeners.get(name) ?? [])]) {
      try {
        listener(...args)?.then?.(undefined, report);
      } catch (error) {
        report(error);
      }
    }
  }

  #setState(state) {
    this.#state = Object.freeze(this.#offline ? { ...state, offline: true } : state);
    this.#emit('state', this.#state);
  }

  #after(name, ms, then) {
    this.#clear(name);
    this.#timers.set(name, setTimeout(then, ms));
  }

  #clear(...names) {
    for (const name of names) clearTimeout(this.#timers.get(name));
  }

  /** Releases the socket of a link, which can then no longer cause any event. The code tells a stream that it was replaced. */
  #release(link, code) {
    const socket = link?.socket;
    if (!socket) return;
    // `onerror` stays: closing an unfinished handshake may raise one.
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close(code);
    link.answer?.();
  }

  /** Gives up the attempt in progress. */
  #abandon() {
    this.#clear('open', 'connect', 'handover');
    this.#release(this.#next);
    this.#next = null;
  }

  /** Leaves the live connection. */
  #leave(code) {
    this.#sendAck();
    this.#ackPlanned = false;
    this.#clear('ack', 'silence', 'probe', 'stable', 'refresh', 'socket');
    this.#reconnectAt = null;
    this.#release(this.#live, code);
    this.#live = null;
  }

  /** Starts an attempt. A live connection delivers until the attempt has succeeded. */
  async #open(probe = false) {
    this.#abandon();
    const link = { held: [], byHello: this.#byHello, plain: [], before: [], at: '', probe };
    const streams = !probe && this.#isStreamsTurn();
    this.#next = link;
    const { connectTimeoutMs, retryTimeoutMs } = this.#options;
    this.#limit(link, connectTimeoutMs);
    if (!this.#live) this.#setState({ name: 'connecting', attempt: this.#attempt });
    const token = await this.#askToken(() => link !== this.#next, (...failure) => this.#failed(link, ...failure));
    if (!token) return;
    if (token === this.#refused?.token) return this.#end(this.#refused.code, 'the same token again');
    link.token = token;
    // A browser may hold a handshake back for up to a minute after others have failed; it then succeeds at once.
    const isHeldBack = this.#unopened > 1 && !streams;
    this.#limit(link, Math.max(connectTimeoutMs, isHeldBack && retryTimeoutMs));
    try {
      if (streams) link.Stream = (await import('./tidings-sse.js')).EventStream;
      if (this.#options.storageKey) {
        const { store } = await import('./tidings-storage.js');
        this.#store ??= store(this.#options, this.#url, isBefore, (...failure) => this.#emitError(...failure));
      }
    } catch (cause) {
      return link === this.#next && this.#failed(link, 1006, 'a file of tidings.js cannot be loaded', cause);
    }
    if (link === this.#next) this.#dial(link);
  }

  /** An event stream follows two attempts at a WebSocket that never opened; once one has opened, they take turns. */
  #isStreamsTurn() {
    return this.#options.events !== null && (this.#streams ? this.#unopened % 2 === 0 : this.#unopened % 3 === 2);
  }

  /** Limits the time of an attempt, from now. */
  #limit(link, ms) {
    this.#after('connect', ms, () => this.#failed(link, 'connect_timeout', 'no answer in time'));
  }

  /**
   * Asks the page for a token. Without one the client ends; any other value that is not a JWT, such as an error page of
   * a backend that is being deployed, is a temporary failure. Returns null unless there is a token, still wanted.
   */
  async #askToken(isLate, fail) {
    let token;
    try {
      // Called asynchronously, so that the callback may use the variable that this instance is assigned to.
      token = await Promise.resolve().then(() => (isLate() ? null : this.#options.token()));
    } catch (cause) {
      if (!isLate()) fail('token_failed', 'the token callback failed', cause);
      return null;
    }
    if (isLate()) return null;
    if (token?.match?.(JWT)) return token;
    if (token === null || token === undefined) this.#end('no_token', 'no token');
    else fail('bad_token', 'not a JWT');
    return null;
  }

  /** The resume position: this client's own cursor, else the page's option, else the cursor stored in the browser. */
  #place(token) {
    const known = this.#cursor ?? this.#options.resume;
    if (known) return known;
    // The user is a guess until the welcome: the gateway may take it from another claim.
    [this.#user, this.#cursor] = this.#store?.find(this.#user, token) ?? [this.#user, null];
    return this.#cursor;
  }

  #moveTo(cursor) {
    this.#cursor = cursor;
    this.#store?.keep(this.#user, cursor);
  }

  #dial(link) {
    const { token, Stream } = link;
    const { device, WebSocket } = this.#options;
    const url = new URL(this.#url);
    const resuming = (link.resuming = this.#place(token));
    if (resuming) url.searchParams.set('resume', resuming);
    if (device) url.searchParams.set('device', device);
    // Otherwise a cookie of the page may decide, which the gateway takes for a credential, too.
    if (link.byHello) url.searchParams.set('auth', 'hello');
    const protocols = link.byHello ? ['tidings.v1'] : ['tidings.v1', `bearer.${token}`];
    let socket;
    try {
      link.socket = socket = Stream ? new Stream(url, token, isBefore, this.#options) : new WebSocket(url.href, protocols);
    } catch (error) {
      // The message may quote the arguments, so only the name is passed on.
      return this.#end('refused_here', `no WebSocket can be opened: ${error.name}`);
    }
    socket.onopen = () => {
      link.opened = true;
      this.#unopened = 0;
      this.#limit(link, this.#options.connectTimeoutMs);
      if (link.byHello) this.#send(link, { type: 'hello', token });
    };
    socket.onmessage = ({ data }) => this.#receive(link, data);
    socket.onclose = ({ code, reason }) => {
      if (link === this.#next) this.#failed(link, code, reason);
      else this.#lost(code, reason);
    };
    socket.onerror = () => {}; // Always followed by a close, which carries the code.
  }

  /** An attempt has failed: decides whether, and when, there is another. */
  #failed(link, code, reason, cause) {
    if (link.probe && this.#live) {
      this.#abandon();
      this.#reconnectAt = null;
      this.#attempt = 0;
      return;
    }
    if (link.token && !link.opened) {
      this.#unopened += 1;
      this.#byHello = !link.byHello; // In turns, in case that one of the two never succeeds here.
      if (this.#unopened >= UNOPENED_HINT && !(code > 0 && reason)) reason = UNOPENED_REASON;
    }
    // The live connection may be why this one was refused (4004); if it was not, the attempt after its end tells.
    if (!this.#live && isFinal(code) && !this.#mayRetry(link, code)) return this.#end(code, reason);
    this.#abandon();
    this.#retry(this.#delay(code), code, reason, cause);
  }

  /** The live connection has ended. */
  #lost(code, reason) {
    const next = this.#next;
    const planned = this.#reconnectAt;
    // 4004 may mean that the gateway has closed the older of our two connections.
    const isReplaced = next && code === 4004;
    if (isFinal(code) && !isReplaced && !this.#mayRetry(this.#live, code)) return this.#end(code, reason);
    if (next?.held.length > 0) return this.#adopt(next);
    if (next) next.before = this.#live.plain;
    this.#leave();
    if (next) this.#setState({ name: 'connecting', attempt: this.#attempt });
    else if (planned) this.#wait(Math.max(0, planned - Date.now()), code, reason);
    else this.#retry(this.#delay(code), code, reason);
  }

  /** Plans the next attempt after a failure. */
  #retry(delay, code, reason, cause) {
    this.#wait(delay, code, reason);
    this.#emitError(code, reason, cause);
  }

  #wait(delay, code, reason) {
    const retryAt = Date.now() + delay;
    this.#attempt += 1;
    this.#after('open', delay, () => this.#open());
    if (this.#live) this.#reconnectAt = retryAt;
    else this.#setState({ name: 'waiting', attempt: this.#attempt, retryInMs: delay, retryAt, code, reason });
  }

  /** Among the 40xx only a token can be replaced, once. */
  #mayRetry(link, code) {
    if (!isForToken(code) || this.#refused) return false;
    this.#refused = { token: link.token, code };
    return true;
  }

  #delay(code) {
    const prompt = isForToken(code) || (code >= 4200 && code < 4300);
    if (prompt && this.#attempt === 0) return this.#options.random() * this.#options.promptDelayMs;
    return backoff(this.#attempt, this.#options);
  }

  /** Releases everything, timers included. */
  #stop() {
    this.#leave();
    this.#abandon();
    this.#clear('tick');
  }

  #end(code, reason) {
    this.#stop();
    for (const name of PAGE_EVENTS) globalThis.removeEventListener?.(name, this.#onPage);
    this.#refused = null;
    this.#byHello = this.#suspended = false;
    this.#unopened = 0;
    this.#setState({ name: 'closed', code, reason });
    if (code !== 1000) this.#emitError(code, reason);
  }

  #emitError(code, reason, cause) {
    this.#emit('error', new TidingsError(code, reason || `closed with ${code}`, cause));
  }

  #receive(link, text) {
    let frame = null;
    try {
      if (typeof text === 'string') frame = JSON.parse(text);
    } catch {
      // Rejected just below.
    }
    if (!Object.hasOwn(frame ?? 0, 'type')) return this.#emitError('bad_frame', 'not a frame');
    if (frame.type === 'ping') this.#send(link, { type: 'pong' });
    const received = { frame, text, at: Date.now() };
    if (link === this.#live) this.#onFrame(received);
    else if (frame.type === 'welcome') return this.#onFirst(link, received);
    else if (link.held.length > 0) link.held.push(received);
    else if (frame.type === 'error') this.#emitError(frame.code, frame.message);
    if (isPlain(received)) this.#meet();
  }

  #onFrame(received) {
    const { frame } = received;
    this.#heard();
    if (this.#live.answer?.(frame)) return undefined;
    switch (frame.type) {
      case 'welcome': return this.#onWelcome(frame);
      case 'event': return this.#onEvent(received);
      case 'authenticated':
        this.#live.token = this.#live.offered ?? this.#live.token;
        return this.#planRefresh(frame.expires_in_ms);
      case 'reconnect': return this.#onReconnect(frame);
      case 'gap': return this.#emit('gap', { since: this.#cursor, cursor: this.#cursor, since_ms: frame.since_ms });
      // Of an event stream, now and then: a WebSocket takes over if it opens.
      case 'probe': return this.#reconnectAt ? undefined : this.#replace(HANDOVER_MS, true);
      case 'read': return this.#onRead(frame);
      case 'retracted': return this.#onRetracted(frame);
      // If an offered token was refused, the old one stays in force.
      case 'error': return this.#emitError(frame.code, frame.message);
      default: // A newer gateway may send more types; they are optional.
    }
  }

  #send(link, frame) {
    if (link?.socket?.readyState === 1) link.socket.send(JSON.stringify(frame));
  }

  /** The gateway pings a silent client, so silence for a heartbeat plus a grace period means that it is dead. */
  #heard() {
    this.#clear('probe');
    const heartbeat = this.#welcome?.heartbeat_ms;
    if (heartbeat > 0) this.#after('silence', heartbeat + this.#options.silenceGraceMs, () => this.#silent());
  }

  #silent() {
    this.#lost('silent', 'nothing received');
  }

  /**
   * The first frame of an attempt. Events published before it may still be under way on the connection that it
   * replaces, and only there; those since its registration come on both, in the same order. Its frames are held until
   * one event that is not stored has come on both: then the old connection has delivered all that the new one lacks. (A
   * stored event has an id, and is replayed.) Without such an event, until the old one ends, or a moment has passed.
   */
  #onFirst(link, received) {
    link.opened = true;
    this.#unopened = 0;
    this.#clear('connect');
    link.held.push(received);
    if (!this.#live || received.frame.user !== this.#user) return this.#adopt(link);
    this.#after('handover', HANDOVER_MS, () => this.#adopt(link));
  }

  /** Adopts an attempt once one event has come on both connections. */
  #meet() {
    const isOnBoth = (received) => isPlain(received) && this.#live.plain.some((other) => isSame(received, other));
    if (this.#live && this.#next?.held.some(isOnBoth)) this.#adopt(this.#next);
  }

  /** Makes an attempt the live connection, and delivers what it has received so far. */
  #adopt(link) {
    const { held } = link;
    if (this.#live) link.before = this.#live.plain;
    this.#leave(1000);
    this.#clear('handover', 'open');
    this.#live = link;
    this.#next = null;
    link.held = [];
    for (const received of held) {
      if (link !== this.#live) return; // A listener called close().
      this.#onFrame(received);
    }
  }

  /** Whether the connection that was replaced has delivered an event already. */
  #isTwice(received) {
    const { before } = this.#live;
    const at = before.findIndex((other) => isSame(received, other));
    return at >= 0 && before.splice(at, 1);
  }

  #onWelcome(frame) {
    const { token, resuming, Stream } = this.#live;
    const mine = this.#user === null || this.#user === frame.user;
    if (!mine) {
      this.#seen.clear();
      this.#live.before = [];
      this.#cursor = null;
      this.#forgetHistory();
    }
    this.#user = frame.user;
    // The user is known only now: the resume may have used another user's cursor, or been omitted.
    if (!(mine && resuming) && !this.#cursor && this.#place(token)) return this.#again();
    const missed = mine && resuming && !frame.recovered;
    const since = resuming === 'acked' ? null : resuming;
    // After a recovery the missed events still follow, and move our cursor one by one. If the gateway currently cannot
    // give a cursor, we keep ours.
    if (frame.cursor && !(frame.recovered && this.#cursor)) this.#moveTo(frame.cursor);
    const isForeign = (cursor) => cursor && frame.cursor && !isOfSameHistory(cursor, frame.cursor);
    if (isForeign(this.#newest) || isForeign(this.#acked)) this.#forgetHistory();
    this.#advance(frame.cursor);
    this.#count = frame.unread ?? NaN;
    this.#welcome = Object.freeze(frame);
    this.#byHello = false;
    this.#after('stable', this.#options.stableAfterMs, () => {
      this.#live.before = [];
      this.#attempt = 0;
      this.#refused = null;
    });
    this.#planRefresh(frame.expires_in_ms);
    const transport = Stream ? 'sse' : 'websocket';
    this.#streams = !!Stream;
    if (this.#state.transport !== transport) this.#setState({ name: 'live', transport });
    this.#tellUnread();
    if (this.#state.name !== 'live') return; // A listener called close().
    this.#heard();
    this.#emit('welcome', frame);
    if (missed) this.#emit('gap', { since, cursor: this.#cursor });
    this.#planAck();
  }

  #forgetHistory() {
    this.#gone.clear();
    this.#newest = '';
    this.#handed = this.#acked = null;
  }

  /** Reconnects to resume from another position: at once, or with backoff if that repeats. */
  #again() {
    const delay = this.#attempt === 0 ? 0 : backoff(this.#attempt, this.#options);
    this.#leave();
    if (this.#state.name === 'live') this.#setState({ name: 'connecting', attempt: this.#attempt });
    this.#attempt += 1;
    this.#after('open', delay, () => this.#open());
  }

  #onEvent(received) {
    const { frame } = received;
    const { id, event, data } = frame;
    if (id) {
      const { at } = this.#live;
      // The welcome has counted the replayed ones. The others count once for each connection, as each has its own welcome.
      if (id !== at && !isBefore(id, at)) {
        this.#live.at = id;
        this.#advance(id);
        if (!frame.replayed) this.#count += 1;
      }
      if (this.#seen.has(id)) return this.#tellUnread();
      this.#remember(this.#seen, id);
      this.#handed = id;
    } else {
      const { plain } = this.#live;
      if (this.#isTwice(received)) return undefined;
      // The next connection may deliver it, too: an instance that lags behind, even if it is dialled only later.
      if (this.#reconnectAt && plain.push(received) > this.#options.rememberedIds) plain.shift();
    }
    if (!OWN_EVENTS.test(event)) this.#emit(event, data, frame);
    this.#emit('event', data, frame);
    // Only now: a page that is closed within a listener receives the event again.
    if (id) this.#moveTo(id);
    return this.#tellUnread();
  }

  #advance(cursor) {
    if (cursor && !isBefore(cursor, this.#newest)) this.#newest = cursor;
  }

  /** The read position was moved elsewhere. */
  #onRead(frame) {
    // The count does not include an ack of our own that is under way, or cannot be sent by a stream.
    const isAcking = this.#ackPlanned || this.#live.Stream || Date.now() - this.#ackSentAt < HANDOVER_MS;
    if (!isAcking) this.#acked = null;
    this.#count = frame.unread;
    this.#tellUnread();
    this.#emit('read', frame);
  }

  #onRetracted(frame) {
    const { id, all } = frame;
    const newer = this.#newer(id);
    if (all) {
      this.#forgetHistory();
      this.#count = 0;
    } else {
      if (newer >= 0 && newer < this.unread) this.#count -= 1;
      this.#remember(this.#gone, numberOf(id));
    }
    this.#tellUnread();
    this.#emit('retracted', frame);
  }

  /** Reconnects at the requested time. Backs off if requests repeat before a connection is stable. */
  #onReconnect(frame) {
    const asked = Math.max(0, frame.after_ms) || 0;
    const delay = this.#attempt === 0 ? asked : Math.max(asked, backoff(this.#attempt, this.#options));
    this.#replace(delay);
    this.#emit('reconnect', frame);
  }

  /** Plans the connection that replaces the live one. */
  #replace(delay, probe) {
    this.#reconnectAt = Date.now() + delay;
    this.#after('open', delay, () => {
      this.#attempt += 1;
      this.#open(probe);
    });
  }

  /** `left` is the remaining lifetime of the token, by the gateway's clock. Ours may be wrong, or be corrected. */
  #planRefresh(left) {
    this.#clear('refresh');
    const delay = Math.min(refreshDelay(left), MAX_TIMEOUT_MS);
    if (delay) this.#after('refresh', delay, () => this.#refresh(left - delay));
  }

  /** Offers a new token. The next try is planned first, so that a failure or a missing answer only postpones it. */
  async #refresh(left) {
    const link = this.#live;
    this.#planRefresh(left);
    if (link.Stream) return this.#replace(HANDOVER_MS); // With the next token.
    const token = await this.#askToken(() => link !== this.#live, (...failure) => this.#emitError(...failure));
    if (token) this.#offer(token);
  }

  #offer(token) {
    this.#live.offered = token;
    this.#send(this.#live, { type: 'auth', token });
  }

  /** Timers stop while a machine sleeps, and while a browser has frozen the page. */
  #tick() {
    const late = Date.now() - this.#tickAt;
    this.#tickAt = Date.now() + TICK_MS;
    this.#after('tick', TICK_MS, () => this.#tick());
    if (late > (globalThis.document?.hidden ? HIDDEN_LATE_MS : LATE_MS)) this.#wake();
  }

  /** A wait or a held attempt ends at once, and a live connection must prove that it is one. */
  #wake() {
    if (this.#state.name === 'waiting' || (this.#next && !this.#next.opened)) return void this.#open();
    if (!this.#live) return;
    if (this.#live.Stream) return this.#replace(HANDOVER_MS);
    this.#offer(this.#live.token);
    this.#after('probe', PROBE_MS, () => this.#silent());
  }

  #onPage = ({ type }) => {
    this.#sendAck(); // Timers of a page that is being left may never fire.
    switch (type) {
      case 'pagehide': return this.#suspend();
      case 'pageshow': return this.#suspended ? this.#begin() : undefined;
      case 'visibilitychange': return this.#suspended ? undefined : this.#tick();
      default: {
        const { offline, ...state } = this.#state;
        this.#offline = type === 'offline';
        this.#setState(state);
        if (!this.#offline) this.#wake();
      }
    }
  };

  /** A page in the back/forward cache receives nothing, so its user must not be online. */
  #suspend() {
    if (this.#state.name === 'idle') return;
    this.#stop();
    this.#suspended = true;
    this.#setState({ name: 'idle' });
  }
}
