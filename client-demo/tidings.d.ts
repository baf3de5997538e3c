export interface TidingsOptions {
  /**
   * Gives the JWT to connect with: asked before every attempt, and again before the token ends. A rejection is retried
   * with backoff; null or undefined means that there is none any more, and closes the client.
   */
  token: () => Promise<string | null | undefined> | string | null | undefined;
  /** Connect at construction. Default true. */
  autoConnect?: boolean;
  /** A cursor kept from an earlier page, to resume from. Goes before the two below. Default null. */
  cursor?: string | null;
  /** `acked`: begin behind what this device of the user has acked, until there is a cursor. Default null. */
  resume?: 'acked' | null;
  /**
   * Keep the cursor of each user in localStorage, under names that begin with this, and resume from it on the next
   * page. Default null: in memory only.
   */
  storageKey?: string | null;
  /** Whose read position acks move, and `unread` counts from: 1 to 64 bytes. Default null: the one named `default`. */
  device?: string | null;
  /** Ceiling of the first backoff, doubled at each attempt. Default 500. */
  baseDelayMs?: number;
  /** Highest ceiling of the backoff. Default 30,000. */
  maxDelayMs?: number;
  /** Ceiling of the first wait after a 42xx close or a token to replace. Default 1,000. */
  promptDelayMs?: number;
  /** How long a connection must live before attempts are counted from zero again. Default 5,000. */
  stableAfterMs?: number;
  /** From the start of an attempt, token included, to its `welcome`. Default 10,000. */
  connectTimeoutMs?: number;
  /** How much longer than the gateway's heartbeat nothing may be heard. Default 15,000. */
  silenceGraceMs?: number;
  /** How many event ids are remembered to drop duplicates. Default 1,000. */
  rememberedIds?: number;
  /** From 0 up to 1, for the jitter. Default Math.random. */
  random?: () => number;
  /** The WebSocket class. Default the global one. */
  WebSocket?: new (url: string, protocols: string[]) => any;
}

/** A close or error code of the gateway, an RFC 6455 close code, or what happened on this side. */
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
  /** Stored notifications behind this device's read position, those that follow by a resume among them. */
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

/** Some of what lay between the two is gone: refetch it. */
export interface Gap {
  /** Null where it was `acked`. */
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
  /** The durable events up to this one are handled; default: the last that listeners have been given. */
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
