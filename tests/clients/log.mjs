// What an application learns from its client, in order. Every client reports with the same words:
//   connected {recovered}     event {name, args}     attempt_failed {code, message}: the client tries again by itself
//   lost {reason, code}: the client reconnects by itself     ended {reason, code}: it does not
import assert from 'node:assert/strict';
import { EventEmitter, once } from 'node:events';

const DEADLINE_MS = 15_000;

export class Log {
  entries = [];
  #read = 0;
  #added = new EventEmitter();

  constructor(name) {
    this.name = name;
  }

  add(entry) {
    this.entries.push(entry);
    this.#added.emit('entry');
  }

  /** The next entry of this kind; the entries before it count as read, and none of them may be among `not`. */
  async next(is, ...not) {
    const signal = AbortSignal.timeout(DEADLINE_MS);
    for (;;) {
      while (this.#read < this.entries.length) {
        const entry = this.entries[this.#read++];
        if (entry.is === is) return entry;
        assert.ok(!not.includes(entry.is), `${this.name}: ${entry.is} instead of ${is}: ${this}`);
      }
      await once(this.#added, 'entry', { signal }).catch(() => assert.fail(`${this.name}: no ${is}: ${this}`));
    }
  }

  /** Everything of this kind so far. */
  all(is) {
    return this.entries.filter((entry) => entry.is === is);
  }

  toString() {
    return `\n${this.entries.map((entry) => JSON.stringify(entry)).join('\n')}`;
  }
}
