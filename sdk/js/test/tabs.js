// What the tabs of one browser have in common: Web Locks, and BroadcastChannels; and a tab, which is the module once more.
import { FakeStream, settled } from './events.js';

/** Web Locks: exclusive, first come, first served. */
class Locks {
  #queues = new Map();

  request(name, { signal }, callback) {
    const queue = this.#queues.get(name) ?? [];
    this.#queues.set(name, queue);
    return new Promise((resolve, reject) => {
      const entry = { run: () => Promise.resolve(callback()).then(() => this.#next(queue)).then(resolve, reject) };
      signal.addEventListener('abort', () => {
        const at = queue.indexOf(entry);
        if (at <= 0) return; // Held, or gone.
        queue.splice(at, 1);
        reject(signal.reason);
      });
      if (queue.push(entry) === 1) queueMicrotask(entry.run);
    });
  }

  #next(queue) {
    queue.shift();
    queue[0]?.run();
  }
}

/** BroadcastChannel, within this process: that of Node keeps its thread, and delivers when it likes. */
class Channel {
  static open = new Set();

  constructor(name) {
    this.name = name;
    Channel.open.add(this);
  }

  postMessage(data) {
    if (!Channel.open.has(this)) throw new DOMException('closed', 'InvalidStateError');
    for (const other of Channel.open) {
      if (other === this || other.name !== this.name) continue;
      queueMicrotask(() => Channel.open.has(other) && other.onmessage?.({ data: structuredClone(data) }));
    }
  }

  close() {
    Channel.open.delete(this);
  }
}

/** A browser; `tab` opens a stream in a tab of its own. */
export function browser(t) {
  const streams = [];
  const before = ['fetch', 'BroadcastChannel', 'navigator'].map((name) => [name, Object.getOwnPropertyDescriptor(globalThis, name)]);
  const set = (name, value) => Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
  set('fetch', (url, options) => {
    streams.push(new FakeStream(url, options));
    return streams.at(-1).response;
  });
  set('BroadcastChannel', Channel);
  set('navigator', { locks: new Locks() });
  t.mock.timers.enable({ apis: ['setTimeout', 'Date'], now: 1_800_000_000_000 });
  const tabs = [];
  t.after(() => {
    tabs.forEach(({ socket }) => socket.close());
    Channel.open.clear();
    for (const [name, value] of before) {
      if (value) Object.defineProperty(globalThis, name, value);
      else delete globalThis[name];
    }
  });
  const pass = async (ms) => {
    t.mock.timers.tick(ms);
    await settled();
  };
  let count = 0;
  const module = () => import(`../tidings-sse.js?tab=${t.name}-${(count += 1)}`);
  /** Up to its welcome, unless that is null. `in` is the module of a tab that has a stream already. */
  const tab = async (welcome = {}, { url = 'wss://gateway.test/ws', page } = {}) => {
    const here = page ?? (await module());
    const socket = new here.EventStream(new URL(url), 'a.b.c', isBefore, { socketRetryMs: 300_000, random: () => 0.5 });
    const it = { socket, page: here, frames: [], closes: [], stream: streams.at(-1) };
    socket.onmessage = ({ data }) => it.frames.push(JSON.parse(data));
    socket.onclose = (close) => it.closes.push(close);
    it.got = () => it.frames.filter(({ type }) => type === 'event').map(({ data }) => data);
    it.has = (type) => it.frames.some((frame) => frame.type === type);
    tabs.push(it);
    if (welcome) await it.stream.welcome(welcome);
    return it;
  };
  return { tab, pass, streams, open: () => streams.filter(({ aborted }) => !aborted).length };
}

function isBefore(cursor, other) {
  const [epoch, , number] = cursor.split('-');
  const [otherEpoch, , otherNumber] = other.split('-');
  return epoch === otherEpoch && Number(number) < Number(otherNumber);
}
