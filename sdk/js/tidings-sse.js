/**
 * The event stream of `tidings.js`, which loads this file where no WebSocket opens. An `EventStream` has the interface of a
 * WebSocket, as far as the client uses it, but cannot send. It reads the stream with `fetch`, which, unlike EventSource,
 * sends the token in a header, shows the status of a refusal, and leaves reconnecting to the client.
 *
 * Tabs share one stream. Each begins with a stream of its own, so that its welcome and its position are its own. One tab
 * holds a Web Lock, and leads: it passes on what it receives through a BroadcastChannel. Each other tab closes its own
 * stream once it has caught up with the leader, and follows. When the leader goes, they begin again.
 */

/** How far apart one event can reach two streams. */
const HANDOVER_MS = 1_000;

/** How long a tab that could not follow waits before it asks again. */
const ASK_AGAIN_MS = 5_000;

/** The maximum number of events kept to compare two streams. */
const MOST_KEPT = 1_000;

/** Followers of a leader that is gone begin again within this time; one that was replaced still delivers for longer. */
const SPREAD_MS = 250;
const RETIRED_MS = 3_000;

/** Asks the client to try a WebSocket. */
const PROBE = '{"type":"probe"}';
const HEARTBEAT = '{"type":"heartbeat"}';
const GONE = 'the stream of another tab has ended';
const beginAgain = () => `{"type":"reconnect","after_ms":${Math.floor(Math.random() * SPREAD_MS)}}`;

/** The close codes of the statuses that are final. */
const CODES = { 401: 4009, 403: 4003 };
const EXPIRED = ['token_expired', 'session_ended'];

/** Frames that come on every stream of a user. */
const SHARED = ['event', 'read', 'retracted', 'gap'];

/** The position of a stored event. Other frames name one, too, which moves no client. */
const placeOf = ({ type, id }) => (type === 'event' ? id : undefined);

/** Two clients of one page must not follow each other: one may be about to replace the other. */
const PAGE = Math.random();

/** @returns {(text: string) => string[]} takes the text of a stream in pieces, and returns the data of its blocks */
export function parser() {
  let rest = '';
  let data = [];
  return (text) => {
    const blocks = [];
    // A CR at the end may be the first half of a line's end.
    const [, whole, half] = /^([^]*?)(\r?)$/.exec(rest + text);
    const lines = whole.split(/\r\n|\r|\n/);
    rest = lines.pop() + half;
    for (const line of lines) {
      const [, name, value] = /^([^:]*):? ?([^]*)$/.exec(line);
      if (name === 'data') data.push(value);
      else if (line[0] === ':') blocks.push(HEARTBEAT);
      else if (line === '' && data.length > 0) blocks.push(data.splice(0).join('\n'));
    }
    return blocks;
  };
}

/** Resumes from the read position of the device. */
const ACKED = 'acked';

/** The address of the stream, for that of a WebSocket. */
function streamUrl(url, events) {
  const { searchParams } = url;
  const address = new URL(events ?? url, globalThis.location?.href);
  address.protocol = address.protocol.replace(/^ws/, 'http');
  if (!events) address.pathname = address.pathname.replace(/\/ws$/, '/events');
  // A cursor is in a header, which leaves the URL unchanged: browsers keep the answer to a preflight for one URL.
  if (searchParams.get('resume') !== ACKED) address.searchParams.delete('resume');
  else address.searchParams.set('resume', ACKED);
  if (searchParams.has('device')) address.searchParams.set('device', searchParams.get('device'));
  return address.href;
}

export class EventStream {
  readyState = 0;
  onopen = null;
  onmessage = null;
  onclose = null;

  #url;
  #isBefore;
  #reading = new AbortController();
  #timer;
  #probing;
  #probeLater;

  #at = null; // The position of this tab.
  #recent = []; // Of the last frames that are on every stream, stored events aside, those of our own stream.
  #name = Math.random(); // Of two streams of one page, one may lead while the other still delivers.
  #channel = null;
  #waiting = new AbortController(); // For the lock.
  #release = null; // Ends the lock of a leader.
  #leader = null; // What we follow, or are about to follow.
  #isFollowed = false; // Whether any tab relies on this stream.
  #isLeaving = false; // Whether this stream ends soon.

  /**
   * @param {URL} url the address of the WebSocket, with the position to resume from
   * @param {string} token
   * @param {(cursor: string, other: string) => boolean} isBefore
   * @param {{ events?: string | URL, socketRetryMs: number, random: () => number }} options
   */
  constructor(url, token, isBefore, { events, socketRetryMs, random }) {
    this.#url = streamUrl(url, events);
    this.#isBefore = isBefore;
    this.#probeLater = () => {
      this.#probing = setTimeout(() => {
        this.onmessage?.({ data: PROBE });
        this.#probeLater();
      }, socketRetryMs * (0.5 + random()));
    };
    const headers = { Accept: 'text/event-stream', Authorization: `Bearer ${token}` };
    const resume = url.searchParams.get('resume');
    if (resume && resume !== ACKED) headers['Last-Event-ID'] = encodeURI(resume);
    // The error of a failed `fetch` has no reason.
    this.#read(headers).catch(() => this.#reading.signal.aborted || this.#end(1006, ''));
  }

  /** A stream only receives. */
  send() {}

  /** @param {number} [code] 1000 if another connection has replaced this one */
  close(code) {
    clearTimeout(this.#probing);
    if (code === 1000 && this.#isFollowed && this.readyState === 1) return this.#retire();
    this.readyState = 3;
    globalThis.removeEventListener?.('pagehide', this.#onLeft);
    clearTimeout(this.#timer);
    this.#reading.abort();
    this.#waiting.abort();
    this.#release?.();
    this.#channel?.close();
    this.#channel = null;
  }

  /** Delivers to those that follow, until they have streams of their own. */
  #retire() {
    this.#isLeaving = true;
    this.#post({ text: beginAgain() });
    this.#release();
    this.#timer = setTimeout(() => this.#end(4200, GONE), RETIRED_MS);
    globalThis.addEventListener?.('pagehide', this.#onLeft);
  }

  #onLeft = () => this.close();

  #end(code, reason) {
    if (this.readyState === 3) return;
    if (this.#release) this.#post({ end: [code, reason] });
    this.close();
    this.onclose?.({ code, reason });
  }

  async #read(headers) {
    const { signal } = this.#reading;
    const response = await fetch(this.#url, { headers, signal, cache: 'no-store' });
    const type = response.headers.get('content-type');
    if (!response.ok || !/^text\/event-stream\b/.test(type)) return this.#refuse(response);
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    const parse = parser();
    for (;;) {
      const { done, value } = await reader.read();
      if (signal.aborted) return;
      if (done) return this.#end(1006, 'the stream ended');
      for (const text of parse(decoder.decode(value, { stream: true }))) {
        if (!signal.aborted) this.#receive(text);
      }
    }
  }

  /** Any server may respond in place of the gateway; a refusal of the gateway has a body that names the reason. */
  async #refuse(response) {
    const body = await response.json().catch(() => null);
    const { code, message } = body?.error ?? {};
    const final = EXPIRED.includes(code) ? 4010 : CODES[response.status];
    this.#end((code && final) || 1006, message ?? `no stream of events, but a response with status ${response.status}`);
  }

  /** A block of our own stream. */
  #receive(text) {
    const frame = JSON.parse(text);
    if (frame.type === 'error') return this.#end(frame.code, frame.message); // The last block.
    if (this.readyState === 0) {
      this.readyState = 1;
      this.onopen?.();
    }
    if (frame.type === 'welcome') {
      this.#at = frame.cursor;
      this.onmessage?.({ data: text });
      if (this.readyState === 1) this.#probeLater();
      return this.#share(frame.user);
    }
    if (SHARED.includes(frame.type) && !placeOf(frame)) this.#remember(text);
    this.#pass(text, frame);
    // From now on another tab may lead. Those that follow this one still do, until this frame moves them.
    if (this.#isLeaving) this.#release?.();
  }

  #pass(text, frame) {
    this.#at = placeOf(frame) ?? this.#at;
    if (frame.type === 'reconnect') this.#isLeaving = true;
    if (this.#release) this.#post({ text });
    this.onmessage?.({ data: text });
  }

  #remember(text) {
    const now = Date.now();
    this.#recent.push({ text, at: now });
    while (this.#recent.length > MOST_KEPT || now - this.#recent[0].at > 2 * HANDOVER_MS) this.#recent.shift();
  }

  /** Streams are shared by the tabs of one user, with one device, at one address. */
  #share(user) {
    const { locks } = globalThis.navigator ?? {};
    if (!locks || !globalThis.BroadcastChannel || this.readyState !== 1) return;
    const key = `tidings ${this.#url} ${user}`;
    const { signal } = this.#waiting;
    // A page may be denied locks, and does not share then.
    locks.request(key, { signal }, () => this.#onLock()).catch(() => {});
    this.#channel = new BroadcastChannel(key);
    this.#channel.onmessage = ({ data }) => data.page !== PAGE && this.#onPost(data);
    this.#post({ ask: true });
  }

  #post(message) {
    this.#channel?.postMessage({ page: PAGE, from: this.#name, ...message });
  }

  /** The lock is ours: we lead, unless we follow a leader that is gone. */
  #onLock() {
    if (this.readyState !== 1 || this.#isLeaving) return undefined;
    if (this.#leader?.isFollowed) return this.#onLeaderGone();
    this.#leader = null;
    clearTimeout(this.#timer);
    const held = new Promise((release) => (this.#release = release));
    this.#lead();
    return held;
  }

  #lead() {
    this.#post({ lead: { at: this.#at } });
  }

  /** Begins again, without a break in the client's state if that succeeds at once. */
  #onLeaderGone() {
    this.onmessage?.({ data: beginAgain() });
    this.#timer = setTimeout(() => this.#end(4200, GONE), HANDOVER_MS);
  }

  #onPost({ from, ask, lead, follow, text, end }) {
    if (follow === this.#name) this.#isFollowed = true;
    if (ask && this.#release && !this.#isLeaving) return this.#lead();
    if (lead && !this.#release && !this.#leader) return this.#meet(from, lead.at);
    if (from !== this.#leader?.from) return;
    if (text) this.#fromLeader({ text, at: Date.now() });
    else if (end) this.#onLeadersEnd(...end);
  }

  /** From now on, all that the leader receives comes through the channel, too: after a moment, our own stream is not needed. */
  #meet(from, at) {
    this.#leader = { from, at, texts: [], isFollowed: false };
    this.#timer = setTimeout(() => this.#follow(), HANDOVER_MS);
  }

  /**
   * The channel has all stored events after the leader's position when we met, and our stream had all up to ours. Of the
   * others, it has all but those that our stream has delivered by now.
   */
  #follow() {
    const { from, at, texts } = this.#leader;
    const isEnding = texts.some(({ text }) => text.startsWith('{"type":"reconnect"'));
    const isBehind = at !== null && (this.#at === null || this.#isBefore(this.#at, at));
    if (isBehind || isEnding || texts.length > MOST_KEPT) {
      this.#leader = null;
      this.#timer = setTimeout(() => this.#post({ ask: true }), ASK_AGAIN_MS);
      return;
    }
    this.#leader.isFollowed = true;
    this.#post({ follow: from });
    this.#reading.abort();
    for (const post of texts) this.#fromLeader(post);
  }

  #fromLeader(post) {
    const { isFollowed, texts } = this.#leader;
    if (!isFollowed) return void texts.push(post);
    if (this.readyState !== 1) return;
    const { text } = post;
    const frame = JSON.parse(text);
    const place = placeOf(frame);
    const isKnown = place && this.#at !== null && (place === this.#at || this.#isBefore(place, this.#at));
    if (!isKnown && !this.#isTwice(post)) this.#pass(text, frame);
  }

  /** Whether our own stream has delivered a frame already. */
  #isTwice({ text, at }) {
    const isSame = (recent) => recent.text === text && Math.abs(recent.at - at) <= HANDOVER_MS;
    const place = this.#recent.findIndex(isSame);
    return place >= 0 && this.#recent.splice(place, 1).length > 0;
  }

  #onLeadersEnd(code, reason) {
    const { isFollowed } = this.#leader;
    // Another tab's token says nothing of ours.
    if (isFollowed) return this.#end(code === 4009 || code === 4010 ? 4200 : code, reason);
    this.#leader = null;
    clearTimeout(this.#timer);
  }
}
