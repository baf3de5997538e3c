export interface TidingsOptions {
  /**
   * Returns the JWT to connect with: called before every attempt, and again before the token expires. A rejection is
   * retried with backoff; null or undefined means that there is no token any more, and closes the client.
   */
  token: () => Promise<string | null | undefined> | string | null | undefined;
  /** Connect at construction. Default true. */
  autoConnect?: boolean;
  /** A cursor kept from an earlier page, to resume from. Takes precedence over the two below. Default null. */
  cursor?: string | null;
  /** `acked`: resume after the position acked by this device of the user, until there is a cursor. Default null. */
  resume?: 'acked' | null;
  /**
   * Store the cursor of each user in localStorage, under keys that begin with this, and resume from it on the next
   * page. Default null: in memory only.
   */
  storageKey?: string | null;
  /** The device whose read position acks set, and `unread` counts from: 1 to 64 bytes. Default null: `default`. */
  device?: string | null;
  /** Ceiling of the first backoff, doubled at each attempt. Default 500. */
  baseDelayMs?: number;
  /** Highest ceiling of the backoff. Default 30,000. */
  maxDelayMs?: number;
  /** Ceiling of the first wait after a 42xx close or a token that must be replaced. Default 1,000. */
  promptDelayMs?: number;
  /** How long a connection must last before the attempt count is reset. Default 5,000. */
  stableAfterMs?: number;
  /** Time limit from the start of an attempt, token callback included, to its `welcome`. Default 10,000. */
  connectTimeoutMs?: number;
  /** Allowed silence of the gateway beyond its heartbeat. Default 15,000. */
  silenceGraceMs?: number;
  /** Number of event ids remembered to drop duplicates. Default 1,000. */
  rememberedIds?: number;
  /** Returns a number from 0 to 1, for the jitter. Default Math.random. */
  random?: () => number;
  /** The WebSocket class. Default: the global one. */
  WebSocket?: new (url: string, protocols: string[]) => any;
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
  | 'refused_here';

export type TidingsState =
  | { readonly name: 'idle' }
  | { readonly name: 'connecting'; readonly attempt: number }
  | { readonly name: 'live' }
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
  | { readonly name: 'closed'; readonly code: TidingsCode; readonly reason: string };

export interface WelcomeFrame {
  readonly type: 'welcome';
  readonly connection: string;
  readonly user: string;
  readonly instance: string;
  readonly cursor: string | null;
  readonly recovered: boolean;
  /** Stored notifications after this device's read position, including those about to be replayed. */
  readonly unread?: number | null;
  readonly heartbeat_ms: number;
}

export interface EventFrame<T = unknown> {
  type: 'event';
  event: string;
  data: T;
  /** The cursor of a durable event. */
  id?: string;
  /** ms since 1970, of a durable event. */
  ts?: number;
}

export interface ReconnectFrame {
  type: 'reconnect';
  after_ms: number;
}

/** Some durable notifications between the two cursors are gone: refetch them. */
export interface Gap {
  /** Null after a resume from `acked`. */
  since: string | null;
  cursor: string | null;
}

export class TidingsError extends Error {
  constructor(code: TidingsCode, message: string, cause?: unknown);
  readonly code: TidingsCode;
}

type Listener<A extends unknown[]> = (...args: A) => unknown;

export class Tidings {
  constructor(url: string | URL, options: TidingsOptions);
  readonly state: TidingsState;
  readonly cursor: string | null;
  readonly welcome: WelcomeFrame | null;
  connect(): void;
  retryNow(): void;
  close(): void;
  /** Acknowledges the durable events up to this one; default: the last one passed to listeners. */
  ack(id?: string | null): void;
  on(name: 'state', listener: Listener<[TidingsState]>): () => void;
  on(name: 'welcome', listener: Listener<[WelcomeFrame]>): () => void;
  on(name: 'error', listener: Listener<[TidingsError]>): () => void;
  on(name: 'reconnect', listener: Listener<[ReconnectFrame]>): () => void;
  on(name: 'gap', listener: Listener<[Gap]>): () => void;
  /** `notification`, any other event's name, or `event` for all of them. */
  on<T = any>(name: string, listener: Listener<[T, EventFrame<T>]>): () => void;
  off(name: string, listener: Listener<any[]>): void;
}

export function backoff(
  attempt: number,
  options: { baseDelayMs: number; maxDelayMs: number; random: () => number },
): number;

export function refreshDelay(token: string, now: number): number | null;
