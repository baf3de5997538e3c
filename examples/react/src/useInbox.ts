import { useEffect, useState, useSyncExternalStore } from 'react';
import { Tidings, type StoredNotification, type TidingsOptions } from 'tidings';

const SHOWN = 20;

/**
 * A client for as long as the component is mounted, the unread count, and the newest notifications. The options count at
 * the first render. On a server it renders as before the first connection.
 */
export function useInbox(url: string, options: TidingsOptions) {
  const [client] = useState(() => new Tidings(url, { ...options, autoConnect: false }));
  const [notifications, setNotifications] = useState<StoredNotification<any>[]>([]);

  useEffect(() => {
    let isCurrent = true;
    const load = async () => {
      const page = await client.history({ limit: SHOWN }).catch(() => null); // The next welcome asks again.
      if (page && isCurrent) setNotifications(page.notifications);
    };
    const off = [
      client.on('welcome', load),
      client.on('gap', load),
      client.on('event', (data, { id, event, ts = Date.now(), replayed }) => {
        if (!id || replayed) return; // The page has what is replayed.
        setNotifications((known) => [{ id, event, data, ts }, ...known.filter((one) => one.id !== id)].slice(0, SHOWN));
      }),
      client.on('retracted', ({ id, all }) => setNotifications((known) => known.filter((one) => !all && one.id !== id))),
    ];
    client.connect();
    return () => {
      isCurrent = false;
      for (const each of off) each();
      client.close();
    };
  }, [client]);

  const unread = useSyncExternalStore((changed) => client.on('unread', changed), () => client.unread, () => null);
  const state = useSyncExternalStore((changed) => client.on('state', changed), () => client.state.name, () => 'idle' as const);
  return { client, notifications, unread, state };
}
