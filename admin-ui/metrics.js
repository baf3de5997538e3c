// The Prometheus text format, as far as this page needs it.
const LINE = /^([a-z_]+)(?:\{(.*)\})? (\S+)/i;
const LABEL = /([a-z_]+)="((?:[^"\\]|\\.)*)"/gi;

/** All samples: name → `[{ labels, value }]`. */
export function parse(text) {
  const samples = new Map();
  for (const line of text.split('\n')) {
    const [, name, labels = '', value] = (line.startsWith('#') ? null : line.match(LINE)) ?? [];
    if (name === undefined) continue;
    if (!samples.has(name)) samples.set(name, []);
    const pairs = [...labels.matchAll(LABEL)].map(([, label, text]) => [label, text.replace(/\\(.)/g, '$1')]);
    samples.get(name).push({ labels: Object.fromEntries(pairs), value: Number(value.replace('Inf', 'Infinity')) });
  }
  return samples;
}

const matches = (wanted) => ({ labels }) => Object.entries(wanted).every(([label, value]) => labels[label] === value);

/** The sum of a metric's samples with these labels; undefined without one. */
export function sum(samples, name, wanted = {}) {
  const found = samples?.get(name)?.filter(matches(wanted)) ?? [];
  return found.length === 0 ? undefined : found.reduce((total, { value }) => total + value, 0);
}

/** The snapshots of the last minutes, and rates between them. */
export class History {
  #snapshots = [];
  #keptMs;

  constructor(keptMs) {
    this.#keptMs = keptMs;
  }

  add(samples, now) {
    // Counters that fell belong to a new process: nothing before them can be compared.
    const started = (of) => sum(of, 'tidings_connections_opened_total') ?? 0;
    if (this.latest && started(samples) < started(this.latest)) this.#snapshots = [];
    this.#snapshots.push({ samples, at: now });
    this.#snapshots = this.#snapshots.filter(({ at }) => now - at <= this.#keptMs);
  }

  get latest() {
    return this.#snapshots.at(-1)?.samples;
  }

  /** The latest snapshot that is at least so much older than another; the oldest if none is. */
  #before(snapshot, ms) {
    return this.#snapshots.findLast(({ at }) => snapshot.at - at >= ms) ?? this.#snapshots[0];
  }

  #rateAt(snapshot, ms, name, wanted) {
    const before = this.#before(snapshot, ms);
    if (before.at >= snapshot.at) return undefined;
    const now = sum(snapshot.samples, name, wanted);
    return now === undefined ? undefined : (now - (sum(before.samples, name, wanted) ?? 0)) / ((snapshot.at - before.at) / 1_000);
  }

  /** Per second, over the last `ms`; undefined until there are two snapshots. */
  rate(name, wanted = {}, ms = 10_000) {
    const latest = this.#snapshots.at(-1);
    return latest && this.#rateAt(latest, ms, name, wanted);
  }

  /** The rates between neighbouring snapshots. */
  rates(name, wanted = {}) {
    return this.#snapshots.slice(1).map((snapshot) => this.#rateAt(snapshot, 1, name, wanted) ?? 0);
  }

  values(name, wanted = {}) {
    return this.#snapshots.map(({ samples }) => sum(samples, name, wanted) ?? 0);
  }

  /** The upper bound of the bucket with the quantile of a histogram over the last minute; undefined without observations. */
  quantile(share, name) {
    const latest = this.#snapshots.at(-1);
    const buckets = latest?.samples.get(`${name}_bucket`);
    if (buckets === undefined) return undefined;
    const before = this.#before(latest, 60_000).samples;
    const counts = new Map();
    for (const { labels: { le }, value } of buckets) counts.set(le, (counts.get(le) ?? 0) + value);
    const grown = [...counts].map(([le, value]) => [Number(le.replace('+Inf', 'Infinity')), value - (sum(before, `${name}_bucket`, { le }) ?? 0)]);
    grown.sort(([a], [b]) => a - b);
    const total = grown.at(-1)[1];
    return total > 0 ? grown.find(([, count]) => count >= share * total)[0] : undefined;
  }
}
