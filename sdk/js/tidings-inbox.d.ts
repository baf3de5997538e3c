import type { Tidings } from './tidings.js';

/** Every text of the component. */
export interface TidingsInboxLabels {
  title: string;
  /** The name of the bell. */
  bell: (unread: number) => string;
  /** Announced when several notifications arrive at once. */
  fresh: (number: number) => string;
  unread: string;
  mark: string;
  markHint: string;
  markAll: string;
  dismiss: string;
  older: string;
  retry: string;
  empty: string;
  loading: string;
  connecting: string;
  waiting: string;
  offline: string;
  closed: (reason: string | number) => string;
  failed: string;
  /** The title of a notification without a name and a text. */
  other: string;
}

/** `<tidings-inbox>`: a bell with the number of unread notifications, and the list of the stored ones. */
export class TidingsInbox extends HTMLElement {
  /** The client whose notifications are shown. With the attribute `token-url`, the element makes one itself. */
  get client(): Tidings<any> | null;
  set client(client: Tidings<any> | null | undefined);
  /** Replaces texts; the others stay English. */
  get labels(): TidingsInboxLabels;
  set labels(labels: Partial<TidingsInboxLabels>);
  /** Whether the list is shown. */
  open: boolean;
}

declare global {
  interface HTMLElementTagNameMap {
    'tidings-inbox': TidingsInbox;
  }
}
