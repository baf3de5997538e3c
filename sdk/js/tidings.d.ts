/** What keeps the cursor of each user: localStorage, or anything like it. Synchronous. */
export interface TidingsStorage {
  getItem(key: string): string | null;
  setItem(key: string, value: string): void;
}

export interface TidingsOptions {
  /**
   * Returns the JWT to connect with: called before every attempt, and again before the token expires. Null or undefined
   * means that there is no token any more, and closes the client. A rejection, or any value that is not a JWT, is a
   * temporary failure: the callback is called again, with backoff.
   */
  token: () => Promise<string | null | undefined> | string | null | undefined;
  /** Connect at construction. Default true. */
  autoConnect?: boolean | undefined;
  /** A cursor kept from an earlier page, to resume from. Takes precedence over the two below. Default null. */
  cursor?: string | null | undefined;
  /** `acked`: resume after the position acked by this device of the user, until there is a cursor. Default null. */
  resume?: 'acked' | null | undefined;
  /**
   * Store the cursor of each user in `storage`, under keys that begin with this, and resume from it on the next page.
   * Default null: in memory only.
   */
  storageKey?: string | null | undefined;
  /** Where to store it. Default: localStorage, which a worker does not have. */
  storage?: TidingsStorage | null | undefined;
  /** The device whose read position acks set, and `unread` counts from: 1 to 64 bytes. Default null: `default`. */
  device?: string | null | undefined;
  /** Ceiling of the first backoff, doubled at each attempt. Default 500. */
  baseDelayMs?: number | undefined;
  /** Highest ceiling of the backoff. Default 30,000. */
  maxDelayMs?: number | undefined;
  /** Ceiling of the first wait after a 42xx close or a token that must be replaced. Default 1,000. */
  promptDelayMs?: number | undefined;
  /** How long a connection must last before the attempt count is reset. Default 5,000. */
  stableAfterMs?: number | undefined;
  /** Time limit of each step of an attempt: the token callback, the handshake, the `welcome`. Default 10,000. */
  connectTimeoutMs?: number | undefined;
  /**
   * Time limit of the handshake of a WebSocket after two that never opened, because browsers hold those back by themselves (Firefox for
   * up to a minute). Default 70,000.
   */
  retryTimeoutMs?: number | undefined;
  /**
   * The address of the event stream, which replaces a WebSocket where none opens. Default: that of the WebSocket, with
   * `/events` in place of `/ws` at its end; null: none.
   */
  events?: string | URL | null | undefined;
  /** How often, on average, a WebSocket is tried while an event stream is live. Default 300,000. */
  socketRetryMs?: number | undefined;
  /** Allowed silence of the gateway beyond its heartbeat. Default 15,000. */
  silenceGraceMs?: number | undefined;
  /** Number of event ids remembered to drop duplicates. Default 1,000. */
  rememberedIds?: number | undefined;
  /** Returns a number from 0 to 1, for the jitter. Default Math.random. */
  random?: (() => number) | undefined;
  /** The WebSocket class. Default: the global one. */
  WebSocket?: (new (url: string, protocols: string[]) => any) | undefined;
}

/** A close or error code of the gateway, an RFC 6455 close code, or a failure in the client. */
export type TidingsCode =
  | number
  | 'connect_timeout'
  | 'silent'
  | 'token_failed'
  | 'no_token'
  | 'bad_token'
  | 'bad_frame'
  | 'storage_failed'
  | 'refused_here'
  /** A request for history without a live WebSocket, or whose connection ended first. */
  | 'no_history';

export type TidingsState = (
  /** Before `connect()`, and while the page is in the back/forward cache. */
  | { readonly name: 'idle' }
  | { readonly name: 'connecting'; readonly attempt: number }
  | { readonly name: 'live'; readonly transport: 'websocket' | 'sse' }
  | {
      readonly name: 'waiting';
      readonly attempt: number;
      readonly retryInMs: number;
      /** ms since 1970 */
      readonly retryAt: number;
      readonly code: TidingsCode;
      readonly reason: string;
    }
  /** Final until `connect()`; code 1000 after `close()`. */
  | { readonly name: 'closed'; readonly code: TidingsCode; readonly reason: string }
) & {
  /** Whether the device reports that it has no network. A connection may still be alive. */
  readonly offline?: true;
};

export interface WelcomeFrame {
  readonly type: 'welcome';
  readonly connection: string;
  readonly user: string;
  readonly instance: string;
  readonly cursor: string | null;
  readonly recovered: boolean;
  /** Stored notifications after this device's read position, including those about to be replayed. */
  readonly unread?: number | null;
  /** The remaining lifetime of the token by the server's clock; null for a session. */
  readonly expires_in_ms?: number | null;
  readonly heartbeat_ms: number;
}

export interface EventFrame<T = unknown, N extends string = string> {
  type: 'event';
  event: N;
  data: T;
  /** The cursor of a durable event. */
  id?: string;
  /** ms since 1970, of a durable event. */
  ts?: number;
  /** It was stored before this connection's `welcome`, whose `unread` includes it. */
  replayed?: true;
  /** The key under which a later notification replaces this one. */
  collapse?: string;
}

/** The read position of this client's device was moved elsewhere: in another tab, or by a backend. */
export interface ReadFrame {
  type: 'read';
  device: string;
  id: string;
  unread: number;
}

/** A stored notification was taken back, or, with `all`, the whole history was erased. */
export type RetractedFrame = { type: 'retracted'; id: string; all?: never } | { type: 'retracted'; id?: never; all: true };

/** A stored notification. */
export interface StoredNotification<T = unknown, N extends string = string> {
  id: string;
  event: N;
  data: T;
  /** ms since 1970 */
  ts: number;
}

export interface HistoryPage<T = StoredNotification<any>> {
  /** Newest first. */
  notifications: T[];
  /** `before` of the next page; null after the last one. */
  next: string | null;
}

export interface ReconnectFrame {
  type: 'reconnect';
  after_ms: number;
}

/** Some durable notifications between the two cursors are gone, or, with `since_ms`, some that are not stored: refetch. */
export interface Gap {
  /** Null after a resume from `acked`. */
  since: string | null;
  cursor: string | null;
  /** The instance received nothing from Redis for so long. Stored events follow by themselves. */
  since_ms?: number;
}

export class TidingsError extends Error {
  constructor(code: TidingsCode, message: string, cause?: unknown);
  readonly code: TidingsCode;
}

type Listener<A extends unknown[]> = (...args: A) => unknown;
type NameOf<Events> = keyof Events & string;
/** Any name, unless the events are declared. */
type OtherName<Events> = string extends keyof Events ? string : never;
type AnyFrame<Events> = { [N in NameOf<Events>]: EventFrame<Events[N], N> }[NameOf<Events>];
type AnyStored<Events> = { [N in NameOf<Events>]: StoredNotification<Events[N], N> }[NameOf<Events>];

/** What the client itself emits, and the arguments of its listeners. */
export interface ClientEvents {
  state: [TidingsState];
  welcome: [WelcomeFrame];
  error: [TidingsError];
  reconnect: [ReconnectFrame];
  gap: [Gap];
  unread: [number | null];
  read: [ReadFrame];
  retracted: [RetractedFrame];
}

/** `Events` are the published events and their data: `new Tidings<{ paid: { order: number } }>(…)`. Default: any. */
export class Tidings<Events extends object = Record<string, any>> {
  constructor(url: string | URL, options: TidingsOptions);
  readonly state: TidingsState;
  readonly cursor: string | null;
  readonly welcome: WelcomeFrame | null;
  /** Stored notifications after the read position of the device, own acks included; null until it is known. */
  readonly unread: number | null;
  connect(): void;
  retryNow(): void;
  close(): void;
  /**
   * Acknowledges the durable events up to this one; default: the last one passed to listeners. An event stream cannot send
   * it: it is sent when a WebSocket opens again.
   */
  ack(id?: string | null): void;
  /**
   * Requests stored notifications, newest first: those before a cursor, 1 to 100, by default 20. Rejects with the code of
   * the gateway's error, or with `no_history` where no WebSocket is live, or the connection ends first.
   */
  history(page?: { before?: string | null | undefined; limit?: number | undefined }): Promise<HistoryPage<AnyStored<Events>>>;
  on<N extends keyof ClientEvents>(name: N, listener: Listener<ClientEvents[N]>): () => void;
  /** Every event, whatever its name. */
  on(name: 'event', listener: Listener<[Events[NameOf<Events>], AnyFrame<Events>]>): () => void;
  on<N extends NameOf<Events>>(name: N, listener: Listener<[Events[N], EventFrame<Events[N], N>]>): () => void;
  on<T = any>(name: OtherName<Events>, listener: Listener<[T, EventFrame<T>]>): () => void;
  /** As `on`, for one event. */
  once: Tidings<Events>['on'];
  off(name: keyof ClientEvents | 'event' | NameOf<Events>, listener: Listener<any[]>): void;
}

export function backoff(
  attempt: number,
  options: { baseDelayMs: number; maxDelayMs: number; random: () => number },
): number;

/** `left`: the remaining lifetime of the token in ms. */
export function refreshDelay(left: number | null | undefined): number | null;
