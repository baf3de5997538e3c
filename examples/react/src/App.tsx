import type { DetailedHTMLProps, HTMLAttributes } from 'react';
import type { Tidings, TidingsOptions } from 'tidings';
import 'tidings/inbox';
import type { TidingsInbox } from 'tidings/inbox';
import { useInbox } from './useInbox';

declare module 'react' {
  namespace JSX {
    interface IntrinsicElements {
      'tidings-inbox': DetailedHTMLProps<HTMLAttributes<TidingsInbox>, TidingsInbox> & {
        client?: Tidings<any>;
        inline?: boolean;
        open?: boolean;
      };
    }
  }
}

async function token() {
  const response = await fetch('/demo/token', { method: 'POST', body: '{"user":"42"}' });
  if (response.status === 401) return null;
  if (!response.ok) throw new Error(`no token: status ${response.status}`);
  return ((await response.json()) as { token: string }).token;
}

/** Both ways: the component, and a list of one's own with the hook. */
export function App({ url = '/ws', options }: { url?: string; options?: TidingsOptions }) {
  const { client, notifications, unread, state } = useInbox(url, options ?? { token });
  return (
    <main>
      <header>
        <h1>Orders</h1>
        <tidings-inbox client={client} />
      </header>
      <p>{state === 'live' ? `${unread ?? 0} unread` : 'Connecting…'}</p>
      <ul>
        {notifications.map(({ id, event, data }) => <li key={id}>{data?.title ?? data?.text ?? event}</li>)}
      </ul>
      <button type="button" disabled={!unread} onClick={() => client.ack(notifications[0]?.id)}>Mark all read</button>
    </main>
  );
}
