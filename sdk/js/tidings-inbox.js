/**
 * `<tidings-inbox>`: a bell with the number of unread notifications, and the list of a user's stored notifications.
 *
 *     <tidings-inbox></tidings-inbox>
 *     document.querySelector('tidings-inbox').client = client;
 *
 * or with a client of its own, whose token comes from the page's backend:
 *
 *     <tidings-inbox url="wss://push.example.com/ws" token-url="/my/token"></tidings-inbox>
 *
 * Everything published is shown as text, never as markup.
 */
import { Tidings } from './tidings.js';

const PAGE = 20;
const MOST_PAGE = 100; // The gateway's limit.
/** The maximum number of rows, of ids that were dismissed, and of ids that were retracted. */
const MOST = 1_000;
const MOST_PLAIN = 50; // Rows that are not stored: they are gone with the page.
const MOST_TITLE = 200;
const MOST_BODY = 500;
const DRAW_MS = 16; // Many events are drawn once.

/** Every text of the component; replace any of them through its property `labels`. */
const LABELS = {
  title: 'Notifications',
  bell: (unread) => (unread > 0 ? `Notifications, ${unread} unread` : 'Notifications'),
  fresh: (number) => `${number} new notifications`,
  unread: 'Unread',
  mark: 'Mark read',
  markHint: 'Marks this one and all older ones read',
  markAll: 'Mark all read',
  dismiss: 'Dismiss',
  older: 'Load older',
  retry: 'Try again',
  empty: 'No notifications.',
  loading: 'Loading…',
  connecting: 'Connecting…',
  waiting: 'Disconnected, reconnecting…',
  offline: 'You are offline.',
  closed: (reason) => `Disconnected: ${reason}`,
  failed: 'Stored notifications cannot be loaded at the moment.',
  other: 'Notification',
};

const BELL =
  'M12 22a2.3 2.3 0 0 0 2.2-2H9.8A2.3 2.3 0 0 0 12 22Zm6.5-6.5V11c0-3.2-1.7-5.7-4.7-6.4V4a1.8 1.8 0 0 0-3.6 0v.6C7.2 5.3 5.5 7.8 5.5 11v4.5l-1.8 1.8v1h16.6v-1Z';

// Constructed, because a policy may forbid style elements. A page may have any names of properties but those with `--_`.
const CSS = `
:host { position: relative; display: inline-block; text-align: start;
  --_text: var(--tidings-text, light-dark(#1c1a18, #f3efeb)); --_muted: var(--tidings-muted, light-dark(#615a53, #b5ada5));
  --_surface: var(--tidings-surface, light-dark(#fff, #211e1b)); --_line: var(--tidings-line, light-dark(#ddd6ce, #453f39));
  --_accent: var(--tidings-accent, light-dark(#b0390b, #ff9a6e)); --_on-accent: var(--tidings-on-accent, light-dark(#fff, #2b0f03));
  font-family: var(--tidings-font, inherit); }
:host([hidden]), [hidden] { display: none !important; }
* { box-sizing: border-box; margin: 0; padding: 0; font: inherit; color: inherit; }
button { border: 0; background: none; cursor: pointer; border-radius: 0.4em; }
:focus-visible { outline: 2px solid var(--_accent); outline-offset: -2px; }
[part~="bell"] { position: relative; display: grid; place-items: center; inline-size: 2.75rem; block-size: 2.75rem; }
[part~="bell"]:focus-visible { outline-color: currentcolor; }
[part~="bell"][part~="offline"] svg { opacity: 0.55; }
svg { inline-size: 1.5rem; block-size: 1.5rem; fill: currentcolor; }
[part~="badge"] { position: absolute; inset-block-start: 0.1rem; inset-inline-start: 50%; min-inline-size: 1.25rem; padding-inline: 0.3rem;
  border-radius: 1rem; background: var(--_accent); color: var(--_on-accent); font-size: 0.75rem; font-weight: 700; line-height: 1.25rem; text-align: center; }
[part~="panel"] { position: absolute; z-index: var(--tidings-z, 10); inset-block-start: 100%; inset-inline-end: 0; display: flex; flex-direction: column;
  inline-size: min(var(--tidings-width, 24rem), 100vw - 16px); max-block-size: min(36rem, 78vh); overflow: hidden;
  background: var(--_surface); color: var(--_text); border: 1px solid var(--_line); border-radius: var(--tidings-radius, 12px);
  box-shadow: 0 12px 36px -8px rgb(0 0 0 / 30%); font-size: 1rem; line-height: 1.4; }
:host([inline]) { display: block; }
:host([inline]) [part~="panel"] { position: static; inline-size: auto; max-block-size: var(--tidings-height, 36rem); box-shadow: none; }
[part~="header"] { display: flex; flex-wrap: wrap; align-items: center; justify-content: space-between; gap: 0.25rem 1rem; padding: 0.6rem 1rem; border-block-end: 1px solid var(--_line); }
[part~="title"] { font-weight: 700; }
[part~="action"] { min-block-size: 2rem; padding-inline: 0.35rem; color: var(--_accent); font-size: 0.875rem; }
[part~="action"]:hover { text-decoration: underline; }
[part~="status"] { padding: 0.75rem 1rem; color: var(--_muted); overflow-wrap: anywhere; }
[part~="status"] button { margin-inline-start: 0.5rem; }
[part~="list"] { overflow-y: auto; list-style: none; overscroll-behavior: contain; }
[part~="item"] { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 0 0.5rem; padding: 0.75rem 1rem; border-block-end: 1px solid var(--_line); }
[part~="item"]:last-child { border: 0; }
[part~="unread"] [part~="item-title"] { font-weight: 700; }
[part~="item-title"], [part~="item-body"] { overflow-wrap: anywhere; white-space: pre-line; }
[part~="item-body"], [part~="item-foot"] { color: var(--_muted); font-size: 0.9rem; }
[part~="item-foot"] { grid-column: 1 / -1; display: flex; flex-wrap: wrap; align-items: center; gap: 0 0.75rem; min-block-size: 2rem; font-size: 0.8rem; }
[part~="dot"] { display: inline-block; inline-size: 0.55rem; block-size: 0.55rem; margin-inline-end: 0.5rem; border-radius: 50%; background: var(--_accent); }
[part~="mark"] { margin-inline-start: -0.35rem; }
[part~="dismiss"] { inline-size: 2rem; block-size: 2rem; color: var(--_muted); font-size: 1.1rem; }
[part~="dismiss"]:hover { color: var(--_text); }
[part~="older"] { margin: 0.5rem; flex: none; }
.quiet { position: absolute; inline-size: 1px; block-size: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
@media (prefers-reduced-motion: no-preference) {
  :host(:not([inline])) [part~="panel"] { animation: open 0.15s ease-out; }
  @keyframes open { from { opacity: 0; transform: translateY(-6px); } }
}
@media (forced-colors: active) {
  [part~="badge"] { border: 1px solid; }
  [part~="dot"] { forced-color-adjust: none; background: Highlight; }
  [part~="bell"][part~="offline"] svg { opacity: 1; fill: GrayText; }
}`;

/** @returns {HTMLElement} */
function el(tag, part, ...children) {
  const node = document.createElement(tag);
  if (part) node.setAttribute('part', part);
  node.append(...children);
  return node;
}

function button(part, text, onclick) {
  const node = el('button', part, text);
  node.type = 'button';
  node.onclick = onclick;
  return node;
}

function bellIcon() {
  const [icon, shape] = ['svg', 'path'].map((tag) => document.createElementNS('http://www.w3.org/2000/svg', tag));
  icon.setAttribute('viewBox', '0 0 24 24');
  icon.setAttribute('aria-hidden', 'true');
  shape.setAttribute('d', BELL);
  icon.append(shape);
  return icon;
}

const clip = (text, most) => (text.length > most ? `${text.slice(0, most)}…` : text);
const isText = (value) => typeof value === 'string' && value.trim() !== '';

/** The data as text, on one line. */
function written(data) {
  try {
    return isText(data) ? data : JSON.stringify(data, null, 1).replace(/\s+/g, ' '); // With spaces, so that it can wrap.
  } catch {
    return '…'; // A value that can be parsed may be too deep to be written.
  }
}

/** The title and the body of a notification, of which the latter may be missing. */
function words({ event, data }, labels) {
  const { title, body, text } = Object(data);
  const [first, second] = [title, text, body].filter(isText);
  if (first) return [clip(first, MOST_TITLE), second && clip(second, MOST_BODY)];
  const name = event === 'notification' ? labels.other : event;
  return isText(data) ? [clip(data, MOST_BODY)] : [clip(name, MOST_TITLE), clip(written(data), MOST_BODY)];
}

/** The address that a notification names, unless it is one that runs a script. */
function link({ data }) {
  if (!isText(data?.url) || !URL.canParse(data.url, document.baseURI)) return null;
  const url = new URL(data.url, document.baseURI);
  return /^https?:$/.test(url.protocol) ? url.href : null;
}

/** There is no element where a page is rendered on a server. */
const Base = globalThis.HTMLElement ?? class {};

export class TidingsInbox extends Base {
  static observedAttributes = ['open'];

  #client = null;
  #own = null; // A client that this element has made.
  #off = []; // What unsubscribes from the client.
  #labels = LABELS;

  #stored = []; // Newest first, without a hole, dismissed ones included.
  #plain = []; // Newest first: events that are not stored.
  #gone = new Set(); // Ids that were retracted: a page that is under way may have them.
  #dismissed = new Set();
  #request = null; // The newest request of the first page, with the events that came since.
  #hasMore = false;
  #hasFailed = false;
  #fresh = []; // To be announced.
  #drawing = 0;

  #parts; // The elements below the shadow root, once it exists.

  /** The client whose notifications are shown. */
  get client() {
    return this.#client;
  }

  set client(client) {
    this.#own?.close();
    this.#own = null;
    this.#use(client ?? null);
  }

  /** The texts that replace the English ones. */
  get labels() {
    return this.#labels;
  }

  set labels(labels) {
    this.#labels = { ...LABELS, ...labels };
    for (const entry of [...this.#stored, ...this.#plain]) delete entry.node;
    this.#drawSoon();
  }

  get open() {
    return this.hasAttribute('open');
  }

  set open(open) {
    this.toggleAttribute('open', Boolean(open));
  }

  connectedCallback() {
    this.#parts ??= this.#build();
    // A page may have set these before this element was defined.
    for (const name of ['client', 'labels']) {
      if (!Object.hasOwn(this, name)) continue;
      const value = this[name];
      delete this[name];
      this[name] = value;
    }
    document.addEventListener('pointerdown', this.#onPointer);
    if (this.#client) this.#subscribe();
    else if (this.hasAttribute('token-url')) this.#use((this.#own = this.#connect()));
    this.#drawSoon();
  }

  disconnectedCallback() {
    document.removeEventListener('pointerdown', this.#onPointer);
    this.#unsubscribe();
    // Moved within the page, it is connected again by then.
    queueMicrotask(() => this.isConnected || !this.#own || (this.client = null));
  }

  attributeChangedCallback() {
    this.#draw();
    this.#place();
  }

  #connect() {
    const attribute = (name) => this.getAttribute(name) ?? undefined;
    const token = async () => {
      const response = await fetch(attribute('token-url'), { cache: 'no-store' });
      if (response.status === 401) return null;
      if (!response.ok) throw new Error(`no token: status ${response.status}`);
      const text = await response.text();
      return text.trimStart()[0] === '{' ? JSON.parse(text).token : text.trim();
    };
    return new Tidings(attribute('url') ?? '/ws', { token, device: attribute('device') });
  }

  #use(client) {
    if (client === this.#client) return;
    this.#unsubscribe();
    this.#client = client;
    this.#stored = [];
    this.#plain = [];
    this.#gone.clear();
    this.#hasMore = this.#hasFailed = false;
    if (client && this.isConnected) this.#subscribe();
    this.#drawSoon();
  }

  #subscribe() {
    const client = this.#client;
    const draw = () => this.#drawSoon();
    const reload = () => this.#reload();
    const listeners = { welcome: reload, gap: reload, unread: draw, state: draw };
    Object.assign(listeners, { event: (data, frame) => this.#add(frame), retracted: (frame) => this.#onRetracted(frame) });
    this.#unsubscribe();
    this.#off = Object.entries(listeners).map(([name, listener]) => client.on(name, listener));
    if (client.state.name === 'live') this.#reload();
  }

  #unsubscribe() {
    for (const off of this.#off.splice(0)) off();
    this.#request = null;
  }

  /**
   * Requests the newest notifications: as many as there are rows. If any are dismissed, all unread ones, so that the badge
   * does not count those.
   */
  async #reload() {
    this.#dismissed = new Set(this.#kept());
    const request = (this.#request = { since: [] });
    const unread = this.#dismissed.size && this.#client.unread;
    const limit = Math.min(Math.max(this.#stored.length, PAGE, unread), MOST_PAGE);
    this.#hasFailed = false;
    this.#drawSoon();
    const page = await this.#client.history({ limit }).catch(() => null);
    if (request !== this.#request) return;
    this.#request = null;
    this.#hasFailed = page === null;
    if (page) {
      const known = new Map(this.#stored.map((entry) => [entry.id, entry]));
      const ids = new Set(page.notifications.map(({ id }) => id));
      const since = request.since.filter(({ id }) => !ids.has(id));
      this.#stored = [...since, ...page.notifications.map((entry) => known.get(entry.id) ?? entry)].filter((entry) => this.#isThere(entry));
      this.#hasMore = page.next !== null;
    }
    this.#drawSoon();
  }

  async #loadOlder() {
    const stored = this.#stored;
    const { older } = this.#parts;
    older.disabled = true;
    const page = await this.#client.history({ before: stored.at(-1)?.id, limit: PAGE }).catch(() => null);
    older.disabled = false;
    if (stored !== this.#stored) return;
    this.#hasFailed = page === null;
    if (page) {
      stored.push(...page.notifications.filter((entry) => this.#isThere(entry)));
      this.#hasMore = page.next !== null && stored.length < MOST;
    }
    this.#drawSoon();
  }

  /** An event stream has no history; on a WebSocket, the gateway may have it again. */
  #canReload() {
    return this.#hasFailed && this.#client.state.transport === 'websocket';
  }

  #isThere({ id }) {
    return !this.#gone.has(id);
  }

  #add({ event, data, id, ts = Date.now(), replayed }) {
    const entry = { event, data, id, ts };
    const rows = id === undefined ? this.#plain : this.#stored;
    if (id !== undefined) {
      // The page has the replayed ones, or they are older; without a page, they are all that there is.
      const isInPage = replayed && !this.#request && !this.#hasFailed;
      if (isInPage || rows.some((row) => row.id === id)) return;
      if (!replayed) this.#request?.since.unshift(entry);
    }
    rows.unshift(entry);
    if (rows.length > (id === undefined ? MOST_PLAIN : MOST)) {
      rows.pop();
      if (id !== undefined) this.#hasMore = true;
    }
    if (!replayed) this.#fresh.push(entry);
    this.#drawSoon();
  }

  #onRetracted({ id, all }) {
    if (all) this.#gone.clear();
    else this.#remember(this.#gone, id);
    this.#stored = all ? [] : this.#stored.filter((entry) => entry.id !== id);
    this.#fresh = this.#fresh.filter((entry) => this.#isThere(entry) && !all);
    if (all) {
      this.#request = null;
      this.#hasMore = false;
    }
    this.#drawSoon();
  }

  #remember(set, id) {
    set.add(id);
    if (set.size > MOST) set.delete(set.values().next().value);
  }

  #key() {
    return `tidings-inbox ${this.#client?.welcome?.user}`;
  }

  /** The ids that the browser keeps as dismissed; a page may be denied its storage. */
  #kept() {
    try {
      return JSON.parse(localStorage.getItem(this.#key())) ?? [];
    } catch {
      return [];
    }
  }

  #dismiss(entry) {
    if (entry.id === undefined) this.#plain = this.#plain.filter((other) => other !== entry);
    else {
      this.#remember(this.#dismissed, entry.id);
      try {
        localStorage.setItem(this.#key(), JSON.stringify([...this.#dismissed]));
      } catch {
        // It is dismissed on this page.
      }
    }
    this.#draw();
  }

  #build() {
    const root = this.attachShadow({ mode: 'open' });
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(CSS);
    root.adoptedStyleSheets = [sheet];
    const slot = el('slot', '', bellIcon());
    slot.name = 'bell';
    const badge = el('span', 'badge');
    const bell = button('bell', slot, () => (this.open = !this.open));
    bell.append(badge);
    badge.ariaHidden = 'true';
    bell.setAttribute('aria-controls', 'panel');
    const title = el('h2', 'title');
    const markAll = button('action mark-all', '', () => this.#client.ack(this.#stored[0]?.id ?? this.#client.cursor));
    const said = el('span');
    const retry = button('action retry', '', () => (this.#canReload() ? this.#reload() : this.#client.connect()));
    const status = el('div', 'status', said, retry);
    said.role = 'status';
    const list = el('ul', 'list');
    list.role = 'list';
    const older = button('action older', '', () => this.#loadOlder());
    const panel = el('section', 'panel', el('div', 'header', title, markAll), status, list, older);
    panel.id = 'panel';
    const live = el('div');
    live.className = 'quiet';
    live.ariaLive = 'polite';
    root.append(bell, panel, live);
    root.addEventListener('keydown', (event) => this.#onKey(event));
    // A panel that lies over the page must not hide what has the focus.
    this.addEventListener('focusout', ({ relatedTarget: to }) => to && !this.contains(to) && this.#leave());
    return { bell, badge, title, markAll, status, said, retry, list, older, panel, live };
  }

  #leave() {
    if (!this.hasAttribute('inline')) this.open = false;
  }

  #onPointer = (event) => {
    if (this.open && !event.composedPath().includes(this)) this.#leave();
  };

  #onKey(event) {
    const { bell, list } = this.#parts;
    const rows = [...list.children];
    const at = rows.findIndex((row) => row.contains(event.target));
    const isOutside = at < 0 && event.target !== bell;
    switch (event.key) {
      case 'Escape':
        if (!this.open || this.hasAttribute('inline')) return;
        this.open = false;
        bell.focus();
        break;
      case 'ArrowDown':
        if (isOutside) return;
        this.open = true;
        rows[Math.min(at + 1, rows.length - 1)]?.focus();
        break;
      case 'ArrowUp':
        if (at < 0) return;
        (rows[at - 1] ?? bell).focus();
        break;
      case 'Home': case 'End':
        if (at < 0) return;
        rows.at(event.key === 'Home' ? 0 : -1).focus();
        break;
      case 'Delete':
        if (at < 0) return;
        rows[at].querySelector('[part~="dismiss"]').click();
        break;
      default: return;
    }
    event.stopPropagation();
    event.preventDefault();
  }

  #drawSoon() {
    this.#drawing ||= setTimeout(() => this.#draw(), DRAW_MS);
  }

  #draw() {
    clearTimeout(this.#drawing);
    this.#drawing = 0;
    if (!this.#parts) return;
    const { bell, badge, title, markAll, retry, older, panel } = this.#parts;
    const labels = this.#labels;
    const { entries, unread } = this.#entries();
    const state = this.#client?.state;
    const isLive = state?.name === 'live' && !state.offline;
    bell.ariaLabel = labels.bell(unread);
    bell.ariaExpanded = String(this.open);
    bell.part.toggle('offline', !isLive);
    badge.textContent = unread > 99 ? '99+' : String(unread);
    badge.hidden = unread < 1;
    panel.hidden = !this.open;
    panel.ariaLabel = title.textContent = labels.title;
    markAll.textContent = labels.markAll;
    markAll.hidden = unread < 1;
    retry.textContent = labels.retry;
    retry.hidden = state?.name !== 'waiting' && state?.name !== 'closed' && !this.#canReload();
    older.textContent = labels.older;
    older.hidden = !this.#hasMore || !isLive;
    this.#drawRows(entries);
    this.#drawStatus(entries.length);
    this.#announce();
  }

  /** What is shown, newest first, and how many of the unread ones are not dismissed. */
  #entries() {
    let unread = this.#client?.unread ?? 0;
    const stored = this.#stored.filter((entry, at) => {
      // The unread ones are the newest: there is one read position.
      entry.isUnread = at < this.#client.unread;
      const isShown = !this.#dismissed.has(entry.id);
      if (entry.isUnread && !isShown) unread -= 1;
      return isShown;
    });
    const entries = [];
    for (const entry of this.#plain) {
      while (stored[0]?.ts > entry.ts) entries.push(stored.shift());
      entries.push(entry);
    }
    return { entries: [...entries, ...stored], unread };
  }

  #drawRows(entries) {
    const { bell, list } = this.#parts;
    const focused = this.shadowRoot.activeElement?.closest('li');
    const at = [...list.children].indexOf(focused);
    const rows = entries.map((entry) => (entry.node ??= this.#row(entry)));
    const wanted = new Set(rows);
    for (const row of [...list.children]) if (!wanted.has(row)) row.remove();
    rows.forEach((row, place) => {
      const { isUnread = false } = entries[place];
      if (list.children[place] !== row) list.insertBefore(row, list.children[place] ?? null);
      row.part.toggle('unread', isUnread);
      for (const node of row.querySelectorAll('.unread')) node.hidden = !isUnread;
    });
    if (focused && !focused.isConnected) (rows[Math.min(at, rows.length - 1)] ?? bell).focus();
  }

  #row(entry) {
    const labels = this.#labels;
    const [first, second] = words(entry, labels);
    const dot = el('span', 'dot');
    dot.role = 'img';
    dot.ariaLabel = labels.unread;
    const href = link(entry);
    const name = el(href ? 'a' : 'span', href ? 'link' : '', el('bdi', '', first));
    if (href) name.href = href;
    const title = el('p', 'item-title', dot, name);
    const at = new Date(entry.ts);
    const lang = this.closest('[lang]')?.lang || undefined;
    const time = el('time', 'item-time', at.toLocaleString(lang, { dateStyle: 'medium', timeStyle: 'short' }));
    time.dateTime = at.toISOString();
    const mark = button('action mark', labels.mark, () => this.#client.ack(entry.id));
    mark.title = labels.markHint;
    mark.ariaLabel = `${labels.mark}: ${first}`;
    for (const node of [dot, mark]) node.className = 'unread';
    const dismiss = button('dismiss', '×', () => this.#dismiss(entry));
    dismiss.ariaLabel = `${labels.dismiss}: ${first}`;
    const text = el('div', '', title);
    if (second) text.append(el('p', 'item-body', el('bdi', '', second)));
    const row = el('li', 'item', text, dismiss, el('div', 'item-foot', time, mark));
    row.tabIndex = -1;
    return row;
  }

  #drawStatus(shown) {
    const { said, status } = this.#parts;
    const labels = this.#labels;
    const { name, offline, code, reason } = this.#client?.state ?? { name: 'live' };
    let text = shown === 0 ? labels.empty : '';
    if (this.#hasFailed) text = labels.failed;
    if (this.#request && shown === 0) text = labels.loading;
    if (name === 'idle' || name === 'connecting') text = labels.connecting;
    if (name === 'waiting') text = labels.waiting;
    if (offline) text = labels.offline;
    if (name === 'closed') text = labels.closed(reason || code);
    if (said.textContent !== text) said.textContent = text;
    status.hidden = text === '';
  }

  #announce() {
    const fresh = this.#fresh.splice(0);
    if (fresh.length === 0) return;
    const [one] = fresh;
    this.#parts.live.textContent = fresh.length > 1
      ? this.#labels.fresh(fresh.length)
      : words(one, this.#labels).filter(Boolean).join('. ');
  }

  /** Moves a panel that has opened into the window. */
  #place() {
    if (!this.#parts || !this.open || this.hasAttribute('inline')) return;
    const { panel } = this.#parts;
    panel.style.translate = '';
    const { left, right } = panel.getBoundingClientRect();
    const shift = Math.max(8 - left, Math.min(0, document.documentElement.clientWidth - 8 - right));
    panel.style.translate = `${shift}px`;
  }
}

globalThis.customElements?.define('tidings-inbox', TidingsInbox);
