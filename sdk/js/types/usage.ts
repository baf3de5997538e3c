// Uses of the types that an application may make under the strictest settings; compiled by test/types.test.js.
import { Tidings, TidingsError } from '../tidings.js';
import type { EventFrame, Gap, TidingsOptions, TidingsStorage } from '../tidings.js';
import type { TidingsInbox } from '../tidings-inbox.js';

declare const maybe: {
  flag: boolean | undefined; text: string | undefined; number: number | undefined; storage: TidingsStorage | undefined;
};

// An option of undefined counts as missing, so an optional setting can be passed on as it is.
const options: TidingsOptions = {
  token: async () => {
    const response = await fetch('/my/token');
    if (response.status === 401) return null;
    if (!response.ok) throw new Error(`status ${response.status}`);
    return response.text();
  },
  autoConnect: maybe.flag,
  cursor: maybe.text,
  storageKey: maybe.text,
  storage: maybe.storage,
  device: maybe.text,
  connectTimeoutMs: maybe.number,
  retryTimeoutMs: maybe.number,
  events: maybe.text,
  socketRetryMs: maybe.number,
  random: undefined,
  WebSocket: globalThis.WebSocket,
};
export const client = new Tidings(new URL('https://push.example.com/ws'), { ...options, storage: localStorage });

client.on('state', (state) => {
  const offline: boolean = state.offline ?? false;
  if (state.name === 'live' && state.transport === 'sse') console.log('without a WebSocket');
  if (state.name === 'waiting') console.log(state.retryInMs, state.code, state.reason, offline);
});
client.on('gap', (gap: Gap) => (gap.since_ms === undefined ? gap.since?.length : gap.since_ms + 1));
client.on('error', (error) => error instanceof TidingsError && error.code === 4009);
client.on<{ order: number }>('paid', ({ order }, { id }) => id && client.ack(id) === undefined && order + 1);
const stop: () => void = client.on('welcome', ({ expires_in_ms, unread }) => (expires_in_ms ?? 0) + (unread ?? 0));
stop();

// @ts-expect-error: a token callback is required
new Tidings('/ws', {});
// @ts-expect-error: not an option
new Tidings('/ws', { token: () => null, cursors: 'a' });

client.on('unread', (unread) => (unread ?? 0) + 1);
client.on('read', ({ device, id, unread }) => `${device} ${id} ${unread + 1}`);
client.on('retracted', (frame) => (frame.all ? 'all' : frame.id.length));
client.once('anything', (data) => data.not.checked);
client.history({ limit: 5, before: client.cursor }).then(({ notifications, next }) => [notifications[0]?.ts, next]);
client.history().then(({ notifications: [newest] }) => newest?.data.not.checked);

interface Order { order: number }
type Shop = { paid: Order; note: { text: string } };
const shop = new Tidings<Shop>('/ws', options);
shop.on('paid', ({ order }, frame: EventFrame<Order, 'paid'>) => order + (frame.ts ?? 0) + Number(frame.replayed ?? false));
shop.once('note', ({ text }, { collapse }) => text.length + (collapse ?? '').length);
shop.on('event', (data, frame) => (frame.event === 'paid' ? frame.data.order + 1 : frame.data.text.length));
shop.history().then(({ notifications }) => notifications.map((one) => (one.event === 'paid' ? one.data.order : one.id)));
shop.on('state', ({ name }) => name);
// @ts-expect-error: not a declared event
shop.on('payed', () => {});
// @ts-expect-error: not a field of its data
shop.on('paid', ({ price }) => price);

declare const inbox: TidingsInbox;
inbox.client = shop;
inbox.client = null;
inbox.labels = { title: 'Nachrichten', bell: (unread) => `${unread} ungelesen` };
inbox.open = !inbox.open;
document.querySelector('tidings-inbox')!.client = client;
