// Computes figures from raw lines: medians, spreads, ratios within one repeat, and whether a target was met.

import { rowsOf } from './sessions.mjs';

// The servers that others made.
export const PEERS = ['ws', 'socketio', 'nchan', 'nchan-redis', 'nats'];

// A server below this was waiting for the load generator.
const BUSY = 90;

export function spread(values) {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = (sorted.length - 1) / 2;
  const median = (sorted[Math.floor(middle)] + sorted[Math.ceil(middle)]) / 2;
  return { median, min: sorted[0], max: sorted.at(-1), count: sorted.length };
}

export function labelOf({ server, variant }) {
  return variant ? `${server}, ${variant}` : server;
}

// The values of one row: repeat => value.
function series(scenario, lines, row, key) {
  const metric = scenario.metrics.find((candidate) => candidate.key === key);
  const mine = lines.filter((line) => line.server === row.server && line.variant === row.variant);
  return new Map(mine.map((line) => [line.repeat, metric.of(line.report, line.extra)]));
}

// Only for repeats in which both were measured: an interrupted repeat lacks some servers.
function ratios(ours, theirs) {
  return [...ours].filter(([repeat]) => theirs.has(repeat)).map(([repeat, value]) => value / theirs.get(repeat));
}

// A server may not have been installed.
function measuredRows(scenario, lines) {
  return rowsOf(scenario).filter((row) => {
    return lines.some(({ server, variant }) => server === row.server && variant === row.variant);
  });
}

export function tableOf(scenario, lines) {
  return measuredRows(scenario, lines).map((row) => ({
    label: labelOf(row),
    cells: scenario.metrics.map(({ key }) => spread([...series(scenario, lines, row, key).values()])),
  }));
}

// Each row relative to the reference row of the scenario, within a repeat.
export function ratiosOf(scenario, lines) {
  const rows = measuredRows(scenario, lines);
  const other = rows.find(({ variant }) => variant === scenario.against);
  const cellOf = (row, key) => {
    return spread(ratios(series(scenario, lines, row, key), series(scenario, lines, other, key)));
  };
  return rows
    .filter((row) => row !== other)
    .map((row) => ({ label: labelOf(row), cells: scenario.metrics.map(({ key }) => cellOf(row, key)) }));
}

const rowOf = (server) => ({ server, variant: '' });

function busyOf(scenario, lines, row) {
  return spread([...series(scenario, lines, row, 'busy').values()]).median;
}

// One row per compared metric, with a cell per peer: tidings relative to it, and whether the peer is better.
export function peersOf(scenario, lines) {
  const cellOf = ({ key, isRate }, peer) => {
    const found = ratios(series(scenario, lines, rowOf('tidings'), key), series(scenario, lines, rowOf(peer), key));
    if (found.length === 0) return {};
    // Deliveries per second compare only servers that were the bottleneck.
    const waited = isRate && ['tidings', peer].find((server) => busyOf(scenario, lines, rowOf(server)) < BUSY);
    const { median } = spread(found);
    return { found: spread(found), waited, isWorse: isRate ? median < 1 : median > 1 };
  };
  return (scenario.peers ?? []).map((key) => {
    const metric = scenario.metrics.find((candidate) => candidate.key === key);
    return { metric, cells: PEERS.map((peer) => cellOf(metric, peer)) };
  });
}

function verdictOf(target, { median, min, max, count }) {
  const most = target.times ?? target.most;
  const keeps = target.better === 'less' ? (value) => value <= most : (value) => value >= most;
  // One repeat shows no spread, and so is weak evidence.
  if (count === 1) return keeps(median) ? 'met once' : 'missed once';
  if (keeps(min) && keeps(max)) return 'met';
  return keeps(median) ? 'met in the median' : 'missed';
}

export function promisesOf(scenario, lines) {
  return scenario.targets.map((target) => {
    const metric = scenario.metrics.find(({ key }) => key === target.metric);
    const values = series(scenario, lines, { server: 'tidings', variant: target.of ?? '' }, target.metric);
    const sign = target.better === 'less' ? '≤' : '≥';
    const what = target.of ? `${metric.name}, ${target.of}` : metric.name;
    if (!target.against) {
      const found = spread([...values.values()]);
      return { what, promised: `${sign} ${target.most}`, unit: metric.unit, found, verdict: verdictOf(target, found) };
    }
    const other = target.of ? { server: 'tidings', variant: target.against } : rowOf(target.against);
    const others = series(scenario, lines, other, target.metric);
    const found = spread(ratios(values, others));
    const busy = target.needsBusy ? busyOf(scenario, lines, other) : 100;
    const verdict = busy < BUSY ? `undecided: ${target.against} was not the bottleneck` : verdictOf(target, found);
    return { what, promised: `${sign} ${target.times} × ${target.against}`, unit: '×', found, verdict };
  });
}
